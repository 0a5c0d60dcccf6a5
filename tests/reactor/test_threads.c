/* Between reactors on two threads, and plain threads: sync and posts under stress.
 * Every test here is for the thread sanitizer as well. */
#include "harness.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

SUITE(threads);

/* ---- a reactor in a thread of its own ---- */

typedef struct worker {
  pthread_t thread;
  um_fiber_fn main;
  void *argument;
  um_reactor *reactor;
  atomic_bool ready;
} worker;

static void *worker_runs(void *argument) {
  worker *w = argument;
  w->reactor = reactor_new(NULL);
  CHECK_EQ(um_fiber_spawn(w->reactor, NULL, w->main, w->argument, NULL), 0);
  atomic_store(&w->ready, true);
  reactor_finish(w->reactor);
  return NULL;
}

static void worker_start(worker *w, um_fiber_fn main, void *argument) {
  w->main = main;
  w->argument = argument;
  atomic_init(&w->ready, false);
  CHECK_EQ(pthread_create(&w->thread, NULL, worker_runs, w), 0);
}

static void worker_join(worker *w) { CHECK_EQ(pthread_join(w->thread, NULL), 0); }

/* ---- a counter under a mutex, from everywhere ---- */

typedef struct shared {
  um_mutex mutex;
  um_semaphore semaphore;
  um_event event;
  um_queue *queue;
  long counter; /* not atomic: the mutex must do */
  int inside, rounds, given_up;
  atomic_long pushed, popped, sum_in, sum_out, count;
} shared;

static void add_under_lock(shared *s, int i) {
  um_time deadline = i % 5 ? UM_FOREVER : um_now() + (i % 11) * 5000;
  int result = um_mutex_lock(&s->mutex, deadline);
  CHECK(result == 0 || (result == -ETIMEDOUT && deadline != UM_FOREVER));
  if (result < 0) {
    atomic_fetch_add(&s->count, 1);
    return;
  }
  CHECK_EQ(s->inside++, 0);
  s->counter++;
  if (i % 17 == 0) um_fiber_yield(); /* holding it, where there is a fiber */
  CHECK_EQ(--s->inside, 0);
  um_mutex_unlock(&s->mutex);
}

static int fiber_adds(void *argument) {
  shared *s = argument;
  for (int i = 0; i < s->rounds; i++) add_under_lock(s, i);
  return 0;
}

static void *thread_adds(void *argument) {
  fiber_adds(argument);
  return NULL;
}

static int four_fibers_add(void *argument) {
  um_fiber *fibers[4];
  for (int i = 0; i < 4; i++) fibers[i] = spawn(fiber_adds, argument);
  for (int i = 0; i < 4; i++) join(fibers[i]);
  return 0;
}

TEST(threads, mutex_between_two_reactors_and_two_threads) {
  shared s = {.rounds = scaled(3000)};
  worker w[2];
  pthread_t t[2];
  um_mutex_init(&s.mutex);
  for (int i = 0; i < 2; i++) worker_start(&w[i], four_fibers_add, &s);
  for (int i = 0; i < 2; i++) CHECK_EQ(pthread_create(&t[i], NULL, thread_adds, &s), 0);
  for (int i = 0; i < 2; i++) worker_join(&w[i]);
  for (int i = 0; i < 2; i++) pthread_join(t[i], NULL);
  CHECK_EQ(s.counter + atomic_load(&s.count), 10L * s.rounds);
  CHECK_EQ(um_mutex_trylock(&s.mutex), 0);
}

/* ---- cancellation racing with grants from another thread ---- */

static int locks_until_told(void *argument) {
  shared *s = argument;
  for (int i = 0; i < s->rounds; i++) {
    int result = um_mutex_lock(&s->mutex, UM_FOREVER);
    CHECK(result == 0 || result == -ECANCELED);
    if (result < 0) continue;
    s->counter++;
    um_mutex_unlock(&s->mutex);
  }
  return 0;
}

