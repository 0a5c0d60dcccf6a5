/* Posts: callbacks on the reactor's thread, coalesced, isolated, from signal handlers. */
#include "harness.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/time.h>

SUITE(posts);

/* A fiber that keeps a reactor running until told. */
typedef struct keeper {
  um_reactor *r;
  um_event done;
  int count, more;
} keeper;

static int keeps(void *argument) { return um_event_wait(&((keeper *)argument)->done, UM_FOREVER); }

static void keeper_init(keeper *k) {
  *k = (keeper){.r = reactor_new(NULL)};
  um_event_init(&k->done);
  CHECK_EQ(um_fiber_spawn(k->r, NULL, keeps, k, NULL), 0);
}

static int counts(void *argument) {
  keeper *k = argument;
  k->count++;
  return 0;
}

static int ends(void *argument) {
  um_event_set(&((keeper *)argument)->done);
  return 0;
}

/* ---- from callbacks and fibers ---- */

static int posts_again(void *argument) {
  keeper *k = argument;
  uint64_t ticks = metrics_of(k->r).ticks;
  if (k->count) CHECK(ticks > (uint64_t)k->more); /* one round a tick, not all in one */
  k->more = (int)ticks;
  if (++k->count == 100) return ends(k);
  CHECK_EQ(um_post(k->r, posts_again, k), 0);
  return 0;
}

TEST(posts, a_callback_may_post_again) {
  keeper k;
  keeper_init(&k);
  CHECK_EQ(um_post(k.r, posts_again, &k), 0);
  CHECK_EQ(um_reactor_run(k.r), 0);
  CHECK_EQ(k.count, 100);
  reactor_finish(k.r);
}

static int fails(void *argument) {
  counts(argument);
  return -EIO;
}

TEST(posts, negative_results_are_counted_and_stop_nothing) {
  keeper k;
  keeper_init(&k);
  for (int i = 0; i < 10; i++) CHECK_EQ(um_post(k.r, i % 2 ? fails : counts, &k), 0);
  CHECK_EQ(um_post(k.r, ends, &k), 0);
  CHECK_EQ(um_reactor_run(k.r), 0);
  CHECK_EQ(k.count, 10);
  um_metrics m = metrics_of(k.r);
  CHECK_EQ(m.post_errors, 5);
  CHECK_EQ(m.posts, 11);
  reactor_finish(k.r);
}

static int waits_in_callback(void *argument) {
  keeper *k = argument;
  k->more = um_fiber_sleep(um_after(1));
  CHECK_EQ(um_fiber_yield(), UM_ENOTFIBER);
  CHECK_EQ(um_reactor_run(k->r), UM_EREENTRANT);
  CHECK_EQ(um_reactor_step(k->r), UM_EREENTRANT);
  return um_fiber_spawn(NULL, NULL, ends, k, NULL); /* but may spawn */
}

TEST(posts, a_callback_may_spawn_and_not_wait) {
  keeper k;
  keeper_init(&k);
  CHECK_EQ(um_post(k.r, waits_in_callback, &k), 0);
  CHECK_EQ(um_reactor_run(k.r), 0);
  CHECK_EQ(k.more, UM_ENOTFIBER);
  reactor_finish(k.r);
}

static int destroys_in_callback(void *argument) {
  keeper *k = argument;
  k->more = um_reactor_destroy(k->r);
  return ends(k);
}

TEST(posts, a_callback_cannot_destroy_its_reactor) {
  keeper k;
  keeper_init(&k);
  CHECK_EQ(um_post(k.r, destroys_in_callback, &k), 0);
  CHECK_EQ(um_reactor_run(k.r), 0);
  CHECK_EQ(k.more, -EBUSY);
  reactor_finish(k.r);
}

static int posts_destroyer(void *argument) {
  CHECK_EQ(um_post(um_reactor_current(), destroys_in_callback, argument), 0);
  return 0; /* the last fiber: the callback runs when none is left */
}

TEST(posts, not_even_when_no_fiber_is_left) {
  keeper k = {.r = reactor_new(NULL)};
  um_event_init(&k.done);
  CHECK_EQ(um_fiber_spawn(k.r, NULL, posts_destroyer, &k, NULL), 0);
  CHECK_EQ(um_reactor_run(k.r), 0);
  CHECK_EQ(k.more, -EBUSY);
  reactor_finish(k.r);
}

/* ---- nodes ---- */

static int node_count;
static um_post_node looping;
static int posts_its_node(void *argument) {
  keeper *k = argument;
  if (++node_count == 50) return ends(k);
  um_post_node_push(k->r, &looping); /* it may be pushed again from here */
  return 0;
}

TEST(posts, a_node_may_be_pushed_again_when_it_runs) {
  keeper k;
  keeper_init(&k);
  node_count = 0;
  looping = (um_post_node){.fn = posts_its_node, .arg = &k};
  um_post_node_push(k.r, &looping);
  CHECK_EQ(um_reactor_run(k.r), 0);
  CHECK_EQ(node_count, 50);
  reactor_finish(k.r);
}

static keeper *signalled;
static um_post_node signal_node;
static atomic_bool node_free;

static int node_ran(void *argument) {
  keeper *k = argument;
  if (++k->count == 20) return ends(k); /* and the handler may not push it again */
  atomic_store(&node_free, true);
  return 0;
}

