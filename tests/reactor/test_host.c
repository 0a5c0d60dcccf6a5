/* Bring your own fibers: a second host, made of ucontext, beside the library's own. */
#include "backend_scripted.h"
#include "harness.h"

#include <bio_uring/host.h>
#include <bio_uring/io.h>
#include <ucontext.h>

SUITE(host);

#define GUEST_STACK (256 * 1024)

typedef struct guest {
  um_task task; /* first */
  ucontext_t here, loop;
  char *stack;
  int (*main)(struct guest *guest);
  int result, parks;
  int abandon;  /* what the next park() is to return, once */
  bool ended;
  void *more;
} guest;

static int guest_park(um_host *host, um_task *self) {
  guest *g = (guest *)self;
  (void)host;
  g->parks++;
  swapcontext(&g->here, &g->loop);
  int code = g->abandon;
  g->abandon = 0;
  return code;
}

static void guest_resume(um_host *host, um_task *task) {
  guest *g = (guest *)task;
  (void)host;
  swapcontext(&g->loop, &g->here);
  if (!g->ended) return;
  stack_free(g->stack);
  g->stack = NULL;
}

static um_host guest_host = {guest_park, guest_resume};

static guest *starting;
static void guest_entry(void) {
  guest *g = starting;
  g->result = g->main(g);
  um_task_unregister(&g->task);
  g->ended = true;
  setcontext(&g->loop);
}

static void guest_first_resume(um_host *host, um_task *task);
static um_host first_host = {guest_park, guest_first_resume};

/* The first resume enters the context; later ones go on in it. */
static void guest_first_resume(um_host *host, um_task *task) {
  starting = (guest *)task;
  task->host = &guest_host;
  guest_resume(host, task);
}

static void guest_start(guest *g, um_reactor *r, int (*main)(guest *), void *more) {
  memset(g, 0, sizeof *g);
  g->main = main;
  g->more = more;
  g->stack = stack_new(GUEST_STACK);
  getcontext(&g->here);
  g->here.uc_stack.ss_sp = g->stack;
  g->here.uc_stack.ss_size = GUEST_STACK;
  makecontext(&g->here, guest_entry, 0);
  CHECK_EQ(um_task_register(&g->task, r, &first_host), 0);
  um_task_wake(&g->task);
}

#define SKIP_SANITIZED() if (UNDER_ASAN || UNDER_TSAN) SKIP("this host does not tell sanitizers of its stacks")

/* ---- everything that waits works ---- */

static int guest_talks(guest *g) {
  int *fds = g->more;
  char bytes[16];
  CHECK(um_task_current() == &g->task);
  CHECK(um_fiber_self() == NULL); /* not one of the library's */
  CHECK_EQ(um_local_set(0, g), UM_ENOTFIBER);
  CHECK_EQ(um_fiber_sleep(um_after(1)), 0);
  CHECK_EQ(um_fiber_yield(), 0);
  CHECK_EQ(um_recv(fds[0], bytes, sizeof bytes, 0, um_after(1)), -ETIMEDOUT);
  CHECK_EQ(um_send(fds[0], "ping", 4, 0, UM_FOREVER), 4);
  CHECK_EQ(um_recv(fds[0], bytes, sizeof bytes, 0, UM_FOREVER), 4);
  CHECK(!memcmp(bytes, "pong", 4));
  return 17;
}

static int fiber_answers(void *argument) {
  int *fds = argument;
  char bytes[16];
  CHECK_EQ(um_recv(fds[1], bytes, sizeof bytes, 0, UM_FOREVER), 4);
  CHECK(!memcmp(bytes, "ping", 4));
  CHECK_EQ(um_send(fds[1], "pong", 4, 0, UM_FOREVER), 4);
  return 0;
}

TEST(host, guests_and_fibers_talk_on_one_reactor) {
  SKIP_SANITIZED();
  int fds[2];
  guest g;
  um_reactor *r = reactor_new(NULL);
  local_pair(fds);
  guest_start(&g, r, guest_talks, fds);
  CHECK_EQ(um_fiber_spawn(r, NULL, fiber_answers, fds, NULL), 0);
  CHECK_EQ(um_reactor_run(r), 0);
  CHECK(g.ended);
  CHECK_EQ(g.result, 17);
  CHECK(g.parks >= 5);
  reactor_finish(r);
  close(fds[0]);
  close(fds[1]);
}

static int guest_waits(guest *g) {
  *(int *)g->more = um_task_wait(UM_FOREVER);
  return um_fiber_cancelled();
}

TEST(host, a_cancelled_guest) {
  SKIP_SANITIZED();
  guest g;
  int result = 1;
  um_reactor *r = reactor_new(NULL);
  guest_start(&g, r, guest_waits, &result);
  CHECK_EQ(um_reactor_step(r), UM_STEP_IDLE);
  CHECK_EQ(um_reactor_destroy(r), -EBUSY); /* a task is registered */
  um_task_cancel(&g.task);
  um_task_cancel(&g.task);
  CHECK_EQ(um_reactor_run(r), 0);
  CHECK_EQ(result, -ECANCELED);
  CHECK_EQ(g.result, 1);
  reactor_finish(r);
}

/* ---- park() that gives up in the middle of an operation ---- */

typedef struct giving_up {
  script *s;
  char bytes[8];
  ssize_t result;
  int then;
} giving_up;

static int guest_receives(guest *g) {
  giving_up *w = g->more;
  w->result = um_recv(7, w->bytes, sizeof w->bytes, 0, UM_FOREVER);
  w->then = um_fiber_yield();
  return 0;
}