static int cancels_all_the_time(void *argument) {
  shared *s = argument;
  um_fiber *victims[3];
  for (int i = 0; i < 3; i++) victims[i] = spawn(locks_until_told, s);
  for (int i = 0; i < s->rounds; i++) {
    um_fiber_cancel(victims[i % 3]); /* joined below: the handles are valid */
    CHECK_EQ(um_fiber_yield(), 0);
  }
  for (int i = 0; i < 3; i++) join(victims[i]);
  return 0;
}

TEST(threads, cancellations_racing_with_grants) {
  shared s = {.rounds = scaled(3000)};
  worker w[2];
  um_mutex_init(&s.mutex);
  for (int i = 0; i < 2; i++) worker_start(&w[i], cancels_all_the_time, &s);
  for (int i = 0; i < 2; i++) worker_join(&w[i]);
  CHECK(s.counter > 0);
  CHECK_EQ(um_mutex_trylock(&s.mutex), 0); /* no grant was lost */
}

/* The grant was made by another thread and its wake-up is still on its way when the fiber
 * is cancelled: it has the lock, and the cancellation stays pending. */
static void *unlocks(void *argument) {
  um_mutex_unlock(&((shared *)argument)->mutex);
  return NULL;
}

static int waits_for_grant(void *argument) {
  shared *s = argument;
  CHECK_EQ(um_mutex_lock(&s->mutex, UM_FOREVER), 0);
  um_mutex_unlock(&s->mutex);
  return um_fiber_yield();
}

static int cancels_granted(void *argument) {
  shared *s = argument;
  pthread_t thread;
  for (int i = 0; i < 20; i++) {
    CHECK_EQ(um_mutex_lock(&s->mutex, UM_FOREVER), 0);
    um_fiber *fiber = spawn(waits_for_grant, s);
    yield_times(1);
    CHECK_EQ(pthread_create(&thread, NULL, unlocks, s), 0);
    pthread_join(thread, NULL); /* blocks the loop: the wake-up cannot be delivered before */
    um_fiber_cancel(fiber);
    CHECK_EQ(join(fiber), -ECANCELED);
  }
  return 0;
}

TEST(threads, cancelled_between_grant_and_wake_up) {
  shared s = {.rounds = 0};
  um_mutex_init(&s.mutex);
  run_fibers(cancels_granted, &s);
  CHECK_EQ(um_mutex_trylock(&s.mutex), 0);
}

/* ---- semaphore: never more inside than its value ---- */

static int enters(void *argument) {
  shared *s = argument;
  for (int i = 0; i < s->rounds; i++) {
    int result = um_semaphore_acquire(&s->semaphore, i % 4 ? UM_FOREVER : um_now() + 20000);
    if (result == -ETIMEDOUT) continue;
    CHECK_EQ(result, 0);
    CHECK(atomic_fetch_add(&s->count, 1) < 3);
    if (i % 9 == 0) um_fiber_yield();
    atomic_fetch_sub(&s->count, 1);
    um_semaphore_release(&s->semaphore);
  }
  return 0;
}

static void *thread_enters(void *argument) {
  enters(argument);
  return NULL;
}

static int five_fibers_enter(void *argument) {
  um_fiber *fibers[5];
  for (int i = 0; i < 5; i++) fibers[i] = spawn(enters, argument);
  for (int i = 0; i < 5; i++) join(fibers[i]);
  return 0;
}

TEST(threads, semaphore_between_reactors_and_threads) {
  shared s = {.rounds = scaled(2000)};
  worker w[2];
  pthread_t t[2];
  um_semaphore_init(&s.semaphore, 3);
  for (int i = 0; i < 2; i++) worker_start(&w[i], five_fibers_enter, &s);
  for (int i = 0; i < 2; i++) CHECK_EQ(pthread_create(&t[i], NULL, thread_enters, &s), 0);
  for (int i = 0; i < 2; i++) worker_join(&w[i]);
  for (int i = 0; i < 2; i++) pthread_join(t[i], NULL);
  for (int i = 0; i < 3; i++) CHECK_EQ(um_semaphore_acquire(&s.semaphore, um_now() - 1), 0);
  CHECK_EQ(um_semaphore_acquire(&s.semaphore, um_now() - 1), -ETIMEDOUT);
}

