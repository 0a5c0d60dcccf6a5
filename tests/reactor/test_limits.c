/* At the limits: full queues, no buffers, no locked memory, no io_uring, no stack left. */
#include "harness.h"

#include "reactor/conn.h"

#include <bio_uring/io.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

SUITE(limits);

/* ---- a small submission queue, a small completion queue ---- */

typedef struct crowd {
  int fds[2];
  um_event go;
} crowd;

static int sleeps_a_little(void *argument) {
  crowd *c = argument;
  char byte;
  CHECK_EQ(um_event_wait(&c->go, UM_FOREVER), 0);
  CHECK_EQ(um_poll(c->fds[1], POLLOUT, UM_FOREVER), POLLOUT); /* at once */
  CHECK_EQ(um_recv(c->fds[0], &byte, 1, 0, um_after(2)), -ETIMEDOUT); /* and cancelled */
  return 0;
}

static int crowd_main(void *argument) {
  crowd *c = argument;
  um_group group = {0};
  um_fiber_options small = {.stack_size = 16384};
  int count = UNDER_ASAN ? 500 : 3000;
  if (UNDER_ASAN) small.stack_size = 65536;
  um_event_init(&c->go);
  for (int i = 0; i < count; i++) CHECK_EQ(um_group_spawn(&group, sleeps_a_little, c, &small), 0);
  CHECK_EQ(um_fiber_yield(), 0);
  um_event_set(&c->go);
  CHECK_EQ(um_group_join(&group, UM_FOREVER), 0);
  return 0;
}

TEST(limits, a_submission_queue_of_eight_for_thousands_of_operations) {
  if (!on_uring()) SKIP("the epoll backend has no submission queue");
  crowd c;
  local_pair(c.fds);
  um_reactor *r = reactor_new(&(um_reactor_config){.entries = 8, .cq_entries = 65536, .max_switches = 65536});
  CHECK_EQ(um_fiber_spawn(r, NULL, crowd_main, &c, NULL), 0);
  CHECK_EQ(um_reactor_run(r), 0);
  um_metrics m = metrics_of(r);
  CHECK(m.sq_full > 100);
  reactor_finish(r);
  close(c.fds[0]);
  close(c.fds[1]);
}

TEST(limits, a_completion_queue_that_overflows) {
  if (!on_uring()) SKIP("the epoll backend has no completion queue");
  crowd c;
  local_pair(c.fds);
  um_reactor *r = reactor_new(&(um_reactor_config){.entries = 8, .cq_entries = 16, .max_switches = 65536});
  CHECK_EQ(um_fiber_spawn(r, NULL, crowd_main, &c, NULL), 0);
  CHECK_EQ(um_reactor_run(r), 0);
  um_metrics m = metrics_of(r);
  CHECK(m.cq_overflows > 0);
  CHECK_EQ(m.stale, 0);
  reactor_finish(r);
  close(c.fds[0]);
  close(c.fds[1]);
}

TEST(limits, with_a_polling_kernel_thread) {
  if (!on_uring()) SKIP("the epoll backend has no SQPOLL");
  crowd c;
  um_reactor *r;
  local_pair(c.fds);
  if (um_reactor_create(&r, &(um_reactor_config){.entries = 64, .flags = UM_REACTOR_SQPOLL}, NULL) < 0)
    SKIP("no SQPOLL here");
  CHECK_EQ(um_fiber_spawn(r, NULL, crowd_main, &c, NULL), 0);
  CHECK_EQ(um_reactor_run(r), 0);
  CHECK_EQ(um_reactor_destroy(r), 0);
  close(c.fds[0]);
  close(c.fds[1]);
}

/* ---- starvation of provided buffers is backpressure ---- */

#define TALKERS 40
#define EACH (200 * 1000)

typedef struct talker {
  int fds[2];
  size_t got;
} talker;

static int talks(void *argument) {
  talker *t = argument;
  unsigned char *bytes = malloc(EACH);
  CHECK(bytes != NULL);
  for (size_t i = 0; i < EACH; i++) bytes[i] = (unsigned char)(i * 13 + (i >> 8));
  CHECK_EQ(um_send(t->fds[0], bytes, EACH, 0, UM_FOREVER), EACH);
  free(bytes);
  return um_shutdown(t->fds[0], SHUT_WR, UM_FOREVER);
}

