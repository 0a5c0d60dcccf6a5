#include "support.h"

#include "reactor/alloc.h"
#include "reactor/reactor.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>

/* ---- checks ---- */

_Noreturn void check_failed(const char *file, int line, const char *what, long long got,
                            long long wanted, bool values) {
  if (!values) fprintf(stderr, "%s:%d: %s\n", file, line, what);
  else
    fprintf(stderr, "%s:%d: %s: %lld (%s), not %lld (%s)\n", file, line, what, got,
            um_strerror((int)got), wanted, um_strerror((int)wanted));
  abort();
}

_Noreturn void check_lacks(const char *file, int line, const char *text, const char *part) {
  fprintf(stderr, "%s:%d: \"%s\" does not say \"%s\"\n", file, line, text, part);
  abort();
}

#if defined(__SANITIZE_ADDRESS__)
int __lsan_do_recoverable_leak_check(void);
const char *__lsan_default_suppressions(void);

/* Criterion's runner is not ours to judge. */
const char *__lsan_default_suppressions(void) { return "leak:libcriterion\n"; }

void no_leaks(void) {
  if (__lsan_do_recoverable_leak_check()) abort();
}
#else
void no_leaks(void) {}
#endif

/* ---- a reactor around a fiber ---- */

typedef struct main_call {
  fiber_fn main;
  void *argument;
  int result;
  uint64_t pending; /* the reactor's own operations */
} main_call;

static int call_main(void *argument) {
  main_call *call = argument;
  um_metrics m;
  um_reactor_metrics(um_reactor_current(), &m);
  call->pending = m.pending;
  call->result = call->main(call->argument);
  return 0;
}

int run_fibers_with(const um_reactor_config *config, fiber_fn main, void *argument) {
  um_reactor *r;
  um_error error;
  um_metrics m;
  main_call call = {main, argument, 0, 0};
  if (um_reactor_create(&r, config, &error) < 0) {
    fprintf(stderr, "%s\n", error.message);
    abort();
  }
  CHECK_EQ(um_fiber_spawn(r, NULL, call_main, &call, NULL), 0);
  CHECK_EQ(um_reactor_run(r), 0);
  um_reactor_metrics(r, &m);
  CHECK_EQ(m.fibers, 0);
  CHECK_EQ(m.pending, call.pending);
  CHECK_EQ(m.buffers_used, 0);
  CHECK_EQ(um_reactor_destroy(r), 0);
  return call.result;
}

int run_fibers(fiber_fn main, void *argument) { return run_fibers_with(NULL, main, argument); }

um_fiber *spawn(fiber_fn fn, void *argument) {
  um_fiber *fiber;
  CHECK_EQ(um_fiber_spawn(NULL, &fiber, fn, argument, NULL), 0);
  return fiber;
}

int join(um_fiber *fiber) {
  int result;
  CHECK_EQ(um_fiber_join(fiber, &result, UM_FOREVER), 0);
  return result;
}

/* ---- sockets ---- */

int listener(char port[8]) {
  um_error error;
  struct sockaddr_in address;
  socklen_t length = sizeof address;
  int fd = um_tcp_listen("127.0.0.1:0", 0, &error);
  CHECK(fd >= 0);
  CHECK_EQ(getsockname(fd, (struct sockaddr *)&address, &length), 0);
  snprintf(port, 8, "%u", ntohs(address.sin_port));
  return fd;
}

