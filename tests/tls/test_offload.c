/* Handshakes on worker threads: the same results as without, while only their own fiber
 * or connection waits; deadlines, cancellation and stopping while one is out. */
#include "harness.h"

#include <openssl/err.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

SUITE(offload);

static const char *cert(const char *name) {
  static _Thread_local char paths[4][300];
  static _Thread_local unsigned next;
  const char *folder = getenv("UM_TEST_CERTS");
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", folder ? folder : "build/certs", name);
  return path;
}

static SSL_CTX *server_ctx(const char *name, int version) {
  SSL_CTX *ctx;
  char chain[64], key[64];
  snprintf(chain, sizeof chain, "%s.pem", name);
  snprintf(key, sizeof key, "%s.key", name);
  CHECK_EQ(um_tls_ctx_server(&ctx, cert(chain), cert(key), NULL), 0);
  if (version) SSL_CTX_set_min_proto_version(ctx, version), SSL_CTX_set_max_proto_version(ctx, version);
  return ctx;
}

static SSL_CTX *client_ctx(const char *ca) {
  SSL_CTX *ctx;
  CHECK_EQ(um_tls_ctx_client(&ctx, cert(ca), NULL), 0);
  return ctx;
}

/* ---- two streams, one reactor ---- */

typedef struct both {
  SSL_CTX *server, *client;
  const char *hostname;
  unsigned flags;            /* of both ends */
  SSL_SESSION *session;      /* to resume; replaced */
  um_time server_deadline;   /* relative; 0: none */
  bool cancels, reused;
  um_fiber *server_fiber;
  int fds[2], result[2];
  char message[2][200];
} both;

static int serve_one(void *argument) {
  both *b = argument;
  um_tls *tls;
  char byte = 0;
  um_tls_options options = {.flags = b->flags};
  CHECK_EQ(um_tls_server(&tls, b->fds[0], b->server, &options), 0);
  um_time deadline = b->server_deadline ? um_now() + b->server_deadline : UM_FOREVER;
  b->result[0] = um_tls_handshake(tls, deadline);
  if (b->result[0] == -ETIMEDOUT || b->result[0] == -ECANCELED) {
    if (b->flags & UM_TLS_OFFLOAD) CHECK(!um_tls_ssl(tls)); /* it is out */
    um_tls_abort(tls);
    return 0;
  }
  snprintf(b->message[0], sizeof b->message[0], "%s", um_tls_error(tls));
  if (b->result[0] == 0) {
    CHECK_EQ(um_tls_read(tls, &byte, 1, UM_FOREVER), 1);
    CHECK_EQ(um_tls_write(tls, &byte, 1, UM_FOREVER), 1);
  }
  um_tls_close(tls, um_after(5000));
  return 0;
}

static int connect_one(void *argument) {
  both *b = argument;
  um_tls *tls;
  char byte = 'x';
  um_tls_options options = {.hostname = b->hostname ? b->hostname : "localhost", .flags = b->flags,
                            .session = b->session};
  CHECK_EQ(um_tls_client(&tls, b->fds[1], b->client, &options), 0);
  b->result[1] = um_tls_handshake(tls, UM_FOREVER);
  snprintf(b->message[1], sizeof b->message[1], "%s", um_tls_error(tls));
  if (b->result[1] == 0 && b->result[0] == 0) {
    b->reused = SSL_session_reused(um_tls_ssl(tls));
    ssize_t got = um_tls_write(tls, &byte, 1, UM_FOREVER);
    if (got == 1) got = um_tls_read(tls, &byte, 1, UM_FOREVER);
    if (got < 0) b->result[1] = (int)got;
    SSL_SESSION_free(b->session);
    b->session = um_tls_session(tls);
  }
  um_tls_close(tls, um_after(5000));
  return 0;
}

static int run_both(void *argument) {
  both *b = argument;
  tcp_pair(b->fds);
  b->server_fiber = spawn(serve_one, b);
  um_fiber *client = spawn(connect_one, b);
  if (b->cancels) {
    um_fiber_sleep(um_after(20));
    um_fiber_cancel(b->server_fiber);
  }
  join(b->server_fiber);
  join(client);
  return 0;
}

