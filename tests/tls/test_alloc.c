/* Every allocation of the library's over a connection's whole life, failed one at a time:
 * nothing crashes, hangs or leaks, and what is reported says so. */
#include "support.h"

SUITE(alloc);

static SSL_CTX *um_server, *um_client, *plain_server, *plain_client;
static unsigned failing;   /* which allocation */
static bool bad;           /* something was reported */

static void contexts(bool make) {
  if (make) {
    um_server = um_server_ctx("server", 0);
    um_client = um_client_ctx(0);
    plain_server = plain_server_ctx("server", 0);
    plain_client = plain_client_ctx(0);
    return;
  }
  SSL_CTX_free(um_server);
  SSL_CTX_free(um_client);
  SSL_CTX_free(plain_server);
  SSL_CTX_free(plain_client);
}

/* What a failed allocation may be seen as: itself, or the end it put to the other's. */
static bool sane(ssize_t result) {
  if (result >= 0) return true;
  bad = true;
  switch (result) {
    case -ENOMEM: case UM_ETLS: case UM_ETRUNCATED: case -ECONNRESET: case -EPIPE: case UM_ECLOSED:
      return true;
    default:
      fprintf(stderr, "allocation %u: %s\n", failing, um_strerror((int)result));
      return false;
  }
}

/* The first failure must be the memory's. */
static bool good(ssize_t result) {
  CHECK(sane(result));
  return result >= 0;
}

/* A reactor that could not start has lost nothing: it can be run again. */
static void run_on(um_reactor *r) {
  int result = um_reactor_run(r);
  if (result < 0) {
    CHECK_EQ(result, -ENOMEM);
    bad = true;
    result = um_reactor_run(r);
  }
  CHECK_EQ(result, 0);
}

static int run(fiber_fn main, void *argument) {
  um_reactor *r;
  um_error error;
  um_metrics m;
  int result = um_reactor_create(&r, NULL, &error);
  if (result < 0) {
    CHECK_EQ(result, -ENOMEM);
    CHECK(error.message[0]);
    bad = true;
    return result;
  }
  result = um_fiber_spawn(r, NULL, main, argument, NULL);
  CHECK(sane(result));
  if (result == 0) run_on(r);
  um_reactor_metrics(r, &m);
  CHECK_EQ(m.fibers, 0);
  CHECK_EQ(m.buffers_used, 0);
  CHECK_EQ(um_reactor_destroy(r), 0);
  return result;
}

static void sweep(void (*life)(void)) {
  bool reached = true;
  contexts(true);
  life(); /* what OpenSSL and libc allocate once is there now */
  unsigned before = open_fds();
  for (failing = 0; reached; failing++) {
    bad = false;
    fail_allocation(failing);
    life();
    reached = allocation_failed();
    ERR_clear_error();
    CHECK_EQ(open_fds(), before);
    CHECK(reached || !bad);
    CHECK(failing < 2000);
  }
  CHECK(failing > 5);
  contexts(false);
}

/* ---- a client's stream ---- */

static void forgiving_echo(peer *p) {
  char bytes[16384];
  size_t n;
  if (SSL_do_handshake(p->ssl) != 1) return;
  while (SSL_read_ex(p->ssl, bytes, sizeof bytes, &n) == 1)
    if (SSL_write_ex(p->ssl, bytes, n, &n) != 1) return;
  SSL_shutdown(p->ssl);
}

static void talk(um_tls *tls) {
  static char out[60000], in[60000];
  pattern(out, sizeof out, 0);
  if (!good(um_tls_handshake(tls, UM_FOREVER))) return;
  if (!good(um_tls_write(tls, out, sizeof out, UM_FOREVER))) return;
  ssize_t n = um_tls_read_until(tls, in, sizeof in, out + 2000, 16, UM_FOREVER);
  if (!good(n)) {
    /* What is read after a failure may be short, never wrong. */
    if ((n = um_tls_read(tls, in, sizeof in, UM_FOREVER)) > 0) CHECK(is_pattern(in, (size_t)n, 0));
    return;
  }
  CHECK(is_pattern(in, (size_t)n, 0));
  size_t have = (size_t)n;
  while (have < sizeof in) {
    n = um_tls_read(tls, in + have, have < 30000 ? 100 : sizeof in - have, UM_FOREVER);
    if (!good(n)) return;
    CHECK(n > 0 && is_pattern(in + have, (size_t)n, have));
    have += (size_t)n;
  }
  if (!good(um_tls_key_update(tls, 1, UM_FOREVER))) return;
  good(um_tls_shutdown(tls, UM_FOREVER));
}