int dial(const char *port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(fd >= 0);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  CHECK_EQ(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
  return fd;
}

void tcp_pair(int fds[2]) {
  char port[8];
  int at = listener(port), one = 1;
  fds[0] = dial(port);
  fds[1] = accept4(at, NULL, NULL, SOCK_CLOEXEC);
  CHECK(fds[1] >= 0);
  setsockopt(fds[1], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  close(at);
}

void local_pair(int fds[2]) {
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
}

unsigned open_fds(void) {
  DIR *folder = opendir("/proc/self/fd");
  unsigned count = 0;
  CHECK(folder);
  while (readdir(folder)) count++;
  closedir(folder);
  return count - 3; /* ".", ".." and the folder itself */
}

void set_buffers(int fd, int bytes) {
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
  setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
}

/* ---- contexts ---- */

const char *cert(const char *name) {
  static _Thread_local char paths[4][512];
  static _Thread_local unsigned next;
  char *path = paths[next++ % 4];
  const char *folder = getenv("UM_TEST_CERTS");
  snprintf(path, sizeof paths[0], "%s/%s", folder ? folder : "build/certs", name);
  return path;
}

static SSL_CTX *only(SSL_CTX *ctx, int version) {
  CHECK(ctx);
  if (version) {
    SSL_CTX_set_min_proto_version(ctx, version);
    SSL_CTX_set_max_proto_version(ctx, version);
  }
  return ctx;
}

static const char *pem(const char *name, const char *kind) {
  char file[64];
  snprintf(file, sizeof file, "%s.%s", name, kind);
  return cert(file);
}

SSL_CTX *um_server_ctx(const char *name, int version) {
  SSL_CTX *ctx;
  um_error error;
  if (um_tls_ctx_server(&ctx, pem(name, "pem"), pem(name, "key"), &error) < 0) {
    fprintf(stderr, "%s\n", error.message);
    abort();
  }
  return only(ctx, version);
}

SSL_CTX *um_client_ctx(int version) {
  SSL_CTX *ctx;
  CHECK_EQ(um_tls_ctx_client(&ctx, cert("ca.pem"), NULL), 0);
  return only(ctx, version);
}

SSL_CTX *plain_server_ctx(const char *name, int version) {
  SSL_CTX *ctx = only(SSL_CTX_new(TLS_server_method()), version);
  CHECK_EQ(SSL_CTX_use_certificate_chain_file(ctx, pem(name, "pem")), 1);
  CHECK_EQ(SSL_CTX_use_PrivateKey_file(ctx, pem(name, "key"), SSL_FILETYPE_PEM), 1);
  return ctx;
}

SSL_CTX *plain_client_ctx(int version) {
  SSL_CTX *ctx = only(SSL_CTX_new(TLS_client_method()), version);
  CHECK_EQ(SSL_CTX_load_verify_file(ctx, cert("ca.pem")), 1);
  return ctx;
}

/* ---- the plain peer ---- */

static void *peer_run(void *argument) {
  peer *p = argument;
  sigset_t pipe;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe, NULL);
  p->script(p);
  SSL_free(p->ssl);
  if (!p->keeps_fd) close(p->fd);
  ERR_clear_error();
  p->done = true;
  return NULL;
}

void peer_start(peer *p, int fd, SSL_CTX *ctx, bool server, void (*script)(peer *), void *argument) {
  *p = (peer){.fd = fd, .argument = argument, .script = script};
  if (ctx) {
    CHECK(p->ssl = SSL_new(ctx));
    SSL_set_fd(p->ssl, fd);
    if (server) SSL_set_accept_state(p->ssl);
    else SSL_set_connect_state(p->ssl);
  }
  CHECK_EQ(pthread_create(&p->thread, NULL, peer_run, p), 0);
}

void peer_join(peer *p) {
  while (um_fiber_self() && !p->done) um_fiber_sleep(um_after(1));
  CHECK_EQ(pthread_join(p->thread, NULL), 0);
}

static void explain(peer *p, int result) {
  fprintf(stderr, "peer: SSL_get_error %d, errno %d, ", SSL_get_error(p->ssl, result), errno);
  ERR_print_errors_fp(stderr);
}

void peer_shake(peer *p) {
  int result = SSL_do_handshake(p->ssl);
  if (result != 1) explain(p, result);
  CHECK_EQ(result, 1);
}

void peer_write(peer *p, const void *bytes, size_t length) {
  size_t done;
  int result = length ? SSL_write_ex(p->ssl, bytes, length, &done) : 1;
  if (result != 1) explain(p, result);
  CHECK_EQ(result, 1);
}

void peer_read(peer *p, void *bytes, size_t length) {
  size_t done;
  for (size_t have = 0; have < length; have += done) {
    int result = SSL_read_ex(p->ssl, (char *)bytes + have, length - have, &done);
    if (result != 1) explain(p, result);
    CHECK_EQ(result, 1);
  }
}

static void check_clean_end(peer *p, int result) {
  int error = SSL_get_error(p->ssl, result);
  if (error != SSL_ERROR_ZERO_RETURN) explain(p, result);
  CHECK_EQ(error, SSL_ERROR_ZERO_RETURN);
}

size_t peer_drain(peer *p) {
  char bytes[16384];
  size_t done, total = 0;
  int result;
  while ((result = SSL_read_ex(p->ssl, bytes, sizeof bytes, &done)) == 1) total += done;
  check_clean_end(p, result);
  return total;
}

void peer_echo(peer *p) {
  char bytes[16384];
  size_t done;
  int result;
  peer_shake(p);
  while ((result = SSL_read_ex(p->ssl, bytes, sizeof bytes, &done)) == 1) {
    p->count += done;
    peer_write(p, bytes, done);
  }
  check_clean_end(p, result);
  SSL_shutdown(p->ssl);
}

void peer_sink_pattern(peer *p) {
  char bytes[16384];
  size_t done;
  int result;
  peer_shake(p);
  while ((result = SSL_read_ex(p->ssl, bytes, sizeof bytes, &done)) == 1) {
    CHECK(is_pattern(bytes, done, p->count));
    p->count += done;
  }
  check_clean_end(p, result);
  SSL_shutdown(p->ssl);
}

void peer_expects_failure(peer *p) {
  p->result = SSL_do_handshake(p->ssl);
  if (p->result == 1) { /* TLS 1.3: the server's verdict comes after the client's handshake */
    char byte;
    p->result = SSL_read(p->ssl, &byte, 1);
  }
  p->error = ERR_GET_REASON(ERR_peek_last_error());
}

/* ---- bytes that say where they belong ---- */

static inline uint8_t pattern_at(uint64_t offset) {
  return (uint8_t)((offset * 0x9E3779B97F4A7C15u) >> 56);
}

void pattern(void *bytes, size_t length, uint64_t offset) {
  for (size_t i = 0; i < length; i++) ((uint8_t *)bytes)[i] = pattern_at(offset + i);
}

bool is_pattern(const void *bytes, size_t length, uint64_t offset) {
  for (size_t i = 0; i < length; i++)
    if (((const uint8_t *)bytes)[i] != pattern_at(offset + i)) return false;
  return true;
}

/* ---- striking a fiber at its n-th wait ---- */

static struct {
  um_task *victim;
  enum strike how;
  unsigned at, waits;
  bool struck;
  int (*park)(um_host *, um_task *);
} strikes;

static void strike(um_task *task) {
  if (strikes.how == STRIKE_CANCEL) {
    strikes.struck = true;
    um_task_cancel(task);
  } else if (!task->shield && task->timer.deadline != UM_FOREVER) {
    strikes.struck = true;
    um__task_wake(task, -ETIMEDOUT); /* as its timer would */
  } else {
    strikes.at++;
  }
}

static int counting_park(um_host *host, um_task *task) {
  if (task == strikes.victim && task->state == UM_TASK_PARKED && strikes.waits++ == strikes.at)
    strike(task);
  return strikes.park(host, task);
}

/* The library's fibers share one host: it is put in between. */
void strike_me(enum strike how, unsigned at) {
  um_task *task = um_task_current();
  CHECK(task);
  if (!strikes.park) {
    strikes.park = task->host->park;
    task->host->park = counting_park;
  }
  strikes.victim = task;
  strikes.how = how;
  strikes.at = at;
  strikes.waits = 0;
  strikes.struck = false;
}

bool strike_end(void) {
  strikes.victim = NULL;
  return strikes.struck;
}

int strike_code(enum strike how) { return how == STRIKE_CANCEL ? -ECANCELED : -ETIMEDOUT; }

/* ---- failing allocations ---- */

static unsigned allocations_left;
static bool has_failed;

static int fails(void) {
  if (has_failed || allocations_left-- > 0) return 0;
  return has_failed = true;
}

void fail_allocation(unsigned n) {
  allocations_left = n;
  has_failed = false;
  um__alloc_fails = fails;
}

bool allocation_failed(void) {
  um__alloc_fails = NULL;
  return has_failed;
}
