/* fork(2) in every state of a connection: the child is told by every call and lets go of its
 * copy; the parent's connection goes on, to the last byte and a clean end. */
#include "support.h"

#include <bio_uring/observe.h>
#include <stdatomic.h>
#include <sys/wait.h>

SUITE(fork);

#define CHILD_WELL 42
#define HALF 50u
#define SEND_LIMIT 65536u
#define MUCH 150000u  /* more than socket buffers and the limit hold */
#define LITTLE 60000u /* less than the limit, more than the sockets' */

enum state { NEW, SHAKING, SHAKING_ON_A_WORKER, READING, WRITING, SHUTTING, CLOSING, STATES };

static const char *const waits[STATES] = {
  [SHAKING] = "recv", [SHAKING_ON_A_WORKER] = "handshake", [READING] = "recv",
  [WRITING] = "send", [SHUTTING] = "send", [CLOSING] = "send"};

typedef struct scene {
  enum state state;
  int version;
  bool leaves;      /* the child leaves through the loop instead of where it forked */
  bool aborts;      /* the child ends the stream that way */
  um_tls *tls;
  um_reactor *reactor;
  char bytes[2 * HALF];
  atomic_bool go;   /* until then the peer does not take or give what we wait for */
  atomic_bool working;
  pid_t child;
  peer peer;
} scene;

static bool sends(const scene *s) { return s->state >= WRITING; }

static size_t amount(const scene *s) {
  return s->state == WRITING ? MUCH : s->state == READING ? 10 : LITTLE;
}

/* ---- the peer ---- */

static void wait_for(atomic_bool *flag) {
  while (!atomic_load(flag)) usleep(1000);
}

static void converse(peer *p) {
  scene *s = p->argument;
  char bytes[2 * HALF];
  if (s->state <= SHAKING) wait_for(&s->go);
  peer_shake(p);
  pattern(bytes, sizeof bytes, 0);
  peer_write(p, bytes, HALF);
  if (s->state > SHAKING_ON_A_WORKER) wait_for(&s->go);
  peer_write(p, bytes + HALF, HALF);
  char more[16384];
  size_t done;
  while (SSL_read_ex(p->ssl, more, sizeof more, &done) == 1) {
    CHECK(is_pattern(more, done, p->count));
    p->count += done;
  }
  p->error = SSL_get_error(p->ssl, 0); /* ZERO_RETURN: close_notify */
  SSL_shutdown(p->ssl);
}

/* On a worker, for as long as the scene wants. */
static void dawdle(const SSL *ssl, int where, int value) {
  scene *s = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
  (void)where, (void)value;
  if (s->state != SHAKING_ON_A_WORKER || um_reactor_current()) return;
  atomic_store(&s->working, true);
  wait_for(&s->go);
}

/* ---- the child ---- */

