/* The reactor: configuration, ownership, forks, stopping, stepping in another loop. */
#include "backend_scripted.h"
#include "harness.h"

#include "reactor/conn.h"

#include <bio_uring/io.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

SUITE(reactor);

/* ---- configuration ---- */

static void refused(const um_reactor_config *config, const char *field) {
  um_reactor *r = (um_reactor *)1;
  um_error error;
  CHECK_EQ(um_reactor_create(&r, config, &error), UM_ECONFIG);
  CHECK(r == NULL);
  CHECK_EQ(error.code, UM_ECONFIG);
  CHECK_HAS(error.message, field);
  CHECK_EQ(um_reactor_create(&r, config, NULL), UM_ECONFIG); /* the message is optional */
}

TEST(reactor, each_field_is_validated_and_named) {
  const struct {
    um_reactor_config config;
    const char *field;
  } bad[] = {
      {{.entries = 4}, "entries"},
      {{.entries = 65536}, "entries"},
      {{.entries = 100}, "entries"},
      {{.cq_entries = 100}, "cq_entries"},
      {{.cq_entries = 131072}, "cq_entries"},
      {{.entries = 256, .cq_entries = 256}, "cq_entries"},
      {{.buffer_count = 2}, "buffer_count"},
      {{.buffer_count = 65536}, "buffer_count"},
      {{.buffer_count = 24}, "buffer_count"},
      {{.buffer_size = 2048}, "buffer_size"},
      {{.buffer_size = 4097}, "buffer_size"},
      {{.buffer_size = 2u << 20}, "buffer_size"},
      {{.stack_size = 12288}, "stack_size"},
      {{.stack_size = 16385}, "stack_size"},
      {{.stack_size = 128u << 20}, "stack_size"},
      {{.max_switches = 65537}, "max_switches"},
      {{.receive_limit = 4095}, "receive_limit"},
      {{.receive_limit = 32u << 20}, "receive_limit"},
      {{.send_limit = 16383}, "send_limit"},
      {{.send_limit = 65u << 20}, "send_limit"},
      {{.turn_bytes = 1023}, "turn_bytes"},
      {{.turn_bytes = 17u << 20}, "turn_bytes"},
      {{.turn_records = 65537}, "turn_records"},
      {{.flags = 0x80}, "flags"},
      {{.backend = "nonsense"}, "nonsense"},
      {{.backend = "epol"}, "backend"},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) refused(&bad[i].config, bad[i].field);
}

TEST(reactor, extremes_are_accepted) {
  const um_reactor_config good[] = {
      {.entries = 8, .cq_entries = 16, .buffer_count = 4, .buffer_size = 4096, .stack_size = 16384,
       .max_switches = 1, .receive_limit = 4096, .send_limit = 16384, .turn_bytes = 1024},
      {.entries = 32768, .buffer_count = 4096, .buffer_size = 8192, .stack_size = 1u << 20,
       .max_switches = 65536, .receive_limit = 16u << 20, .send_limit = 64u << 20, .turn_bytes = 16u << 20},
      {.entries = 4096},
      {.zerocopy_threshold = 1},
      {.zerocopy_threshold = UINT32_MAX},
      {.backend = "uring"},
      {.backend = ""},
  };
  for (size_t i = 0; i < sizeof good / sizeof *good; i++) CHECK_EQ(um_reactor_destroy(reactor_new(&good[i])), 0);
}

TEST(reactor, backend_from_the_environment) {
  um_reactor *r;
  um_error error;
  setenv("UM_BACKEND", "gibberish", 1);
  CHECK_EQ(um_reactor_create(&r, NULL, &error), UM_ECONFIG);
  CHECK_HAS(error.message, "UM_BACKEND");
  CHECK_HAS(error.message, "gibberish");
  r = reactor_new(&(um_reactor_config){.backend = "uring"}); /* the field goes first */
  CHECK(!strcmp(um_reactor_backend(r), "uring"));
  um_reactor_destroy(r);
  char longer[4096];
  memset(longer, 'x', sizeof longer - 1);
  longer[sizeof longer - 1] = 0;
  setenv("UM_BACKEND", longer, 1);
  CHECK_EQ(um_reactor_create(&r, NULL, &error), UM_ECONFIG);
  setenv("UM_BACKEND", "", 1);
  um_reactor_destroy(reactor_new(NULL));
  setenv("UM_BACKEND", "uring", 1);
  um_reactor_destroy(reactor_new(NULL));
  unsetenv("UM_BACKEND");
}