/* Where callbacks of the server's context run, and for how long. */
static atomic_int here, elsewhere, naps;
static pthread_t home;

static void look_around(const SSL *ssl, int where, int value) {
  (void)ssl, (void)where, (void)value;
  if (pthread_equal(home, pthread_self())) {
    atomic_fetch_add(&here, 1);
    return;
  }
  atomic_fetch_add(&elsewhere, 1);
  if (atomic_load(&naps)) usleep((unsigned)atomic_load(&naps) * 1000);
}

static void shake(both *b, const char *name, int version) {
  home = pthread_self();
  here = elsewhere = 0;
  b->server = server_ctx(name, version);
  b->client = client_ctx(!strncmp(name, "server-rsa", 10) ? "rsa-ca.pem" : "ca.pem");
}

static void finish(both *b) {
  SSL_CTX_free(b->server);
  SSL_CTX_free(b->client);
  SSL_SESSION_free(b->session);
  naps = 0;
}

#define OFFLOADED (UM_TLS_OFFLOAD | UM_TLS_THREADSAFE_CALLBACKS)

TEST(offload, handshakes_of_both_versions_and_resumption) {
  static const char *const names[] = {"server", "server-rsa"};
  for (int i = 0; i < 4; i++) {
    both b = {.flags = OFFLOADED};
    shake(&b, names[i / 2], i % 2 ? TLS1_2_VERSION : TLS1_3_VERSION);
    SSL_CTX_set_info_callback(b.server, look_around);
    for (int again = 0; again < 3; again++) {
      CHECK_EQ(run_fibers(run_both, &b), 0);
      CHECK_EQ(b.result[0], 0);
      CHECK_EQ(b.result[1], 0);
      CHECK_EQ(b.reused, again > 0);
    }
    CHECK(elsewhere > 0);
    finish(&b);
  }
}

TEST(offload, not_with_callbacks_unless_they_may_be_called_anywhere) {
  both b = {.flags = UM_TLS_OFFLOAD};
  shake(&b, "server", 0);
  SSL_CTX_set_info_callback(b.server, look_around);
  CHECK_EQ(run_fibers(run_both, &b), 0);
  CHECK_EQ(b.result[0], 0);
  CHECK(here > 0);
  CHECK_EQ(elsewhere, 0);
  finish(&b);
}

