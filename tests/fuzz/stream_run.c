#include "stream_run.h"

#include "harness.h"
#include "memory_peer.h"
#include "own_world.h"

#include <bio_uring/tls.h>
#include <fcntl.h>
#include <unistd.h>

typedef struct run {
  const stream_case *how;
  script *script;
  void (*attach)(script *s, int fd, void *arg);
  void *arg;
} run;

/* ---- randomness, ours and the peer's ---- */

static uint64_t random_state[2];

static void start_randomness(void) {
  random_state[0] = 1;
  random_state[1] = 2;
  own_randomness(&random_state[0]);
}

void stream_peers_turn(bool begins) { own_randomness(&random_state[begins]); }

void stream_init(void) {
  start_randomness();
  for (int i = 0; i < 8; i++)
    memory_peer_ctx(i & 1, i & 2 ? TLS1_3_VERSION : TLS1_2_VERSION, i & 4);
}

/* ---- the stream ---- */

static ssize_t read_in_manner(um_tls *tls, char *bytes, size_t most, unsigned manner) {
  switch (manner % 4) {
    case 0: return um_tls_read(tls, bytes, most, um_after(1000));
    case 1: return um_tls_read(tls, bytes, 1 + manner % 50, um_after(1000));
    case 2: return um_tls_read_exact(tls, bytes, 1 + manner % 300, um_after(1000));
    default: return um_tls_read_until(tls, bytes, most, "\n", 1, um_after(1000));
  }
}

static void write_pattern(um_tls *tls, size_t length, size_t *written) {
  char bytes[5000];
  peer_pattern(bytes, length, *written);
  ssize_t n = um_tls_write(tls, bytes, length, um_after(1000));
  if (n > 0) *written += (size_t)n;
}

static int converse(um_tls *tls, unsigned manner) {
  char bytes[5000];
  size_t written = 0;
  ssize_t n = 1;
  if (manner & 16) write_pattern(tls, 300, &written);
  for (int rounds = 0; n > 0 && rounds < 500; rounds++) {
    n = read_in_manner(tls, bytes, sizeof bytes, manner);
    if (n > 0 && manner & 32) write_pattern(tls, (size_t)n, &written);
    if (manner & 64 && rounds % 5 == 1) um_tls_key_update(tls, rounds & 2, um_after(1000));
  }
  if (n == 0) CHECK(SSL_get_shutdown(um_tls_ssl(tls)) & SSL_RECEIVED_SHUTDOWN);
  return (int)n;
}

static int live(void *argument) {
  run *r = argument;
  um_tls *tls;
  um_tls_options options = {.hostname = "localhost"};
  bool server = r->how->server;
  int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
  CHECK(fd >= 0);
  SSL_CTX *ctx = memory_peer_ctx(server, r->how->version, true);
  CHECK_EQ((server ? um_tls_server : um_tls_client)(&tls, fd, ctx, server ? NULL : &options), 0);
  r->attach(r->script, fd, r->arg);
  converse(tls, r->how->manner);
  if (r->how->manner & 128) um_tls_shutdown(tls, um_after(1000));
  um_tls_close(tls, um_after(1000));
  return 0;
}

void stream_run(const stream_case *how, void (*attach)(script *s, int fd, void *arg), void *arg) {
  run r = {.how = how, .attach = attach, .arg = arg};
  um_reactor_config config = {.buffer_count = 8, .buffer_size = 4096, .receive_limit = 8192,
                              .send_limit = 16384, .turn_bytes = 4096};
  start_randomness();
  um_reactor *reactor = scripted_reactor(&r.script, &config, NULL);
  CHECK_EQ(um_fiber_spawn(reactor, NULL, live, &r, NULL), 0);
  CHECK_EQ(um_reactor_run(reactor), 0);
  CHECK_EQ(metrics_of(reactor).fibers, 0);
  CHECK_EQ(metrics_of(reactor).buffers_used, 0);
  CHECK_EQ(script_owned(r.script), 0);
  CHECK_EQ(um_reactor_destroy(reactor), 0);
}