static peer other;

static int client_stream(void *argument) {
  int fds[2];
  um_tls *tls;
  um_tls_options options = {.hostname = "localhost", .alpn = "h2"};
  (void)argument;
  local_pair(fds);
  int result = um_tls_client(&tls, fds[0], um_client, &options);
  CHECK(sane(result));
  if (result < 0) {
    CHECK(!tls);
    close(fds[1]);
    return 0;
  }
  peer_start(&other, fds[1], plain_server, true, forgiving_echo, NULL);
  talk(tls);
  sane(um_tls_close(tls, um_after(2000)));
  while (!other.done) usleep(50);
  CHECK_EQ(pthread_join(other.thread, NULL), 0);
  return 0;
}

static void client_life(void) { run(client_stream, NULL); }
Test(alloc, a_clients_stream) { sweep(client_life); }

/* ---- by name ---- */

static void forgiving_accept(peer *p) {
  int fd = accept(*(int *)p->argument, NULL, NULL);
  if (fd < 0) return;
  char byte;
  SSL_set_fd(p->ssl, fd);
  if (SSL_do_handshake(p->ssl) == 1)
    while (SSL_read(p->ssl, &byte, 1) > 0) SSL_write(p->ssl, &byte, 1);
  close(fd);
}

static int by_name(void *argument) {
  char *port = argument, byte;
  um_tls *tls;
  um_error error;
  int result = um_tls_connect(&tls, "localhost", port, um_client, NULL, um_after(10000), &error);
  CHECK(sane(result));
  if (result < 0) {
    CHECK(!tls);
    CHECK(error.message[0]);
    return 0;
  }
  if (good(um_tls_write(tls, "x", 1, UM_FOREVER))) good(um_tls_read(tls, &byte, 1, UM_FOREVER));
  sane(um_tls_close(tls, um_after(2000)));
  return 0;
}

static void connect_life(void) {
  char port[8];
  int at = listener(port);
  peer p;
  peer_start(&p, at, plain_server, true, forgiving_accept, &at);
  run(by_name, port);
  shutdown(at, SHUT_RDWR); /* in case nobody came */
  peer_join(&p);
}
Test(alloc, a_connection_by_name) { sweep(connect_life); }

/* ---- a server ---- */

static int echoes(um_tls *tls, void **data, void *argument) {
  char bytes[2000];
  (void)data, (void)argument;
  ssize_t n = um_tls_read_until(tls, bytes, sizeof bytes, "\n", 1, UM_FOREVER);
  if (n <= 0) return (int)n;
  n = um_tls_write(tls, bytes, (size_t)n, UM_FOREVER);
  return n < 0 ? (int)n : UM_TLS_PARK;
}

static int opened, ended, offload;
static uint64_t offloaded;
static void closed(um_tls *tls, void *data, void *argument, int reason) {
  (void)tls, (void)data, (void)argument, (void)reason;
  ended++;
}

static void asks_twice(peer *p) {
  char bytes[20];
  for (int i = 0; i < 2; i++) {
    if (SSL_write(p->ssl, "one line\nanother\n", 17) != 17) break;
    for (int have = 0, n; have < 17; have += n)
      if ((n = SSL_read(p->ssl, bytes + have, 17 - have)) <= 0) return;
    p->count++;
  }
  SSL_shutdown(p->ssl);
  while (SSL_read(p->ssl, bytes, sizeof bytes) > 0) continue;
}

static int server(void *argument) {
  char port[8];
  um_tls_listener *l;
  um_tls_listener_stats stats;
  um_tls_server_config config = {.ctx = um_server, .handler = echoes, .closed = closed,
                                 .max_per_address = 100, .offload = offload};
  int at = listener(port);
  (void)argument;
  ended = 0;
  offloaded = 0;
  int result = um_tls_serve(&l, at, &config);
  CHECK(sane(result));
  if (result == 0) {
    peer_start(&other, dial(port), plain_client, false, asks_twice, NULL);
    while (!other.done) um_fiber_sleep(um_after(1));
    CHECK_EQ(pthread_join(other.thread, NULL), 0);
    um_tls_listener_stats_get(l, &stats);
    opened = (int)stats.accepted;
    offloaded = stats.offloaded;
    CHECK_EQ(um_tls_listener_stop(l, um_after(2000)), 0);
    CHECK_EQ(ended, opened);
    CHECK(opened <= 1);
  }
  close(at);
  return 0;
}

