/* Work on other threads: run there, ended here, before the reactor ends. */
#include "harness.h"

#include "reactor/worker.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/wait.h>

SUITE(worker);

typedef struct job {
  um__work work;
  um_reactor *reactor;
  um_event *event;
  unsigned milliseconds;
  pthread_t home;
  int niceness, blocked;
  bool elsewhere, ran, ended;
  int more; /* of the same, submitted by done() */
} job;

static atomic_int running, most_running;

static void runs(um__work *work) {
  job *j = (job *)work;
  sigset_t mask;
  int now = atomic_fetch_add(&running, 1) + 1;
  if (now > atomic_load(&most_running)) atomic_store(&most_running, now);
  j->elsewhere = !pthread_equal(j->home, pthread_self()) && !um_reactor_current();
  j->niceness = getpriority(PRIO_PROCESS, 0);
  pthread_sigmask(SIG_SETMASK, NULL, &mask);
  j->blocked = sigismember(&mask, SIGTERM) && sigismember(&mask, SIGINT);
  if (j->milliseconds) usleep(j->milliseconds * 1000);
  j->ran = true;
  atomic_fetch_sub(&running, 1);
}

static void submit(job *j, um_reactor *r);

static void ends(um__work *work) {
  job *j = (job *)work;
  CHECK(pthread_equal(j->home, pthread_self()));
  CHECK(j->ran);
  j->ended = true;
  if (j->more-- > 0) submit(j, j->reactor);
  else if (j->event) um_event_set(j->event);
}

static void submit(job *j, um_reactor *r) {
  j->work.run = runs;
  j->work.done = ends;
  j->reactor = r;
  j->home = pthread_self();
  j->ran = j->ended = false;
  CHECK_EQ(um__work_submit(r, &j->work), 0);
}

static int waits_for_one(void *argument) {
  job *j = argument;
  um_event done;
  um_event_init(&done);
  j->event = &done;
  submit(j, um_reactor_current());
  CHECK_EQ(um_event_wait(&done, um_after(20000)), 0);
  CHECK(j->ended && j->elsewhere);
  return 0;
}

TEST(worker, runs_elsewhere_with_less_priority_and_no_signals_and_ends_here) {
  job j = {0};
  int before = getpriority(PRIO_PROCESS, 0);
  CHECK_EQ(run_fibers(waits_for_one, &j), 0);
  CHECK_EQ(j.niceness, before + 10 > 19 ? 19 : before + 10);
  CHECK(j.blocked);
  CHECK_EQ(getpriority(PRIO_PROCESS, 0), before);
}

static int leaves_at_once(void *argument) {
  submit(argument, um_reactor_current());
  return 0;
}

TEST(worker, the_loop_does_not_end_while_work_is_out) {
  job j = {.milliseconds = 50};
  CHECK_EQ(run_fibers(leaves_at_once, &j), 0);
  CHECK(j.ended);
}

TEST(worker, done_may_submit_again) {
  job j = {.more = 200};
  CHECK_EQ(run_fibers(leaves_at_once, &j), 0);
  CHECK_EQ(j.more, -1);
}

static int stops(void *argument) {
  submit(argument, um_reactor_current());
  um_reactor_stop(um_reactor_current());
  return 0;
}

TEST(worker, a_reactor_is_destroyed_only_after_its_work_has_ended) {
  job j = {.milliseconds = 100};
  um_reactor *r = reactor_new(NULL);
  CHECK_EQ(um_fiber_spawn(r, NULL, stops, &j, NULL), 0);
  CHECK_EQ(um_reactor_run(r), 0);
  CHECK_EQ(um_reactor_destroy(r), 0);
  CHECK(j.ended);
}

#define MANY 500

static int submits_many(void *argument) {
  job *jobs = argument;
  for (int i = 0; i < MANY; i++) submit(&jobs[i], um_reactor_current());
  return 0;
}

TEST(worker, there_are_no_more_threads_than_processors) {
  job *jobs = calloc(MANY, sizeof *jobs);
  for (int i = 0; i < 20; i++) jobs[i].milliseconds = 5;
  atomic_store(&most_running, 0);
  CHECK_EQ(run_fibers(submits_many, jobs), 0);
  for (int i = 0; i < MANY; i++) CHECK(jobs[i].ended);
  CHECK(atomic_load(&most_running) <= sysconf(_SC_NPROCESSORS_ONLN));
  free(jobs);
}

static void *own_reactor(void *argument) {
  CHECK_EQ(run_fibers(submits_many, argument), 0);
  return NULL;
}

TEST(worker, reactors_of_several_threads_share_the_pool) {
  pthread_t threads[4];
  job *jobs = calloc(4 * MANY, sizeof *jobs);
  for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, own_reactor, &jobs[i * MANY]);
  for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i < 4 * MANY; i++) CHECK(jobs[i].ended);
  free(jobs);
}

static int in_the_child(void *argument) {
  (void)argument;
  job j = {0};
  return run_fibers(waits_for_one, &j) == 0 && j.ended ? 0 : 1;
}

/* Not before the thread works: while one begins, AddressSanitizer (before GCC 14) holds a
 * lock of its own, and a child made then would wait for it forever. */
static int forks(void *argument) {
  job *j = argument;
  submit(j, um_reactor_current());
  while (!atomic_load(&running)) um_fiber_sleep(um_after(1));
  CHECK_EQ(in_child(in_the_child, NULL), 0);
  return 0;
}

TEST(worker, a_forked_child_begins_with_no_threads) {
  if (UNDER_TSAN) SKIP("ThreadSanitizer does not start threads after fork from a process with several");
  job j = {.milliseconds = 300};
  CHECK_EQ(run_fibers(forks, &j), 0);
  CHECK(j.ended);
}