/* ---- life ---- */

static int nothing(void *argument) {
  (void)argument;
  return 0;
}

static unsigned mappings(void) {
  unsigned count = 0;
  FILE *maps = fopen("/proc/self/maps", "r");
  CHECK(maps != NULL);
  for (int c; (c = getc(maps)) != EOF;) count += c == '\n';
  fclose(maps);
  return count;
}

static size_t address_space(void) {
  size_t pages = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  CHECK(file != NULL);
  CHECK_EQ(fscanf(file, "%zu", &pages), 1);
  fclose(file);
  return pages;
}

TEST(reactor, leaves_neither_descriptors_nor_mappings) {
  for (int i = 0; i < 5; i++) run_fibers(nothing, NULL); /* what is made once */
  unsigned fds = open_fds(), maps = mappings();
  size_t pages = address_space();
  for (int i = 0; i < 50; i++) run_fibers_with(&(um_reactor_config){.buffer_count = 4096, .buffer_size = 4096,
                                                                    .zerocopy_threshold = 4096}, nothing, NULL);
  CHECK_EQ(open_fds(), fds);
  CHECK(mappings() <= maps + 10);
  if (!UNDER_ASAN) CHECK(address_space() <= pages + 400);
}

static int runs_itself(void *argument) {
  um_reactor *r = um_reactor_current();
  (void)argument;
  CHECK_EQ(um_reactor_run(r), UM_EREENTRANT);
  CHECK_EQ(um_reactor_step(r), UM_EREENTRANT);
  CHECK_EQ(um_reactor_destroy(r), -EBUSY);
  um_reactor *other = reactor_new(NULL);
  CHECK_EQ(um_reactor_run(other), UM_EREENTRANT);
  CHECK_EQ(um_reactor_destroy(other), 0);
  CHECK_EQ(um_run(nothing, NULL), UM_EREENTRANT);
  return 0;
}

TEST(reactor, is_not_entered_from_its_own_fibers) { run_fibers(runs_itself, NULL); }

static int returns_nine(void *argument) { return *(int *)argument == 1 ? 9 : -EPIPE; }

TEST(reactor, um_run_returns_mains_result) {
  CHECK_EQ(um_run(returns_nine, &(int){1}), 9);
  CHECK_EQ(um_run(returns_nine, &(int){2}), -EPIPE);
}

static void *uses_others(void *argument) {
  um_reactor *r = argument;
  um_fiber *fiber;
  CHECK_EQ(um_reactor_run(r), UM_EWRONGTHREAD);
  CHECK_EQ(um_reactor_step(r), UM_EWRONGTHREAD);
  CHECK_EQ(um_reactor_destroy(r), UM_EWRONGTHREAD);
  CHECK_EQ(um_fiber_spawn(r, &fiber, nothing, NULL, NULL), UM_EWRONGTHREAD);
  um_task task;
  CHECK_EQ(um_task_register(&task, r, NULL), UM_EWRONGTHREAD);
  return NULL;
}

TEST(reactor, belongs_to_the_thread_that_first_ran_it) {
  pthread_t thread;
  um_reactor *r = reactor_new(NULL);
  CHECK_EQ(um_fiber_spawn(r, NULL, nothing, NULL, NULL), 0);
  CHECK_EQ(um_reactor_run(r), 0);
  CHECK_EQ(pthread_create(&thread, NULL, uses_others, r), 0);
  pthread_join(thread, NULL);
  reactor_finish(r);
}

static void *adopts(void *argument) {
  CHECK_EQ(um_fiber_spawn(argument, NULL, nothing, NULL, NULL), 0);
  reactor_finish(argument);
  return NULL;
}

TEST(reactor, may_be_created_on_one_thread_and_run_on_another) {
  pthread_t thread;
  CHECK_EQ(pthread_create(&thread, NULL, adopts, reactor_new(NULL)), 0);
  pthread_join(thread, NULL);
}

/* ---- stop ---- */

static int stops_and_goes_on(void *argument) {
  um_reactor_stop(um_reactor_current());
  ++*(int *)argument;
  CHECK_EQ(um_fiber_yield(), 0);
  ++*(int *)argument;
  return 0;
}