static void server_life(void) { run(server, NULL); }
Test(alloc, a_server) { sweep(server_life); }

/* One of the failures leaves a handshake to its deadline, 10 s: see the commit. */
Test(alloc, a_server_with_workers) {
  offload = UM_TLS_OFFLOAD_ALWAYS;
  sweep(server_life);
  CHECK_EQ(offloaded, 1); /* in the last life nothing failed */
}

/* ---- the BIO, inside a fiber and then outside ---- */

static SSL *bio_ssl;

static int bio_inside(void *argument) {
  char bytes[100];
  size_t n;
  (void)argument;
  if (SSL_connect(bio_ssl) != 1) return 0;
  ERR_raise_data(ERR_LIB_USER, 1, "kept over %s", "waits");
  if (SSL_write(bio_ssl, "hello", 5) != 5) return 0;
  SSL_read_ex(bio_ssl, bytes, 2, &n);
  return 0;
}

static void bio_life(void) {
  int fds[2];
  char bytes[100];
  BIO *bio;
  um_reactor *r;
  local_pair(fds);
  bio_ssl = SSL_new(plain_client);
  if (!(bio = BIO_new_uring(fds[0], BIO_CLOSE))) {
    bad = true;
    close(fds[0]), close(fds[1]);
    SSL_free(bio_ssl);
    return;
  }
  SSL_set_bio(bio_ssl, bio, bio);
  peer_start(&other, fds[1], plain_server, true, forgiving_echo, NULL);
  BIO_set_uring_deadline(bio, um_after(5000));
  if (um_reactor_create(&r, NULL, NULL) == 0) {
    if (um_fiber_spawn(r, NULL, bio_inside, NULL, NULL) == 0) run_on(r);
    else bad = true;
  } else {
    bad = true;
  }
  if (SSL_is_init_finished(bio_ssl)) {
    int result = SSL_write(bio_ssl, "outside", 7);
    if (result == 7) result = SSL_read(bio_ssl, bytes, 3);
    if (result > 0) result = SSL_read(bio_ssl, bytes, 7);
    if (result <= 0) bad = true;
    SSL_shutdown(bio_ssl);
  } else {
    bad = true;
  }
  SSL_free(bio_ssl);
  peer_join(&other);
  um_reactor_destroy(r);
}
Test(alloc, the_bio) { sweep(bio_life); }

/* ---- memory mode ---- */

static bool carry(BIO *from, BIO *to) {
  const void *data;
  size_t length = BIO_uring_output(from, &data);
  if (length && BIO_uring_feed(to, data, length) < 0) {
    bad = true;
    CHECK_EQ(BIO_uring_feed(to, data, length), 0); /* nothing was taken: again */
  }
  BIO_uring_sent(from, length);
  return length;
}

static void memory_life(void) {
  SSL *ssl[2] = {SSL_new(plain_client), SSL_new(plain_server)};
  BIO *bio[2] = {BIO_new_uring_memory(-1), BIO_new_uring_memory(-1)};
  SSL_set_connect_state(ssl[0]);
  SSL_set_accept_state(ssl[1]);
  bool fine = bio[0] && bio[1];
  for (int i = 0; i < 2; i++) {
    if (fine) SSL_set_bio(ssl[i], bio[i], bio[i]);
    else BIO_free(bio[i]);
  }
  if (!fine) bad = true;
  for (int i = 0, done = 0; fine && done != 3 && i < 100; i++) {
    for (int j = 0; j < 2; j++) {
      int result = SSL_do_handshake(ssl[j]);
      if (result == 1) done |= 1 << j;
      else if (SSL_get_error(ssl[j], result) != SSL_ERROR_WANT_READ) fine = false;
    }
    while (carry(bio[0], bio[1]) | carry(bio[1], bio[0])) continue;
  }
  if (!fine) bad = true;
  SSL_free(ssl[0]);
  SSL_free(ssl[1]);
}
Test(alloc, memory_mode) { sweep(memory_life); }