static int listens(void *argument) {
  talker *t = argument;
  um_conn conn;
  unsigned char bytes[5000];
  um__conn_init(&conn, t->fds[1]);
  um__conn_attach(&conn, um_reactor_current());
  for (int round = 0;; round++) {
    CHECK_EQ(um__conn_wait_readable(&conn, UM_FOREVER), 0);
    if (round % 3 == 0) CHECK_EQ(um_fiber_yield(), 0); /* unread meanwhile */
    size_t n = um__conn_take(&conn, bytes, sizeof bytes);
    for (size_t i = 0; i < n; i++)
      CHECK_EQ(bytes[i], (unsigned char)((t->got + i) * 13 + ((t->got + i) >> 8)));
    t->got += n;
    if (!n && conn.received_end) break;
  }
  CHECK_EQ(conn.received_end, 1);
  return um__conn_close(&conn, UM_FOREVER);
}

static int starving(void *argument) {
  talker talkers[TALKERS];
  um_group group = {0};
  (void)argument;
  for (int i = 0; i < TALKERS; i++) {
    talkers[i].got = 0;
    local_pair(talkers[i].fds);
    CHECK_EQ(um_group_spawn(&group, listens, &talkers[i], NULL), 0);
    CHECK_EQ(um_group_spawn(&group, talks, &talkers[i], NULL), 0);
  }
  CHECK_EQ(um_group_join(&group, UM_FOREVER), 0);
  for (int i = 0; i < TALKERS; i++) {
    CHECK_EQ(talkers[i].got, EACH);
    close(talkers[i].fds[0]);
    close(talkers[i].fds[1]);
  }
  return metrics_of(um_reactor_current()).enobufs > 0;
}

TEST(limits, four_buffers_for_forty_connections_lose_nothing) {
  int starved = run_fibers_with(&(um_reactor_config){.buffer_count = 4, .buffer_size = 4096}, starving, NULL);
  CHECK(starved);
  run_fibers(starving, NULL); /* and with plenty */
}

/* ---- locked memory ---- */

/* Root is not limited: the child becomes somebody else. */
static bool limit_locked_memory(rlim_t bytes) {
  struct rlimit limit = {bytes, bytes};
  if (setrlimit(RLIMIT_MEMLOCK, &limit) < 0) return false;
  return getuid() != 0 || setresuid(61234, 61234, 61234) == 0;
}

static int little_locked_memory(void *argument) {
  um_reactor *r;
  um_error error;
  if (!limit_locked_memory(*(rlim_t *)argument)) return 77;
  um_reactor_config config = {.zerocopy_threshold = 4096, .backend = "uring"};
  if (um_reactor_create(&r, &config, &error) < 0) {
    return strstr(error.message, "locked-memory") ? 43 : 1;
  }
  um_metrics m;
  um_reactor_metrics(r, &m);
  if (m.unregistered != 1) return 2;
  return um_reactor_destroy(r) == 0 ? 42 : 3;
}

TEST(limits, without_locked_memory_it_does_without_registration) {
  if (!on_uring()) SKIP("the epoll backend locks no memory");
  rlim_t tiny = 4096, little = 2 << 20;
  int result = in_child(little_locked_memory, &tiny);
  if (result == 77) SKIP("cannot lower the limit here");
  CHECK(result == 42 || result == 43); /* kernels differ in whether rings count */
  CHECK_EQ(in_child(little_locked_memory, &little), 42);
}

/* The kernel gives a ring's memory back later than it is closed. */
static int one_after_the_other(void *argument) {
  um_reactor *r;
  um_error error;
  (void)argument;
  if (!limit_locked_memory(1 << 20)) return 77;
  for (int i = 0; i < 200; i++) {
    if (um_reactor_create(&r, &(um_reactor_config){.backend = "uring"}, &error) < 0) {
      fprintf(stderr, "number %d: %s\n", i, error.message);
      return 1;
    }
    if (um_reactor_destroy(r) < 0) return 2;
  }
  return 42;
}

TEST(limits, rings_one_after_the_other_within_a_low_limit) {
  if (!on_uring()) SKIP("the epoll backend locks no memory");
  if (getuid()) SKIP("only root can become a user whose other processes lock nothing");
  int result = in_child(one_after_the_other, NULL);
  if (result == 77) SKIP("cannot lower the limit here");
  CHECK_EQ(result, 42);
}

/* ---- io_uring refused ---- */