#define WANT(call, result)                                                   \
  do {                                                                       \
    long long got = (call);                                                  \
    if (got == (result)) break;                                              \
    fprintf(stderr, "%d in the child: %lld: %s\n", s->state, got, #call);    \
    return 1;                                                                \
  } while (0)

static int every_call(scene *s) {
  um_tls *tls = s->tls;
  char byte = 0;
  void *leftover;
  size_t length;
  WANT(um_tls_handshake(tls, UM_FOREVER), UM_EFORKED);
  WANT(um_tls_read(tls, &byte, 1, UM_FOREVER), UM_EFORKED);
  WANT(um_tls_read_exact(tls, &byte, 1, UM_FOREVER), UM_EFORKED);
  WANT(um_tls_read_until(tls, &byte, 1, "\n", 1, UM_FOREVER), UM_EFORKED);
  WANT(um_tls_write(tls, "x", 1, UM_FOREVER), UM_EFORKED);
  WANT(um_tls_flush(tls, UM_FOREVER), UM_EFORKED);
  WANT(um_tls_key_update(tls, 1, UM_FOREVER), UM_EFORKED);
  WANT(um_tls_shutdown(tls, UM_FOREVER), UM_EFORKED);
  WANT(um_tls_unwrap(tls, &leftover, &length, UM_FOREVER), UM_EFORKED);
  return CHILD_WELL;
}

static int in_own_reactor(void *argument) { return every_call(argument); }

static int in_child(scene *s) {
  alarm(60);
  unsigned fds = open_fds();
  int result = every_call(s);
  if (result == CHILD_WELL) result = um_run(in_own_reactor, s);
  if (result != CHILD_WELL) return result;
  if (s->aborts) um_tls_abort(s->tls);
  else WANT(um_tls_close(s->tls, UM_FOREVER), UM_EFORKED);
  WANT(open_fds(), fds - 1);
  return CHILD_WELL;
}

/* ---- the parent ---- */

static void look(const um_fiber_info *f, void *argument) {
  const char **seen = argument;
  if (f->name && !strcmp(f->name, "user")) *seen = f->waits_for ? f->waits_for : "";
}

static bool is_there(scene *s) {
  const char *seen = "";
  if (s->state == NEW) return s->tls != NULL;
  CHECK_EQ(um_reactor_fibers(s->reactor, look, &seen), 0);
  if (strcmp(seen, waits[s->state])) return false;
  if (s->state == SHAKING_ON_A_WORKER) return atomic_load(&s->working);
  return s->state != READING || s->bytes[HALF - 1];
}

static int forker(void *argument) {
  scene *s = argument;
  while (!is_there(s)) CHECK_EQ(um_fiber_sleep(um_after(1)), 0);
  s->child = fork();
  CHECK(s->child >= 0);
  if (s->child == 0) {
    int result = in_child(s);
    if (s->leaves && result == CHILD_WELL) return 0;
    _exit(result);
  }
  int status;
  CHECK_EQ(waitpid(s->child, &status, 0), s->child);
  CHECK_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), CHILD_WELL);
  atomic_store(&s->go, true);
  return 0;
}

static void write_all(scene *s) {
  size_t length = amount(s);
  char *bytes = malloc(length);
  CHECK(bytes);
  pattern(bytes, length, 0);
  CHECK_EQ(um_tls_write(s->tls, bytes, length, UM_FOREVER), length);
  free(bytes);
}

static void read_all(scene *s) {
  CHECK_EQ(um_tls_read_exact(s->tls, s->bytes, sizeof s->bytes, UM_FOREVER), sizeof s->bytes);
  CHECK(is_pattern(s->bytes, sizeof s->bytes, 0));
}

static int user(void *argument) {
  scene *s = argument;
  if (s->state == NEW) while (!atomic_load(&s->go)) CHECK_EQ(um_fiber_sleep(um_after(1)), 0);
  CHECK_EQ(um_tls_handshake(s->tls, UM_FOREVER), 0);
  if (!sends(s)) read_all(s);
  write_all(s);
  if (s->state == SHUTTING) CHECK_EQ(um_tls_shutdown(s->tls, UM_FOREVER), 0);
  if (sends(s) && s->state != CLOSING) read_all(s);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  return 0;
}

static int play(void *argument) {
  scene *s = argument;
  int fds[2];
  um_fiber *fibers[2];
  um_fiber_options named = {.name = "user"};
  um_tls_options options = {.hostname = "localhost"};
  SSL_CTX *ours = s->state == SHAKING_ON_A_WORKER ? um_server_ctx("server", s->version)
                                                  : um_client_ctx(s->version);
  SSL_CTX *theirs = s->state == SHAKING_ON_A_WORKER ? plain_client_ctx(s->version)
                                                    : plain_server_ctx("server", s->version);
  bool server = s->state == SHAKING_ON_A_WORKER;
  SSL_CTX_set_app_data(ours, s);
  SSL_CTX_set_info_callback(ours, dawdle);
  if (server) options.flags = UM_TLS_OFFLOAD | UM_TLS_THREADSAFE_CALLBACKS;
  tcp_pair(fds);
  if (sends(s)) set_buffers(fds[0], 8192), set_buffers(fds[1], 8192);
  s->reactor = um_reactor_current();
  peer_start(&s->peer, fds[1], theirs, !server, converse, s);
  CHECK_EQ((server ? um_tls_server : um_tls_client)(&s->tls, fds[0], ours, &options), 0);
  CHECK_EQ(um_fiber_spawn(NULL, &fibers[0], user, s, &named), 0);
  fibers[1] = spawn(forker, s);
  join(fibers[1]);
  join(fibers[0]);
  peer_join(&s->peer);
  CHECK_EQ(s->peer.count, amount(s));
  CHECK_EQ(s->peer.error, SSL_ERROR_ZERO_RETURN);
  SSL_CTX_free(ours);
  SSL_CTX_free(theirs);
  return 0;
}