/* What a receive returns that the runtime wants abandoned with -EINTR's like `code`. */
static giving_up given_up(int code, answer a, const char *fed) {
  guest g;
  giving_up w = {0};
  um_reactor *r = scripted_reactor(&w.s, NULL, NULL);
  script_answer(w.s, UM_OP_RECV, a);
  if (fed) script_feed(w.s, 7, fed, strlen(fed));
  guest_start(&g, r, guest_receives, &w);
  CHECK_EQ(um_reactor_step(r), UM_STEP_IDLE);
  g.abandon = code;
  um_task_wake(&g.task); /* as a runtime does that wants to raise an exception in it */
  for (int i = 0; i < 50 && !g.ended; i++) CHECK(um_reactor_step(r) >= 0);
  CHECK(g.ended);
  CHECK_EQ(script_owned(w.s), 0);
  reactor_finish(r);
  return w;
}

TEST(host, a_negative_park_cancels_and_drains_the_operation) {
  SKIP_SANITIZED();
  for (unsigned late = 0; late < 5; late++) {
    answer a = {.result = ANSWER_NEVER, .cancel_after = late};
    giving_up w = given_up(-ECANCELED, a, NULL);
    CHECK_EQ(w.result, -ECANCELED);
    CHECK_EQ(w.then, 0);
    w = given_up(-EOWNERDEAD, a, NULL); /* the host's own code */
    CHECK_EQ(w.result, -EOWNERDEAD);
    a.cancel = CANCEL_LOSES;
    w = given_up(-ECANCELED, a, "data");
    CHECK_EQ(w.result, 4); /* nothing that was received is lost */
    CHECK_EQ(w.then, -ECANCELED);
  }
}

static int guest_sleeps_a_lot(guest *g) {
  int *count = g->more;
  for (int i = 0; i < 50; i++) {
    CHECK_EQ(um_fiber_sleep(um_after(i % 3)), 0);
    ++*count;
  }
  return 0;
}

TEST(host, a_hundred_guests) {
  SKIP_SANITIZED();
  enum { N = 100 };
  static guest guests[N];
  int count = 0;
  um_reactor *r = reactor_new(NULL);
  for (int i = 0; i < N; i++) guest_start(&guests[i], r, guest_sleeps_a_lot, &count);
  CHECK_EQ(um_reactor_run(r), 0);
  CHECK_EQ(count, N * 50);
  reactor_finish(r);
}

/* ---- a loop whose stack is thrown away ---- */

typedef struct thrown_away {
  um_reactor *r;
  ucontext_t outside, loop;
  int fds[2];
  char bytes[16];
} thrown_away;

static thrown_away *away;
static void run_away(void) {
  um_reactor_run(away->r);
  CHECK(false); /* nobody comes back here */
}

static int guest_is_left_receiving(guest *g) {
  thrown_away *a = g->more;
  return (int)um_recv(a->fds[0], a->bytes, sizeof a->bytes, 0, UM_FOREVER);
}

static int guest_is_left_sleeping(guest *g) {
  (void)g;
  return um_fiber_sleep(um_after(60000));
}

static int guest_leaves(guest *g) {
  thrown_away *a = g->more;
  for (int i = 0; i < 3; i++) CHECK_EQ(um_fiber_yield(), 0); /* the kernel gets the receive */
  CHECK(metrics_of(a->r).pending >= 1);
  return swapcontext(&g->here, &a->outside);
}

static void *destroy(void *reactor) {
  CHECK_EQ(um_reactor_destroy(reactor), 0);
  return NULL;
}

TEST(host, an_abandoned_reactor_leaves_nothing_in_the_kernel) {
  SKIP_SANITIZED();
  guest guests[3];
  thrown_away a = {.r = reactor_new(NULL)};
  char *stack = stack_new(GUEST_STACK), bytes[16];
  unsigned before = open_fds();
  um_reactor_abandon(); /* there is none */
  local_pair(a.fds);
  guest_start(&guests[0], a.r, guest_is_left_receiving, &a);
  guest_start(&guests[1], a.r, guest_is_left_sleeping, &a);
  guest_start(&guests[2], a.r, guest_leaves, &a);
  getcontext(&a.loop);
  a.loop.uc_stack.ss_sp = stack;
  a.loop.uc_stack.ss_size = GUEST_STACK;
  makecontext(&a.loop, run_away, 0);
  away = &a;
  CHECK_EQ(swapcontext(&a.outside, &a.loop), 0);
  CHECK(um_reactor_current() == a.r);
  um_reactor_abandon();
  CHECK(um_reactor_current() == NULL);
  CHECK_EQ(metrics_of(a.r).pending, 0);
  CHECK_EQ(write(a.fds[1], "mine", 4), 4); /* and no receive takes it away */
  CHECK_EQ(read(a.fds[0], bytes, sizeof bytes), 4);
  pthread_t thread;
  CHECK_EQ(pthread_create(&thread, NULL, destroy, a.r), 0);
  CHECK_EQ(pthread_join(thread, NULL), 0);
  close(a.fds[0]);
  close(a.fds[1]);
  CHECK(open_fds() < before);
  for (int i = 0; i < 3; i++) stack_free(guests[i].stack);
  stack_free(stack);
}

static int register_elsewhere(void *argument) {
  um_task task;
  CHECK_EQ(um_task_register(&task, argument, &guest_host), 0);
  um_task_unregister(&task);
  return 0;
}

TEST(host, registering_and_forgetting_without_running) {
  um_reactor *r = reactor_new(NULL);
  CHECK_EQ(register_elsewhere(r), 0);
  CHECK_EQ(um_reactor_destroy(r), 0);
}