/* ---- queue: every item exactly once ---- */

static int produces(void *argument) {
  shared *s = argument;
  for (int i = 0; i < s->rounds; i++) {
    long value = atomic_fetch_add(&s->pushed, 1) + 1;
    int result;
    do result = i % 2 ? um_queue_push(s->queue, (void *)value, UM_FOREVER)
                      : um_queue_unshift(s->queue, (void *)value, um_now() + 30000);
    while (result == -ETIMEDOUT);
    CHECK_EQ(result, 0);
    atomic_fetch_add(&s->sum_in, value);
  }
  return 0;
}

static int consumes(void *argument) {
  shared *s = argument;
  for (int i = 0;; i++) {
    void *out = NULL;
    int result = i % 3 ? um_queue_pop(s->queue, &out, UM_FOREVER)
                       : um_queue_pop_tail(s->queue, &out, um_now() + 30000);
    if (result == -ETIMEDOUT) continue;
    if (result == UM_ECLOSED) return 0;
    CHECK_EQ(result, 0);
    atomic_fetch_add(&s->popped, 1);
    atomic_fetch_add(&s->sum_out, (long)out);
  }
}

static void *thread_produces(void *argument) {
  produces(argument);
  return NULL;
}

static void *thread_consumes(void *argument) {
  consumes(argument);
  return NULL;
}

static int three_consume(void *argument) {
  um_fiber *fibers[3];
  for (int i = 0; i < 3; i++) fibers[i] = spawn(consumes, argument);
  for (int i = 0; i < 3; i++) join(fibers[i]);
  return 0;
}

static int three_produce(void *argument) {
  um_fiber *fibers[3];
  for (int i = 0; i < 3; i++) fibers[i] = spawn(produces, argument);
  for (int i = 0; i < 3; i++) join(fibers[i]);
  return 0;
}

TEST(threads, queue_between_reactors_and_threads) {
  shared s = {.rounds = scaled(3000)};
  worker producers, consumers;
  pthread_t t[2];
  CHECK_EQ(um_queue_create(&s.queue, 8), 0);
  worker_start(&producers, three_produce, &s);
  worker_start(&consumers, three_consume, &s);
  CHECK_EQ(pthread_create(&t[0], NULL, thread_produces, &s), 0);
  CHECK_EQ(pthread_create(&t[1], NULL, thread_consumes, &s), 0);
  worker_join(&producers);
  pthread_join(t[0], NULL);
  um_queue_close(s.queue);
  worker_join(&consumers);
  pthread_join(t[1], NULL);
  CHECK_EQ(atomic_load(&s.popped), 4L * s.rounds);
  CHECK_EQ(atomic_load(&s.sum_in), atomic_load(&s.sum_out));
  um_queue_destroy(s.queue);
}

/* ---- an event, as the last thing a reactor waits for ---- */

/* The reactor is gone as soon as its fiber was woken, and so is the event: whoever sets it
 * must not touch either any more. Something else keeps the loop awake, so that the
 * wake-up is seen before the setter's system call. */
typedef struct short_life {
  um_event *event;
  atomic_bool waiting;
} short_life;

static int waits_once(void *argument) {
  short_life *l = argument;
  atomic_store(&l->waiting, true);
  CHECK_EQ(um_event_wait(l->event, UM_FOREVER), 0);
  return 0;
}

static int keeps_awake(void *argument) {
  while (um_fiber_join(argument, NULL, um_now() - 1) == -ETIMEDOUT) um_fiber_yield();
  return 0;
}

static int short_main(void *argument) {
  um_fiber *fiber = spawn(waits_once, argument);
  return keeps_awake(fiber);
}