TEST(reactor, stop_ends_the_tick_and_fibers_stay) {
  int count = 0;
  um_reactor *r = reactor_new(NULL);
  CHECK_EQ(um_fiber_spawn(r, NULL, stops_and_goes_on, &count, NULL), 0);
  CHECK_EQ(um_reactor_run(r), 0);
  CHECK_EQ(count, 1);
  CHECK_EQ(um_reactor_destroy(r), -EBUSY);
  CHECK_EQ(um_reactor_run(r), 0);
  CHECK_EQ(count, 2);
  reactor_finish(r);
}

/* ---- forks ---- */

static int use_in_child(void *argument) {
  um_reactor *r = argument;
  um_fiber *fiber;
  if (um_reactor_run(r) != UM_EFORKED) return 1;
  if (um_reactor_step(r) != UM_EFORKED) return 2;
  if (um_fiber_spawn(r, &fiber, nothing, NULL, NULL) != UM_EFORKED) return 3;
  if (um_post(r, nothing, NULL) != UM_EFORKED) return 4;
  um_metrics m;
  um_reactor_metrics(r, &m); /* nothing to say, and no crash */
  um_reactor_stop(r);        /* must not reach the parent's */
  um_post_node node = {.fn = nothing};
  um_post_node_push(r, &node);
  if (um_reactor_destroy(r) != 0) return 5;
  if (um_run(nothing, NULL) != 0) return 6; /* one of its own */
  return 42;
}

static int forks_outside(void *argument) {
  um_reactor *r = argument;
  CHECK_EQ(um_fiber_sleep(um_after(1)), 0);
  um_reactor_stop(r);
  CHECK_EQ(um_fiber_yield(), 0);
  return 0;
}

TEST(reactor, a_forked_child_is_told_and_the_parent_goes_on) {
  um_reactor *r = reactor_new(NULL);
  CHECK_EQ(um_fiber_spawn(r, NULL, forks_outside, r, NULL), 0);
  CHECK_EQ(um_reactor_run(r), 0); /* stopped in the middle */
  uint64_t wakes = metrics_of(r).wakes;
  CHECK_EQ(in_child(use_in_child, r), 42);
  CHECK_EQ(um_reactor_run(r), 0);
  CHECK(metrics_of(r).wakes <= wakes + 1); /* its own stop's; the child sent none */
  reactor_finish(r);
}

TEST(reactor, a_fork_before_it_ever_ran) {
  um_reactor *r = reactor_new(NULL);
  CHECK_EQ(in_child(use_in_child, r), 42);
  CHECK_EQ(um_fiber_spawn(r, NULL, nothing, NULL, NULL), 0);
  reactor_finish(r);
}

/* In the child of a fork made inside a fiber: waiting calls fail, and a reactor of its
 * own works there. */
static int child_inside(void) {
  char byte;
  if (um_fiber_sleep(um_after(1)) >= 0) return 1;
  if (um_recv(0, &byte, 1, 0, um_after(1)) >= 0) return 2;
  if (um_fiber_yield() >= 0) return 3;
  if (um_run(nothing, NULL) != 0) return 4;
  return 42;
}

static int other_fiber(void *argument) {
  ++*(int *)argument;
  return 0;
}

static int forks_inside(void *argument) {
  int status, ran = 0;
  (void)argument;
  um_fiber *other = spawn(other_fiber, &ran);
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) _exit(child_inside());
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), 42);
  join(other);
  CHECK_EQ(ran, 1);
  return 0;
}

TEST(reactor, a_fork_inside_a_fiber) { run_fibers(forks_inside, NULL); }

static int forks_and_returns(void *argument) {
  pid_t *pid = argument;
  *pid = fork();
  return 0;
}

static int writes_pid(void *argument) {
  int *fds = argument;
  pid_t self = getpid();
  CHECK_EQ(write(fds[1], &self, sizeof self), sizeof self);
  return 0;
}