static void on_alarm(int number) {
  (void)number;
  int saved = errno;
  errno = 4711;
  if (atomic_exchange(&node_free, false)) um_post_node_push(signalled->r, &signal_node);
  if (errno != 4711) abort();
  errno = saved;
}

TEST(posts, from_a_signal_handler_while_the_loop_sleeps) {
  keeper k;
  keeper_init(&k);
  signalled = &k;
  signal_node = (um_post_node){.fn = node_ran, .arg = &k};
  atomic_store(&node_free, true);
  struct sigaction action = {.sa_handler = on_alarm};
  struct itimerval every = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
  sigaction(SIGVTALRM, &action, NULL);
  sigaction(SIGPROF, &action, NULL);
  struct sigaction before;
  sigaction(SIGALRM, &action, &before);
  unsigned watchdog = alarm(0);
  setitimer(ITIMER_REAL, &every, NULL);
  CHECK_EQ(um_reactor_run(k.r), 0);
  setitimer(ITIMER_REAL, &never, NULL);
  sigaction(SIGALRM, &before, NULL);
  alarm(watchdog);
  CHECK_EQ(k.count, 20);
  reactor_finish(k.r);
}

static void stops(int number) {
  (void)number;
  um_reactor_stop(signalled->r);
}

TEST(posts, stop_from_a_signal_handler) {
  keeper k;
  keeper_init(&k);
  signalled = &k;
  struct sigaction action = {.sa_handler = stops}, before;
  struct itimerval once = {{0, 0}, {0, 5000}};
  sigaction(SIGALRM, &action, &before);
  unsigned watchdog = alarm(0);
  setitimer(ITIMER_REAL, &once, NULL);
  CHECK_EQ(um_reactor_run(k.r), 0); /* with its fiber where it is */
  sigaction(SIGALRM, &before, NULL);
  alarm(watchdog);
  CHECK_EQ(metrics_of(k.r).fibers, 1);
  CHECK_EQ(um_post(k.r, ends, &k), 0);
  CHECK_EQ(um_reactor_run(k.r), 0);
  reactor_finish(k.r);
}

/* ---- between reactors ---- */

static atomic_bool started;
static int marks_started(void *argument) {
  (void)argument;
  atomic_store(&started, true);
  return 0;
}

static void *runs_keeper(void *argument) {
  keeper *k = argument;
  CHECK_EQ(um_post(k->r, marks_started, NULL), 0);
  CHECK_EQ(um_reactor_run(k->r), 0);
  return NULL;
}

static int posts_end(void *argument) { return um_post(((keeper *)argument)->r, ends, argument); }

static int posts_end_from_last_callback(void *argument) {
  CHECK_EQ(um_post(um_reactor_current(), posts_end, argument), 0);
  return 0;
}

static int posts_end_from_fiber(void *argument) {
  CHECK_EQ(posts_end(argument), 0);
  return 0;
}

/* The poster's reactor ends with the tick in which it posts: the wake-up must have left. */
static void wakes_sleeping_reactor(um_fiber_fn last) {
  keeper k;
  pthread_t thread;
  keeper_init(&k);
  atomic_store(&started, false);
  CHECK_EQ(pthread_create(&thread, NULL, runs_keeper, &k), 0);
  while (!atomic_load(&started)) usleep(1000);
  usleep(5000); /* asleep, most likely; right in any case */
  um_reactor *mine = reactor_new(NULL);
  CHECK_EQ(um_fiber_spawn(mine, NULL, last, &k, NULL), 0);
  CHECK_EQ(um_reactor_run(mine), 0);
  pthread_join(thread, NULL);
  reactor_finish(mine);
  /* its thread has ended: nobody else may destroy it, so it is given to a new owner */
  CHECK_EQ(um_reactor_destroy(k.r), UM_EWRONGTHREAD);
}

TEST(posts, from_the_last_fiber_of_another_reactor) {
  if (UNDER_ASAN) SKIP("a reactor whose thread has ended cannot be freed");
  wakes_sleeping_reactor(posts_end_from_fiber);
}

TEST(posts, from_the_last_callback_of_another_reactor) {
  if (UNDER_ASAN) SKIP("a reactor whose thread has ended cannot be freed");
  wakes_sleeping_reactor(posts_end_from_last_callback);
}

TEST(posts, to_a_reactor_that_has_not_started) {
  keeper k;
  keeper_init(&k);
  um_reactor *mine = reactor_new(NULL);
  CHECK_EQ(um_fiber_spawn(mine, NULL, posts_end_from_fiber, &k, NULL), 0);
  reactor_finish(mine);
  CHECK_EQ(um_reactor_run(k.r), 0);
  reactor_finish(k.r);
}

TEST(posts, that_never_ran_are_freed_with_the_reactor) {
  keeper k = {.r = reactor_new(NULL)};
  um_post_node node = {.fn = counts, .arg = &k};
  for (int i = 0; i < 10; i++) CHECK_EQ(um_post(k.r, counts, &k), 0);
  um_post_node_push(k.r, &node);
  CHECK_EQ(um_reactor_destroy(k.r), 0);
  CHECK_EQ(k.count, 0);
}