static void *short_reactor(void *argument) {
  short_life *l = argument;
  um_event_init(l->event);
  um_reactor *r = reactor_new(&(um_reactor_config){.entries = 8, .buffer_count = 4, .buffer_size = 4096});
  CHECK_EQ(um_fiber_spawn(r, NULL, short_main, l, NULL), 0);
  CHECK_EQ(um_reactor_run(r), 0);
  CHECK_EQ(um_reactor_destroy(r), 0);
  free(l->event);
  l->event = NULL;
  return NULL;
}

TEST(threads, a_reactor_may_go_as_soon_as_its_last_fiber_was_woken) {
  for (int i = 0; i < scaled(300); i++) {
    short_life l = {.event = malloc(sizeof(um_event))};
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, short_reactor, &l), 0);
    while (!atomic_load(&l.waiting)) sched_yield();
    for (int spin = 0; spin < i % 50; spin++) sched_yield();
    um_event_set(l.event);
    pthread_join(thread, NULL);
  }
}

static void *sets_event(void *argument) {
  um_event_set(argument);
  return NULL;
}

TEST(threads, an_event_may_go_as_soon_as_its_wait_returned) {
  for (int i = 0; i < scaled(2000); i++) {
    um_event *event = malloc(sizeof *event);
    pthread_t thread;
    um_event_init(event);
    CHECK_EQ(pthread_create(&thread, NULL, sets_event, event), 0);
    while (um_event_wait(event, um_now() - 1) != 0) {}
    memset(event, 0xff, sizeof *event); /* an unlock now would be seen as one by others */
    free(event);
    pthread_join(thread, NULL);
  }
}

/* ---- threads wait with deadlines ---- */

static void *thread_times_out(void *argument) {
  shared *s = argument;
  void *out;
  CHECK_EQ(um_mutex_lock(&s->mutex, um_after(2)), -ETIMEDOUT);
  CHECK_EQ(um_semaphore_acquire(&s->semaphore, um_after(2)), -ETIMEDOUT);
  CHECK_EQ(um_event_wait(&s->event, um_after(2)), -ETIMEDOUT);
  CHECK_EQ(um_queue_pop(s->queue, &out, um_after(2)), -ETIMEDOUT);
  CHECK_EQ(um_mutex_lock(&s->mutex, 0), -ETIMEDOUT);
  return NULL;
}

TEST(threads, a_plain_threads_deadlines) {
  shared s = {.rounds = 0};
  pthread_t thread;
  um_mutex_init(&s.mutex);
  um_semaphore_init(&s.semaphore, 0);
  um_event_init(&s.event);
  CHECK_EQ(um_queue_create(&s.queue, 1), 0);
  CHECK_EQ(um_mutex_lock(&s.mutex, UM_FOREVER), 0); /* a plain thread's lock, uncontended */
  CHECK_EQ(pthread_create(&thread, NULL, thread_times_out, &s), 0);
  pthread_join(thread, NULL);
  um_mutex_unlock(&s.mutex);
  CHECK_EQ(um_mutex_trylock(&s.mutex), 0);
  um_queue_destroy(s.queue);
}

/* ---- posts ---- */

#define POSTERS 4

typedef struct post_state {
  um_reactor *reactor;
  int rounds;
  um_event done;
  long last[POSTERS], total;
  atomic_int posters_left;
} post_state;

typedef struct posted {
  post_state *state;
  int poster;
  long number;
} posted;

static int takes_post(void *argument) {
  posted *p = argument;
  post_state *s = p->state;
  CHECK(um_task_current() == NULL);
  CHECK(um_reactor_current() == s->reactor);
  CHECK_EQ(p->number, s->last[p->poster] + 1); /* in each poster's order */
  s->last[p->poster] = p->number;
  s->total++;
  if (s->total == (long)POSTERS * s->rounds) um_event_set(&s->done);
  int result = p->number % 10 ? 0 : -EIO;
  free(p);
  return result;
}

typedef struct poster {
  post_state *state;
  int index;
} poster;