/* The child comes out of um_reactor_run() with UM_EFORKED and runs no other fiber. */
TEST(reactor, the_forks_child_leaves_the_loop) {
  int fds[2], status;
  pid_t pid = -1, written[2];
  CHECK_EQ(pipe(fds), 0);
  um_reactor *r = reactor_new(NULL);
  CHECK_EQ(um_fiber_spawn(r, NULL, forks_and_returns, &pid, NULL), 0);
  CHECK_EQ(um_fiber_spawn(r, NULL, writes_pid, fds, NULL), 0);
  int result = um_reactor_run(r);
  if (pid == 0) _exit(result == UM_EFORKED ? 42 : 1);
  CHECK_EQ(result, 0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), 42);
  CHECK_EQ(read(fds[0], written, sizeof written), sizeof *written); /* one writer only */
  close(fds[0]);
  close(fds[1]);
  reactor_finish(r);
}

/* ---- in somebody else's loop ---- */

static int steps_until(um_reactor *r, int state, int most) {
  int result = UM_STEP_RUNNABLE;
  for (int i = 0; i < most && result != state; i++) {
    result = um_reactor_step(r);
    CHECK(result >= 0);
  }
  return result;
}

/* poll(2) around steps until all fibers ended; how often poll slept in vain. */
static void poll_loop(um_reactor *r) {
  struct pollfd p = {.fd = um_reactor_fd(r), .events = POLLIN};
  for (int result; (result = um_reactor_step(r)) != UM_STEP_DONE;) {
    CHECK(result > 0);
    if (result == UM_STEP_IDLE) CHECK_EQ(poll(&p, 1, 10000), 1); /* nothing is ever missed */
  }
}

static int sleeps_often(void *argument) {
  for (int i = 0; i < 20; i++) CHECK_EQ(um_fiber_sleep(um_now() + (int)(intptr_t)argument * 100000), 0);
  return 0;
}

static int echoes(void *argument) {
  int *fds = argument;
  char bytes[100];
  for (ssize_t n; (n = um_recv(fds[0], bytes, sizeof bytes, 0, um_after(5000))) > 0;)
    CHECK_EQ(um_send(fds[0], bytes, (size_t)n, 0, UM_FOREVER), n);
  return 0;
}

static int asks(void *argument) {
  int *fds = argument;
  char bytes[100];
  for (int i = 0; i < 50; i++) {
    CHECK_EQ(um_send(fds[1], "question", 8, 0, UM_FOREVER), 8);
    CHECK_EQ(um_recv(fds[1], bytes, 8, MSG_WAITALL, um_after(5000)), 8);
    if (i % 10 == 0) CHECK_EQ(um_fiber_sleep(um_now() + 200000), 0);
  }
  return um_shutdown(fds[1], SHUT_WR, UM_FOREVER);
}

TEST(reactor, embedded_in_a_poll_loop) {
  int fds[2];
  local_pair(fds);
  um_reactor *r = reactor_new(NULL);
  CHECK_EQ(um_reactor_step(r), UM_STEP_DONE);
  for (intptr_t i = 1; i <= 5; i++) CHECK_EQ(um_fiber_spawn(r, NULL, sleeps_often, (void *)i, NULL), 0);
  CHECK_EQ(um_fiber_spawn(r, NULL, echoes, fds, NULL), 0);
  CHECK_EQ(um_fiber_spawn(r, NULL, asks, fds, NULL), 0);
  poll_loop(r);
  CHECK_EQ(um_reactor_step(r), UM_STEP_DONE);
  reactor_finish(r);
  close(fds[0]);
  close(fds[1]);
}

static int long_then_short(void *argument) {
  um_event event;
  (void)argument;
  um_event_init(&event);
  CHECK_EQ(um_event_wait(&event, um_after(3)), -ETIMEDOUT);
  CHECK_EQ(um_fiber_sleep(um_after(2)), 0);
  return 0;
}

static int sleeps_long(void *argument) {
  CHECK_EQ(um_fiber_sleep(um_after(100000)), *(int *)argument);
  return 0;
}

TEST(reactor, an_earlier_timer_moves_the_kernels) {
  um_reactor *r = reactor_new(NULL);
  um_fiber *sleeper;
  int cancelled = -ECANCELED;
  CHECK_EQ(um_fiber_spawn(r, &sleeper, sleeps_long, &cancelled, NULL), 0);
  CHECK_EQ(steps_until(r, UM_STEP_IDLE, 10), UM_STEP_IDLE); /* the long one is armed */
  CHECK_EQ(um_fiber_spawn(r, NULL, long_then_short, NULL, NULL), 0);
  struct pollfd p = {.fd = um_reactor_fd(r), .events = POLLIN};
  while (metrics_of(r).fibers == 2) {
    if (um_reactor_step(r) == UM_STEP_IDLE && metrics_of(r).fibers == 2) CHECK_EQ(poll(&p, 1, 10000), 1);
  }
  um_fiber_cancel(sleeper);
  poll_loop(r);
  CHECK_EQ(um_fiber_join(sleeper, NULL, UM_FOREVER), 0);
  reactor_finish(r);
}