static void run_scene(scene *s) {
  um_reactor *r;
  CHECK_EQ(um_reactor_create(&r, &(um_reactor_config){.send_limit = SEND_LIMIT}, NULL), 0);
  CHECK_EQ(um_fiber_spawn(r, NULL, play, s, NULL), 0);
  s->child = -1;
  int result = um_reactor_run(r);
  if (s->child == 0) {
    int ended = um_reactor_destroy(r);
    _exit(result == UM_EFORKED && ended == 0 ? CHILD_WELL : 1);
  }
  CHECK_EQ(result, 0);
  CHECK_EQ(um_reactor_destroy(r), 0);
}

static void in_both_ways(enum state state) {
  for (int i = 0; i < 4; i++) {
    scene s = {.state = state, .version = i % 2 ? TLS1_2_VERSION : TLS1_3_VERSION,
               .leaves = i / 2, .aborts = i == 0 || i == 3};
    unsigned fds = open_fds();
    run_scene(&s);
    CHECK_EQ(open_fds(), fds);
  }
}

Test(fork, before_the_handshake) { in_both_ways(NEW); }
Test(fork, in_the_handshake) { in_both_ways(SHAKING); }
Test(fork, while_a_worker_computes_the_handshake) { in_both_ways(SHAKING_ON_A_WORKER); }
Test(fork, while_reading) { in_both_ways(READING); }
Test(fork, while_writing) { in_both_ways(WRITING); }
Test(fork, in_shutdown) { in_both_ways(SHUTTING); }
Test(fork, in_close) { in_both_ways(CLOSING); }

/* ---- where the child goes on in the library ---- */

typedef struct inner {
  pid_t child;
  int result, calls; /* of the handler in the child; of it in the parent */
} inner;

static void forks_once(const SSL *ssl, int where, int value) {
  inner *in = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
  (void)where, (void)value;
  if (in->child < 0) in->child = fork();
}

static void collect(const inner *in) {
  int status;
  CHECK_EQ(waitpid(in->child, &status, 0), in->child);
  CHECK_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), CHILD_WELL);
}

/* Exits in the child, which has to come out of the loop, too. */
static void run_inner(inner *in, fiber_fn fn) {
  um_reactor *r;
  CHECK_EQ(um_reactor_create(&r, NULL, NULL), 0);
  CHECK_EQ(um_fiber_spawn(r, NULL, fn, in, NULL), 0);
  int result = um_reactor_run(r);
  if (in->child == 0) _exit(result == UM_EFORKED ? CHILD_WELL : 1);
  CHECK_EQ(result, 0);
  CHECK_EQ(um_reactor_destroy(r), 0);
}

static int shakes_with_forks(void *argument) {
  inner *in = argument;
  int fds[2];
  peer p;
  um_tls *tls;
  um_tls_options options = {.hostname = "localhost"};
  SSL_CTX *ours = um_client_ctx(0), *theirs = plain_server_ctx("server", 0);
  SSL_CTX_set_app_data(ours, in);
  SSL_CTX_set_info_callback(ours, forks_once);
  tcp_pair(fds);
  peer_start(&p, fds[1], theirs, true, peer_echo, NULL);
  CHECK_EQ(um_tls_client(&tls, fds[0], ours, &options), 0);
  int result = um_tls_handshake(tls, UM_FOREVER);
  if (in->child == 0) {
    alarm(60);
    if (result != UM_EFORKED || um_tls_close(tls, UM_FOREVER) != UM_EFORKED) _exit(2);
    return 0;
  }
  collect(in);
  CHECK_EQ(result, 0);
  CHECK_EQ(um_tls_close(tls, UM_FOREVER), 0);
  peer_join(&p);
  SSL_CTX_free(ours);
  SSL_CTX_free(theirs);
  return 0;
}

