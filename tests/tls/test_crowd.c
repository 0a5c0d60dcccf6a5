/* Many streams of one reactor, sending and receiving at once: every byte comes once and in order,
 * also when the kernel's queues overflow, when buffers run out and when others go away. With a
 * plain runner too, for valgrind and thread sanitizer. */
#include "harness.h"

#include <openssl/ssl.h>

SUITE(crowd);

typedef struct crowd {
  SSL_CTX *ctx[2]; /* client's, server's */
  size_t bytes;    /* each way of each connection */
  int pairs;
  bool some_leave; /* every third client aborts when half of it is done */
  int left;        /* that did */
} crowd;

typedef struct end {
  crowd *crowd;
  um_tls *tls;
  int fd, number;
  bool server;
} end;

static const char *cert(const char *name) {
  static char path[300];
  const char *folder = getenv("UM_TEST_CERTS");
  snprintf(path, sizeof path, "%s/%s", folder ? folder : "build/certs", name);
  return path;
}

static char byte_at(const end *e, bool by_server, size_t offset) {
  return (char)(offset * 31 + (offset >> 8) + (size_t)e->number * 7 + by_server);
}

static bool parts(const end *e) { return e->crowd->some_leave && e->number % 3 == 0; }
static bool leaves(const end *e) { return parts(e) && !e->server; }
static bool is_left(const end *e) { return parts(e) && e->server; }

static int writes(void *argument) {
  end *e = argument;
  char bytes[3000];
  size_t total = leaves(e) ? e->crowd->bytes / 2 : e->crowd->bytes;
  for (size_t done = 0, length; done < total; done += length) {
    length = 1 + (done * 7 + (size_t)e->number) % sizeof bytes;
    if (length > total - done) length = total - done;
    for (size_t i = 0; i < length; i++) bytes[i] = byte_at(e, e->server, done + i);
    ssize_t n = um_tls_write(e->tls, bytes, length, UM_FOREVER);
    if (n != (ssize_t)length) return n < 0 ? (int)n : -EIO;
  }
  return leaves(e) ? 0 : um_tls_shutdown(e->tls, UM_FOREVER);
}

/* In three ways, each taking up where the one before ended. */
static ssize_t read_some(end *e, char *bytes, size_t most, size_t done) {
  size_t left = e->crowd->bytes - done;
  char last = byte_at(e, !e->server, done + 50);
  if (done % 3 == 1 && left > 100) return um_tls_read_exact(e->tls, bytes, 100, UM_FOREVER);
  if (done % 3 == 2 && left > 256)
    return um_tls_read_until(e->tls, bytes, most, &last, 1, UM_FOREVER);
  return um_tls_read(e->tls, bytes, most, UM_FOREVER);
}

static ssize_t reads(end *e) {
  char bytes[2000];
  size_t done = 0;
  ssize_t n;
  while ((n = read_some(e, bytes, sizeof bytes, done)) > 0) {
    for (ssize_t i = 0; i < n; i++)
      CHECK_EQ(bytes[i], byte_at(e, !e->server, done + (size_t)i));
    done += (size_t)n;
    if (leaves(e) && done > e->crowd->bytes / 2) return UM_ECLOSED;
  }
  if (n == 0) CHECK_EQ(done, e->crowd->bytes);
  return n;
}

static int lives(void *argument) {
  end *e = argument;
  um_tls_options options = {.hostname = e->server ? NULL : "localhost"};
  CHECK_EQ((e->server ? um_tls_server : um_tls_client)(&e->tls, e->fd, e->crowd->ctx[e->server],
                                                       &options), 0);
  CHECK_EQ(um_tls_handshake(e->tls, UM_FOREVER), 0);
  um_fiber *writer = spawn(writes, e);
  ssize_t received = reads(e);
  if (leaves(e)) {
    CHECK_EQ(received, UM_ECLOSED);
    um_tls_abort(e->tls); /* under its writer */
    join(writer);
    e->crowd->left++;
    return 0;
  }
  int sent = join(writer);
  if (is_left(e)) {
    CHECK(received < 0);
    um_tls_close(e->tls, um_after(1000));
    return 0;
  }
  CHECK_EQ(received, 0);
  CHECK_EQ(sent, 0);
  CHECK_EQ(um_tls_close(e->tls, UM_FOREVER), 0);
  return 0;
}

static int meet(void *argument) {
  crowd *c = argument;
  um_group group;
  end *ends = calloc((size_t)c->pairs * 2, sizeof *ends);
  CHECK(ends != NULL);
  um_group_init(&group);
  for (int i = 0; i < c->pairs; i++) {
    int fds[2];
    tcp_pair(fds);
    for (int side = 0; side < 2; side++) {
      end *e = &ends[2 * i + side];
      *e = (end){.crowd = c, .fd = fds[side], .number = i, .server = side};
      CHECK_EQ(um_group_spawn(&group, lives, e, NULL), 0);
    }
  }
  CHECK_EQ(um_group_join(&group, UM_FOREVER), 0);
  free(ends);
  return 0;
}

/* Under this configuration, with both versions of TLS; the counts of the second. */
static um_metrics gather(crowd *c, um_reactor_config config) {
  um_metrics metrics;
  for (int version = TLS1_3_VERSION; version >= TLS1_2_VERSION; version--) {
    char key[300];
    snprintf(key, sizeof key, "%s", cert("server.key"));
    CHECK_EQ(um_tls_ctx_client(&c->ctx[0], cert("ca.pem"), NULL), 0);
    CHECK_EQ(um_tls_ctx_server(&c->ctx[1], cert("server.pem"), key, NULL), 0);
    SSL_CTX_set_max_proto_version(c->ctx[1], version);
    um_reactor *r = reactor_new(&config);
    CHECK_EQ(um_fiber_spawn(r, NULL, meet, c, NULL), 0);
    CHECK_EQ(um_reactor_run(r), 0);
    metrics = metrics_of(r);
    reactor_finish(r);
    SSL_CTX_free(c->ctx[0]);
    SSL_CTX_free(c->ctx[1]);
  }
  return metrics;
}

TEST(crowd, both_ways_at_once) {
  crowd c = {.bytes = (size_t)scaled(300000), .pairs = 10};
  gather(&c, (um_reactor_config){0});
}

TEST(crowd, while_both_queues_of_the_ring_overflow) {
  if (!on_uring()) SKIP("the epoll backend has no queues");
  crowd c = {.bytes = (size_t)scaled(30000), .pairs = 100};
  um_metrics m = gather(&c, (um_reactor_config){.entries = 8, .cq_entries = 16});
  CHECK(m.sq_full > 0);
  CHECK(m.cq_overflows > 0);
  CHECK_EQ(m.stale, 0);
}

TEST(crowd, with_four_buffers_for_all) {
  crowd c = {.bytes = (size_t)scaled(100000), .pairs = 20};
  um_reactor_config config = {.buffer_count = 4, .buffer_size = 4096};
  um_metrics m = gather(&c, config);
  CHECK(m.enobufs > 0);
}

TEST(crowd, some_leave_half_way) {
  crowd c = {.bytes = (size_t)scaled(2000000), .pairs = 12, .some_leave = true};
  gather(&c, (um_reactor_config){0});
  CHECK_EQ(c.left, 2 * 4);
}