typedef struct waker {
  um_reactor *r;
  um_event *event;
} waker;

static int sets(void *argument) {
  um_event_set(argument);
  return 0;
}

static void *posts_later(void *argument) {
  waker *w = argument;
  for (int i = 0; i < 200; i++) {
    CHECK_EQ(um_post(w->r, nothing, NULL), 0);
    if (i % 20 == 0) usleep(500);
  }
  CHECK_EQ(um_post(w->r, sets, w->event), 0);
  return NULL;
}

static int waits_set(void *argument) { return um_event_wait(argument, UM_FOREVER); }

TEST(reactor, posts_make_the_descriptor_readable) {
  um_event event;
  for (int i = 0; i < 20; i++) {
    pthread_t thread;
    um_event_init(&event);
    waker w = {reactor_new(NULL), &event};
    CHECK_EQ(um_fiber_spawn(w.r, NULL, waits_set, &event, NULL), 0);
    CHECK_EQ(pthread_create(&thread, NULL, posts_later, &w), 0);
    poll_loop(w.r);
    pthread_join(thread, NULL);
    reactor_finish(w.r);
  }
}

/* IDLE promises that nothing is left to do without the descriptor: what completions
 * asked for has gone to the kernel, too. */
typedef struct stepped {
  script *s;
  um_reactor *r;
  um_conn conn;
} stepped;

static int puts_and_waits(void *argument) {
  stepped *t = argument;
  um__conn_init(&t->conn, 7);
  um__conn_attach(&t->conn, t->r);
  CHECK_EQ(um__conn_put(&t->conn, "hello world", 11), 0);
  CHECK_EQ(um_fiber_sleep(UM_FOREVER), -ECANCELED); /* nobody waits for the output */
  CHECK_EQ(um__conn_wait_readable(&t->conn, UM_FOREVER), 0);
  return um__conn_close(&t->conn, UM_FOREVER);
}

TEST(reactor, idle_means_that_everything_was_handed_over) {
  stepped t;
  size_t length;
  t.r = scripted_reactor(&t.s, NULL, NULL);
  script_answer(t.s, UM_OP_SEND, (answer){.result = 3});
  script_answer(t.s, UM_OP_SEND, (answer){.result = 4});
  script_answer(t.s, UM_OP_RECV_MULTI, (answer){.result = -ENOBUFS});
  um_fiber *fiber;
  CHECK_EQ(um_fiber_spawn(t.r, &fiber, puts_and_waits, &t, NULL), 0);
  CHECK_EQ(steps_until(t.r, UM_STEP_IDLE, 20), UM_STEP_IDLE);
  CHECK(!strcmp(script_sent(t.s, 7, &length), "hello world"));
  um_fiber_cancel(fiber);
  CHECK_EQ(steps_until(t.r, UM_STEP_IDLE, 20), UM_STEP_IDLE);
  CHECK_EQ(script_owned(t.s), 1); /* the receive, after its starvation */
  script_feed(t.s, 7, "x", 1);
  CHECK_EQ(um_reactor_run(t.r), 0);
  CHECK_EQ(um_fiber_join(fiber, NULL, UM_FOREVER), 0);
  reactor_finish(t.r);
}

static int yields_once(void *argument) {
  (void)argument;
  return um_fiber_yield();
}

TEST(reactor, step_says_when_work_remains) {
  um_reactor *r = reactor_new(&(um_reactor_config){.max_switches = 1});
  for (int i = 0; i < 3; i++) CHECK_EQ(um_fiber_spawn(r, NULL, yields_once, NULL, NULL), 0);
  for (int i = 0; i < 5; i++) CHECK_EQ(um_reactor_step(r), UM_STEP_RUNNABLE);
  CHECK_EQ(steps_until(r, UM_STEP_DONE, 10), UM_STEP_DONE);
  reactor_finish(r);
}