static int refuse_setup(int error) {
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return -1;
  return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

typedef struct refusal {
  int error, code;
  const char *words;
} refusal;

static int is_refused(void *argument) {
  refusal *f = argument;
  um_reactor *r;
  um_error error;
  setenv("UM_BACKEND", "uring", 1);
  if (refuse_setup(f->error) < 0) return 77;
  for (int again = 0; again < 2; again++) {
    int result = um_reactor_create(&r, NULL, &error);
    if (result != f->code || r || error.code != f->code) return 1;
    if (!strstr(error.message, f->words)) return 2;
  }
  return um_run(is_refused, NULL) == f->code ? 42 : 3;
}

TEST(limits, io_uring_refused_says_why) {
  refusal refusals[] = {{ENOSYS, UM_ENOURING, "not in this kernel"}, {EPERM, UM_ENOURING, "forbidden"},
                        {EINVAL, UM_ENOURING, "too old"},            {ENOMEM, UM_ENOURING, "locked-memory"},
                        {EMFILE, -EMFILE, "io_uring_setup"}};
  for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
    int result = in_child(is_refused, &refusals[i]);
    if (result == 77) SKIP("no seccomp filters here");
    CHECK_EQ(result, 42);
  }
}

static const char *said(int fd) {
  static char text[4096];
  ssize_t n = read(fd, text, sizeof text - 1);
  text[n > 0 ? n : 0] = 0;
  return text;
}

static int sleeps_a_tick(void *argument) {
  (void)argument;
  return um_fiber_sleep(um_after(1));
}

/* With nothing asked for: another backend, and one line about it in a process's life. */
static int falls_back(void *argument) {
  um_reactor *r;
  int ends[2];
  (void)argument;
  unsetenv("UM_BACKEND");
  if (refuse_setup(EPERM) < 0) return 77;
  CHECK_EQ(pipe2(ends, O_NONBLOCK), 0);
  dup2(ends[1], STDERR_FILENO);
  CHECK_EQ(um_reactor_create(&r, NULL, NULL), 0);
  if (strcmp(um_reactor_backend(r), "epoll")) return 1;
  const char *text = said(ends[0]), *line = strchr(text, '\n');
  if (!line || line[1] || !strstr(text, "io_uring: forbidden") || !strstr(text, "epoll")) return 2;
  CHECK_EQ(um_fiber_spawn(r, NULL, sleeps_a_tick, NULL, NULL), 0);
  CHECK_EQ(um_reactor_run(r), 0);
  CHECK_EQ(um_reactor_destroy(r), 0);
  if (um_run(sleeps_a_tick, NULL) != 0) return 3;
  return *said(ends[0]) ? 4 : 42;
}

TEST(limits, io_uring_refused_epoll_is_used_and_says_so_once) {
  int result = in_child(falls_back, NULL);
  if (result == 77) SKIP("no seccomp filters here");
  CHECK_EQ(result, 42);
}

/* ---- the end of a stack ---- */

__attribute__((noinline)) static int deeper(int depth) {
  volatile char frame[512];
  frame[0] = (char)depth;
  return depth <= 0 ? 0 : deeper(depth - 1) + frame[0];
}

static int overflows(void *argument) { return deeper(*(int *)argument); }

static int overflowing_child(void *argument) {
  um_reactor *r;
  struct rlimit none = {0, 0};
  setrlimit(RLIMIT_CORE, &none);
  signal(SIGSEGV, SIG_DFL);
  signal(SIGBUS, SIG_DFL);
  if (um_reactor_create(&r, &(um_reactor_config){.stack_size = 16384}, NULL) < 0) return 1;
  if (um_fiber_spawn(r, NULL, overflows, argument, NULL) < 0) return 2;
  return um_reactor_run(r) < 0 ? 3 : 42;
}

TEST(limits, a_stack_overflow_hits_the_guard) {
  if (UNDER_ASAN || UNDER_TSAN || under_valgrind()) SKIP("the tool catches it first");
  int shallow = 10, deep = 1000;
  CHECK_EQ(in_child(overflowing_child, &shallow), 42);
  CHECK_EQ(in_child(overflowing_child, &deep), -SIGSEGV);
}

static int no_memory_for_stacks(void *argument) {
  um_reactor *r;
  um_fiber *fiber;
  (void)argument;
  if (um_reactor_create(&r, NULL, NULL) < 0) return 1;
  struct rlimit space = {(rlim_t)256 << 20, (rlim_t)256 << 20};
  setrlimit(RLIMIT_AS, &space);
  um_fiber_options big = {.stack_size = 16u << 20};
  if (um_fiber_spawn(r, &fiber, overflows, NULL, &big) != -ENOMEM) return 2;
  if (um_fiber_spawn(r, NULL, overflows, &(int){1}, NULL) != 0) return 3; /* small ones still */
  if (um_reactor_run(r) != 0) return 4;
  return um_reactor_destroy(r) == 0 ? 42 : 5;
}

TEST(limits, no_address_space_for_a_stack_is_an_error) {
  if (UNDER_ASAN || UNDER_TSAN || under_valgrind()) SKIP("the tool needs the address space");
  CHECK_EQ(in_child(no_memory_for_stacks, NULL), 42);
}