Test(fork, in_a_callback_of_openssl) {
  inner in = {.child = -1};
  run_inner(&in, shakes_with_forks);
}

/* Echoes; at its first call it forks, and returns in the child as well. */
static int forking_handler(um_tls *tls, void **data, void *argument) {
  inner *in = argument;
  char byte;
  (void)data;
  in->calls++;
  if (in->child < 0 && (in->child = fork()) == 0) {
    alarm(60);
    return in->result;
  }
  ssize_t n = um_tls_read(tls, &byte, 1, UM_FOREVER);
  if (n <= 0) return (int)n;
  CHECK_EQ(um_tls_write(tls, &byte, 1, UM_FOREVER), 1);
  return UM_TLS_PARK;
}

static void two_echoes(peer *p) {
  peer_shake(p);
  for (char byte = 'a', back; byte < 'c'; byte++) {
    peer_write(p, &byte, 1);
    peer_read(p, &back, 1);
    CHECK_EQ(back, byte);
  }
  SSL_shutdown(p->ssl);
  CHECK_EQ(peer_drain(p), 0);
}

typedef struct forking_server {
  um_tls_server_config config;
  um_tls_listener *listener;
  SSL_CTX *theirs;
  int fd;
  char port[8];
} forking_server;

static void begin_serving(forking_server *s, inner *in) {
  s->theirs = plain_client_ctx(0);
  s->config = (um_tls_server_config){.ctx = um_server_ctx("server", 0), .handler = forking_handler,
                                     .arg = in};
  s->fd = listener(s->port);
  CHECK_EQ(um_tls_serve(&s->listener, s->fd, &s->config), 0);
}

static void end_serving(forking_server *s) {
  CHECK_EQ(um_tls_listener_stop(s->listener, um_after(5000)), 0);
  close(s->fd);
  SSL_CTX_free(s->config.ctx);
  SSL_CTX_free(s->theirs);
}

static int serves_with_forks(void *argument) {
  inner *in = argument;
  forking_server s;
  peer p;
  begin_serving(&s, in);
  peer_start(&p, dial(s.port), s.theirs, false, two_echoes, NULL);
  peer_join(&p);
  CHECK_EQ(in->calls, 2);
  collect(in);
  end_serving(&s);
  return 0;
}

Test(fork, in_a_handler) {
  static const int results[] = {UM_TLS_PARK, UM_TLS_CLOSE, -EIO};
  for (int i = 0; i < 3; i++) {
    inner in = {.child = -1, .result = results[i]};
    run_inner(&in, serves_with_forks);
  }
}

/* ---- while other handshakes wait for their turn ---- */

#define WAITING 8

static int forks_at_hello(SSL *ssl, int *alert, void *argument) {
  inner *in = argument;
  (void)ssl, (void)alert;
  if (in->child == 0) _exit(3); /* another one, which is the parent's */
  if (in->child < 0 && (in->child = fork()) == 0) alarm(60);
  return SSL_CLIENT_HELLO_SUCCESS;
}

static int shakes_many_with_forks(void *argument) {
  inner *in = argument;
  forking_server s;
  int fds[WAITING];
  peer peers[WAITING];
  um_tls_listener_stats stats = {0};
  begin_serving(&s, in);
  SSL_CTX_set_client_hello_cb(s.config.ctx, forks_at_hello, in);
  for (int i = 0; i < WAITING; i++) fds[i] = dial(s.port);
  for (; stats.accepted < WAITING; um_tls_listener_stats_get(s.listener, &stats)) um_fiber_yield();
  for (int i = 0; i < WAITING; i++) peer_start(&peers[i], fds[i], s.theirs, false, two_echoes, NULL);
  usleep(50000); /* nothing else runs: all say hello, and the next tick may be theirs */
  for (int i = 0; i < WAITING; i++) peer_join(&peers[i]);
  CHECK_EQ(in->calls, 2 * WAITING);
  collect(in);
  end_serving(&s);
  return 0;
}

Test(fork, while_handshakes_wait) {
  inner in = {.child = -1};
  run_inner(&in, shakes_many_with_forks);
}