static void *posts_many(void *argument) {
  poster *p = argument;
  for (long i = 1; i <= p->state->rounds; i++) {
    posted *item = malloc(sizeof *item);
    CHECK(item != NULL);
    *item = (posted){p->state, p->index, i};
    CHECK_EQ(um_post(p->state->reactor, takes_post, item), 0);
  }
  return NULL;
}

static int fiber_posts_many(void *argument) {
  posts_many(argument);
  return 0;
}

static int waits_for_done(void *argument) { return um_event_wait(&((post_state *)argument)->done, UM_FOREVER); }

TEST(threads, posts_from_many_threads_and_another_reactor) {
  post_state s = {.rounds = scaled(5000)};
  poster posters[POSTERS];
  pthread_t threads[POSTERS - 1];
  worker other;
  um_event_init(&s.done);
  s.reactor = reactor_new(NULL);
  CHECK_EQ(um_fiber_spawn(s.reactor, NULL, waits_for_done, &s, NULL), 0);
  for (int i = 0; i < POSTERS; i++) posters[i] = (poster){&s, i};
  for (int i = 0; i < POSTERS - 1; i++) CHECK_EQ(pthread_create(&threads[i], NULL, posts_many, &posters[i]), 0);
  worker_start(&other, fiber_posts_many, &posters[POSTERS - 1]); /* by ring messages */
  CHECK_EQ(um_reactor_run(s.reactor), 0);
  for (int i = 0; i < POSTERS - 1; i++) pthread_join(threads[i], NULL);
  worker_join(&other);
  CHECK_EQ(s.total, (long)POSTERS * s.rounds);
  um_metrics m = metrics_of(s.reactor);
  CHECK(m.posts >= (uint64_t)s.total); /* the event's own wake-up may be one more */
  CHECK_EQ(m.post_errors, POSTERS * (s.rounds / 10));
  CHECK(m.wakes <= m.posts);
  reactor_finish(s.reactor);
}

static int counts_post(void *argument) {
  ++*(int *)argument;
  return 0;
}

TEST(threads, posts_before_the_loop_runs_are_one_wake_up) {
  int count = 0;
  um_event done;
  um_event_init(&done);
  um_event_set(&done);
  um_reactor *r = reactor_new(NULL);
  for (int i = 0; i < 1000; i++) CHECK_EQ(um_post(r, counts_post, &count), 0);
  post_state s = {.reactor = r};
  um_event_init(&s.done);
  um_event_set(&s.done);
  CHECK_EQ(um_fiber_spawn(r, NULL, waits_for_done, &s, NULL), 0);
  CHECK_EQ(um_reactor_run(r), 0);
  CHECK_EQ(count, 1000);
  CHECK(metrics_of(r).wakes <= 1);
  reactor_finish(r);
}

/* ---- metrics ---- */

typedef struct watched {
  um_reactor *reactor;
  atomic_bool stop;
} watched;

static void *reads_metrics(void *argument) {
  watched *w = argument;
  uint64_t before = 0;
  while (!atomic_load(&w->stop)) {
    um_metrics m = metrics_of(w->reactor);
    CHECK(m.switches >= before); /* counters never go back */
    before = m.switches;
  }
  return NULL;
}

static int churns(void *argument) {
  for (int i = 0; i < scaled(20000); i++) {
    if (i % 50 == 0) CHECK_EQ(um_fiber_sleep(um_now() + 1000), 0);
    else CHECK_EQ(um_fiber_yield(), 0);
  }
  atomic_store(&((watched *)argument)->stop, true);
  return 0;
}

TEST(threads, metrics_are_read_while_it_runs) {
  pthread_t thread;
  watched w = {.reactor = reactor_new(NULL)};
  CHECK_EQ(um_fiber_spawn(w.reactor, NULL, churns, &w, NULL), 0);
  CHECK_EQ(pthread_create(&thread, NULL, reads_metrics, &w), 0);
  CHECK_EQ(um_reactor_run(w.reactor), 0);
  pthread_join(thread, NULL);
  reactor_finish(w.reactor);
}
