#include "harness.h"

#include "reactor/alloc.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/wait.h>

#if defined(__has_include)
#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#endif
#endif
#ifndef RUNNING_ON_VALGRIND
#define RUNNING_ON_VALGRIND 0
#define VALGRIND_STACK_REGISTER(bottom, top) 0
#define VALGRIND_STACK_DEREGISTER(id) ((void)(id))
#endif

bool under_valgrind(void) { return RUNNING_ON_VALGRIND; }

/* The name by which valgrind knows the stack is kept before it. */
#define STACK_HEAD 64

void *stack_new(size_t size) {
  char *memory = malloc(STACK_HEAD + size);
  CHECK(memory != NULL);
  char *bottom = memory + STACK_HEAD;
  *(unsigned *)memory = (unsigned)VALGRIND_STACK_REGISTER(bottom, bottom + size);
  return bottom;
}

void stack_free(void *stack) {
  if (!stack) return;
  char *memory = (char *)stack - STACK_HEAD;
  VALGRIND_STACK_DEREGISTER(*(unsigned *)memory);
  free(memory);
}

int scaled(int count) {
  bool slow = UNDER_ASAN || UNDER_TSAN || under_valgrind();
  return slow && count >= 10 ? count / 10 : count;
}

/* ---- checks ---- */

_Noreturn void check_failed(const char *file, int line, const char *what) {
  fprintf(stderr, "%s:%d: %s\n", file, line, what);
  abort();
}

_Noreturn void check_differs(const char *file, int line, const char *what, long long got,
                             long long wanted) {
  char words[128];
  snprintf(words, sizeof words, "%s", um_strerror((int)got));
  fprintf(stderr, "%s:%d: %s: %lld (%s), not %lld (%s)\n", file, line, what, got, words, wanted,
          um_strerror((int)wanted));
  abort();
}

_Noreturn void check_lacks(const char *file, int line, const char *text, const char *part) {
  fprintf(stderr, "%s:%d: \"%s\" does not say \"%s\"\n", file, line, text, part);
  abort();
}

#ifndef PLAIN_RUNNER
#if UNDER_ASAN
int __lsan_do_recoverable_leak_check(void);
void no_leaks(void) {
  if (__lsan_do_recoverable_leak_check()) abort();
}
#else
void no_leaks(void) {}
#endif
#endif

/* ---- a reactor around a fiber ---- */

um_reactor *reactor_new(const um_reactor_config *config) {
  um_reactor *r;
  um_error error;
  if (um_reactor_create(&r, config, &error) < 0) {
    fprintf(stderr, "%s\n", error.message);
    abort();
  }
  return r;
}

um_metrics metrics_of(const um_reactor *reactor) {
  um_metrics m;
  um_reactor_metrics(reactor, &m);
  return m;
}

bool on_uring(void) {
  um_reactor *r = reactor_new(NULL);
  bool uring = !strcmp(um_reactor_backend(r), "uring");
  um_reactor_destroy(r);
  return uring;
}

/* What the reactor itself keeps with the kernel: the read that other threads' wake-ups
 * complete, and a poller's timeout. */
static bool only_its_own(const um_metrics *m) { return m->pending <= 2 && m->unsubmitted <= 1; }

void reactor_finish(um_reactor *reactor) {
  CHECK_EQ(um_reactor_run(reactor), 0);
  um_metrics m = metrics_of(reactor);
  CHECK_EQ(m.fibers, 0);
  CHECK(only_its_own(&m));
  CHECK_EQ(m.buffers_used, 0);
  CHECK_EQ(um_reactor_destroy(reactor), 0);
}

typedef struct main_call {
  um_fiber_fn main;
  void *argument;
  int result;
} main_call;

static int call_main(void *argument) {
  main_call *call = argument;
  call->result = call->main(call->argument);
  return 0;
}

int run_fibers_with(const um_reactor_config *config, um_fiber_fn main, void *argument) {
  main_call call = {main, argument, 0};
  um_reactor *r = reactor_new(config);
  CHECK_EQ(um_fiber_spawn(r, NULL, call_main, &call, NULL), 0);
  reactor_finish(r);
  return call.result;
}

int run_fibers(um_fiber_fn main, void *argument) { return run_fibers_with(NULL, main, argument); }

um_fiber *spawn(um_fiber_fn fn, void *argument) {
  um_fiber *fiber;
  CHECK_EQ(um_fiber_spawn(NULL, &fiber, fn, argument, NULL), 0);
  return fiber;
}

int join(um_fiber *fiber) {
  int result;
  CHECK_EQ(um_fiber_join(fiber, &result, UM_FOREVER), 0);
  return result;
}

void yield_times(int count) {
  while (count-- > 0) CHECK_EQ(um_fiber_yield(), 0);
}

/* ---- sockets and descriptors ---- */

int listener(uint16_t *port, int backlog) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(fd >= 0);
  CHECK_EQ(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
  CHECK_EQ(listen(fd, backlog), 0);
  CHECK_EQ(getsockname(fd, (struct sockaddr *)&address, &length), 0);
  *port = ntohs(address.sin_port);
  return fd;
}

int dial(uint16_t port, int *fd) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                .sin_port = htons(port)};
  *fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (*fd < 0) return -errno;
  return connect(*fd, (struct sockaddr *)&address, sizeof address) < 0 ? -errno : 0;
}

void tcp_pair(int fds[2]) {
  uint16_t port;
  int listen_fd = listener(&port, 1);
  CHECK_EQ(dial(port, &fds[0]), 0);
  fds[1] = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
  CHECK(fds[1] >= 0);
  close(listen_fd);
}

void local_pair(int fds[2]) {
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
}

void set_nonblocking(int fd) { CHECK_EQ(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK), 0); }

void set_small_buffers(int fd, int bytes) {
  CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes), 0);
  CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes), 0);
}

unsigned open_fds(void) {
  unsigned count = 0;
  DIR *folder = opendir("/proc/self/fd");
  CHECK(folder != NULL);
  while (readdir(folder)) count++;
  closedir(folder);
  return count;
}

/* ---- child processes ---- */

int in_child(int (*fn)(void *), void *argument) {
  int status;
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    alarm(30);
    _exit(fn(argument));
  }
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* ---- failing allocations ---- */

static _Thread_local struct {
  bool active, sticky, failed;
  unsigned left;
} allocations;

static int fails(void) {
  if (!allocations.active) return 0;
  if (allocations.left) {
    allocations.left--;
    return 0;
  }
  if (allocations.failed && !allocations.sticky) return 0;
  return allocations.failed = true;
}

static void fail_at(unsigned n, bool sticky) {
  allocations.active = true;
  allocations.sticky = sticky;
  allocations.failed = false;
  allocations.left = n;
  um__alloc_fails = fails;
}

void fail_allocation(unsigned n) { fail_at(n, false); }
void fail_allocations_from(unsigned n) { fail_at(n, true); }

bool allocation_failed(void) {
  allocations.active = false;
  return allocations.failed;
}