TEST(offload, client_certificates) {
  both b = {.flags = OFFLOADED};
  shake(&b, "server", 0);
  CHECK_EQ(SSL_CTX_load_verify_file(b.server, cert("client-ca.pem")), 1);
  SSL_CTX_set_verify(b.server, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
  CHECK_EQ(SSL_CTX_use_certificate_chain_file(b.client, cert("client.pem")), 1);
  CHECK_EQ(SSL_CTX_use_PrivateKey_file(b.client, cert("client.key"), SSL_FILETYPE_PEM), 1);
  CHECK_EQ(run_fibers(run_both, &b), 0);
  CHECK_EQ(b.result[0], 0);
  CHECK_EQ(b.result[1], 0);
  finish(&b);
}

/* Failures have the same code and words as without offload. */
TEST(offload, failures_are_the_same_as_without) {
  for (int kind = 0; kind < 3; kind++) {
    both runs[2] = {{.flags = 0}, {.flags = OFFLOADED}};
    for (int i = 0; i < 2; i++) {
      both *b = &runs[i];
      shake(b, kind == 1 ? "expired" : "server", 0);
      if (kind == 0) b->hostname = "other.example";
      if (kind == 2) { /* no certificate where one is wanted */
        CHECK_EQ(SSL_CTX_load_verify_file(b->server, cert("client-ca.pem")), 1);
        SSL_CTX_set_verify(b->server, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
      }
      CHECK_EQ(run_fibers(run_both, b), 0);
      CHECK(b->result[0] < 0);
      finish(b);
    }
    for (int end = 0; end < 2; end++) {
      CHECK_EQ(runs[0].result[end], runs[1].result[end]);
      CHECK(!strcmp(runs[0].message[end], runs[1].message[end]));
    }
  }
}

TEST(offload, a_deadline_passes_while_it_is_out) {
  both b = {.flags = OFFLOADED, .server_deadline = 20 * UM_MS};
  shake(&b, "server", 0);
  SSL_CTX_set_info_callback(b.server, look_around);
  naps = 100;
  CHECK_EQ(run_fibers(run_both, &b), 0);
  CHECK_EQ(b.result[0], -ETIMEDOUT);
  CHECK(b.result[1] < 0);
  CHECK(elsewhere > 0);
  finish(&b);
}

TEST(offload, it_is_cancelled_while_it_is_out) {
  both b = {.flags = OFFLOADED, .cancels = true};
  shake(&b, "server", 0);
  SSL_CTX_set_info_callback(b.server, look_around);
  naps = 100;
  CHECK_EQ(run_fibers(run_both, &b), 0);
  CHECK_EQ(b.result[0], -ECANCELED);
  CHECK(elsewhere > 0);
  finish(&b);
}

static int goes_on_after_the_deadline(void *argument) {
  both *b = argument;
  um_tls *tls;
  um_tls_options options = {.flags = b->flags};
  tcp_pair(b->fds);
  um_fiber *client = spawn(connect_one, b);
  CHECK_EQ(um_tls_server(&tls, b->fds[0], b->server, &options), 0);
  CHECK_EQ(um_tls_handshake(tls, um_after(20)), -ETIMEDOUT);
  atomic_store(&naps, 0);
  CHECK_EQ(um_tls_handshake(tls, UM_FOREVER), 0);
  char byte;
  CHECK_EQ(um_tls_read(tls, &byte, 1, UM_FOREVER), 1);
  CHECK_EQ(um_tls_write(tls, &byte, 1, UM_FOREVER), 1);
  um_tls_close(tls, um_after(5000));
  join(client);
  return 0;
}

TEST(offload, a_handshake_whose_deadline_passed_can_go_on) {
  both b = {.flags = OFFLOADED};
  shake(&b, "server", 0);
  SSL_CTX_set_info_callback(b.server, look_around);
  naps = 100;
  CHECK_EQ(run_fibers(goes_on_after_the_deadline, &b), 0);
  CHECK_EQ(b.result[1], 0);
  finish(&b);
}

/* ---- served ---- */

typedef struct service {
  um_tls_server_config config;
  um_tls_listener_stats stats;
  SSL_CTX *client;
  int clients, fine, reasons[2]; /* of closed(): without and with an error */
  uint16_t port;
  bool stops_shaking;
} service;

static int echo(um_tls *tls, void **data, void *argument) {
  char bytes[64];
  (void)data, (void)argument;
  ssize_t n = um_tls_read(tls, bytes, sizeof bytes, UM_FOREVER);
  if (n <= 0) return (int)n;
  n = um_tls_write(tls, bytes, (size_t)n, UM_FOREVER);
  return n < 0 ? (int)n : UM_TLS_PARK;
}

static void closed(um_tls *tls, void *data, void *argument, int reason) {
  (void)tls, (void)data;
  ((service *)argument)->reasons[reason < 0]++;
}

static int one_client(void *argument) {
  service *s = argument;
  um_tls *tls;
  char port[8], byte = 'x';
  um_tls_options options = {.hostname = "localhost"};
  snprintf(port, sizeof port, "%u", s->port);
  if (um_tls_connect(&tls, "127.0.0.1", port, s->client, &options, um_after(60000), NULL) < 0) return 0;
  if (um_tls_write(tls, &byte, 1, UM_FOREVER) == 1 && um_tls_read(tls, &byte, 1, UM_FOREVER) == 1)
    s->fine++;
  um_tls_close(tls, um_after(1000));
  return 0;
}

static int run_service(void *argument) {
  service *s = argument;
  um_tls_listener *l;
  um_group clients;
  int fd = listener(&s->port, 512);
  s->config.handler = echo;
  if (!s->config.handshake_timeout_ms) s->config.handshake_timeout_ms = 60000; /* valgrind is slow */
  s->config.closed = closed;
  s->config.arg = s;
  CHECK_EQ(um_tls_serve(&l, fd, &s->config), 0);
  um_group_init(&clients);
  for (int i = 0; i < s->clients; i++) CHECK_EQ(um_group_spawn(&clients, one_client, s, NULL), 0);
  if (!s->stops_shaking) CHECK_EQ(um_group_join(&clients, UM_FOREVER), 0);
  um_tls_listener_stats_get(l, &s->stats);
  while (s->stops_shaking && !s->stats.shaking) {
    um_fiber_sleep(um_after(1));
    um_tls_listener_stats_get(l, &s->stats);
  }
  CHECK_EQ(um_tls_listener_stop(l, um_after(5000)), 0);
  close(fd);
  CHECK_EQ(um_group_join(&clients, UM_FOREVER), 0);
  return 0;
}

static void serve_with(service *s, const char *name) {
  home = pthread_self();
  here = elsewhere = 0;
  s->config.ctx = server_ctx(name, 0);
  s->client = client_ctx(!strncmp(name, "server-rsa", 10) ? "rsa-ca.pem" : "ca.pem");
}

static void service_end(service *s) {
  SSL_CTX_free(s->config.ctx);
  SSL_CTX_free(s->client);
  naps = 0;
}

TEST(offload, policies) {
  static const struct { int policy; const char *name; bool all, none; } table[] = {
    {UM_TLS_OFFLOAD_NEVER, "server-rsa", false, true}, {UM_TLS_OFFLOAD_ALWAYS, "server", true, false},
    {UM_TLS_OFFLOAD_AUTO, "server-rsa", true, false},  {UM_TLS_OFFLOAD_AUTO, "server", false, true},
    {1000, "server-rsa", false, true}};
  for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
    service s = {.clients = 20, .config.offload = table[i].policy};
    serve_with(&s, table[i].name);
    CHECK_EQ(run_fibers(run_service, &s), 0);
    CHECK_EQ(s.fine, 20);
    CHECK_EQ(s.stats.handshakes, 20);
    CHECK_EQ(s.stats.shaking, 0);
    if (table[i].all) CHECK_EQ(s.stats.offloaded, 20);
    if (table[i].none) CHECK_EQ(s.stats.offloaded, 0);
    service_end(&s);
  }
}

TEST(offload, served_connections_hold_no_fiber_meanwhile_and_expire) {
  service s = {.clients = 1, .config = {.offload = UM_TLS_OFFLOAD_ALWAYS, .handshake_timeout_ms = 1000,
                                        .flags = UM_TLS_THREADSAFE_CALLBACKS}};
  serve_with(&s, "server");
  SSL_CTX_set_info_callback(s.config.ctx, look_around);
  naps = 300; /* at each of more than ten steps; the client begins within the second */
  CHECK_EQ(run_fibers(run_service, &s), 0);
  CHECK_EQ(s.fine, 0);
  CHECK_EQ(s.stats.timed_out, 1);
  CHECK_EQ(s.stats.offloaded, 1);
  CHECK_EQ(s.reasons[1], 1);
  service_end(&s);
}

TEST(offload, a_listener_stops_while_handshakes_are_out) {
  service s = {.clients = 10, .stops_shaking = true,
               .config = {.offload = UM_TLS_OFFLOAD_ALWAYS, .flags = UM_TLS_THREADSAFE_CALLBACKS}};
  serve_with(&s, "server");
  SSL_CTX_set_info_callback(s.config.ctx, look_around);
  naps = 60;
  CHECK_EQ(run_fibers(run_service, &s), 0);
  CHECK(s.stats.shaking > 0);
  CHECK(s.stats.parked >= s.stats.shaking); /* those that are done may run handlers */
  service_end(&s);
}
