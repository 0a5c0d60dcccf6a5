/* Mutex, event, semaphore and queue between the fibers of one reactor. */
#include "harness.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

SUITE(sync);

#define HOLDERS 8

typedef struct arena {
  um_mutex mutex;
  um_event event;
  um_semaphore semaphore;
  um_queue *queue;
  int order[HOLDERS * 4], count, inside;
} arena;

typedef struct player {
  arena *a;
  int index;
  um_time deadline;
} player;

static int locks(void *argument) {
  player *p = argument;
  int result = um_mutex_lock(&p->a->mutex, p->deadline);
  if (result < 0) return result;
  CHECK_EQ(p->a->inside++, 0);
  p->a->order[p->a->count++] = p->index;
  CHECK_EQ(um_fiber_yield(), 0);
  p->a->inside--;
  um_mutex_unlock(&p->a->mutex);
  return 0;
}

static int mutex_fifo(void *argument) {
  arena a = {.count = 0};
  player p[HOLDERS];
  um_fiber *fibers[HOLDERS];
  (void)argument;
  um_mutex_init(&a.mutex);
  CHECK_EQ(um_mutex_trylock(&a.mutex), 0);
  CHECK_EQ(um_mutex_trylock(&a.mutex), -EBUSY);
  for (int i = 0; i < HOLDERS; i++) {
    p[i] = (player){&a, i, i == 3 ? um_after(1) : UM_FOREVER};
    fibers[i] = spawn(locks, &p[i]);
  }
  yield_times(2);
  CHECK_EQ(um_fiber_sleep(um_after(3)), 0);
  CHECK_EQ(join(fibers[3]), -ETIMEDOUT);
  um_fiber_cancel(fibers[5]);
  CHECK_EQ(join(fibers[5]), -ECANCELED);
  CHECK_EQ(um_mutex_lock(&a.mutex, um_after(1)), -ETIMEDOUT); /* not recursive */
  CHECK_EQ(um_mutex_lock(&a.mutex, um_now() - 1), -ETIMEDOUT);
  um_mutex_unlock(&a.mutex);
  CHECK_EQ(um_mutex_trylock(&a.mutex), -EBUSY); /* handed over: nobody barges in */
  for (int i = 0; i < HOLDERS; i++)
    if (i != 3 && i != 5) CHECK_EQ(join(fibers[i]), 0);
  const int expected[] = {0, 1, 2, 4, 6, 7};
  CHECK_EQ(a.count, 6);
  CHECK(!memcmp(a.order, expected, sizeof expected));
  CHECK_EQ(um_mutex_trylock(&a.mutex), 0);
  um_mutex_unlock(&a.mutex);
  return 0;
}

TEST(sync, mutex_is_first_come_first_served) { run_fibers(mutex_fifo, NULL); }

/* Granted and cancelled in the same turn: the lock is had, the cancellation stays. */
static int locks_then_checks(void *argument) {
  player *p = argument;
  int result = um_mutex_lock(&p->a->mutex, p->deadline);
  if (result == 0) {
    p->a->order[p->a->count++] = um_fiber_yield();
    um_mutex_unlock(&p->a->mutex);
  }
  return result;
}

static int races(void *argument) {
  arena a = {.count = 0};
  (void)argument;
  um_mutex_init(&a.mutex);
  for (int how = 0; how < 2; how++) {
    player p = {&a, 0, UM_FOREVER};
    CHECK_EQ(um_mutex_lock(&a.mutex, UM_FOREVER), 0);
    um_fiber *fiber = spawn(locks_then_checks, &p);
    yield_times(1);
    if (how) um_fiber_cancel(fiber);
    um_mutex_unlock(&a.mutex);
    if (!how) um_fiber_cancel(fiber);
    CHECK_EQ(join(fiber), 0);
    CHECK_EQ(a.order[how], -ECANCELED);
    CHECK_EQ(um_mutex_trylock(&a.mutex), 0); /* not lost */
    um_mutex_unlock(&a.mutex);
  }
  return 0;
}

TEST(sync, a_grant_that_races_with_a_cancellation_is_kept) { run_fibers(races, NULL); }

/* Deadlines that pass while grants are made: nobody holds it twice, it is never lost. */
static int hurried(void *argument) {
  player *p = argument;
  int got = 0;
  for (int i = 0; i < 200; i++) {
    int result = um_mutex_lock(&p->a->mutex, um_now() + (i % 7) * 10000);
    CHECK(result == 0 || result == -ETIMEDOUT);
    if (result < 0) continue;
    CHECK_EQ(p->a->inside++, 0);
    if (i % 3 == 0) CHECK_EQ(um_fiber_yield(), 0);
    p->a->inside--;
    um_mutex_unlock(&p->a->mutex);
    got++;
  }
  return got;
}

static int hurry(void *argument) {
  arena a = {.count = 0};
  player p[HOLDERS];
  um_fiber *fibers[HOLDERS];
  (void)argument;
  um_mutex_init(&a.mutex);
  for (int i = 0; i < HOLDERS; i++) {
    p[i] = (player){&a, i, 0};
    fibers[i] = spawn(hurried, &p[i]);
  }
  int got = 0;
  for (int i = 0; i < HOLDERS; i++) got += join(fibers[i]);
  CHECK(got > 0);
  CHECK_EQ(um_mutex_trylock(&a.mutex), 0);
  um_mutex_unlock(&a.mutex);
  return 0;
}

TEST(sync, deadlines_racing_with_grants) { run_fibers(hurry, NULL); }

/* ---- event ---- */

static int waits_event(void *argument) {
  player *p = argument;
  int result = um_event_wait(&p->a->event, p->deadline);
  if (result == 0) p->a->order[p->a->count++] = p->index;
  return result;
}

static int events(void *argument) {
  arena a = {.count = 0};
  player p[HOLDERS];
  um_fiber *fibers[HOLDERS];
  (void)argument;
  um_event_init(&a.event);
  CHECK_EQ(um_event_wait(&a.event, um_now() - 1), -ETIMEDOUT);
  CHECK_EQ(um_event_wait(&a.event, um_after(1)), -ETIMEDOUT);
  for (int round = 0; round < 2; round++) {
    for (int i = 0; i < HOLDERS; i++) {
      p[i] = (player){&a, i, UM_FOREVER};
      fibers[i] = spawn(waits_event, &p[i]);
    }
    yield_times(1);
    um_fiber_cancel(fibers[2]);
    CHECK_EQ(join(fibers[2]), -ECANCELED);
    um_event_set(&a.event);
    um_event_set(&a.event);
    if (round) um_event_reset(&a.event); /* those that waited go nevertheless */
    for (int i = 0; i < HOLDERS; i++)
      if (i != 2) CHECK_EQ(join(fibers[i]), 0);
    CHECK_EQ(a.count, HOLDERS - 1);
    CHECK_EQ(um_event_wait(&a.event, um_now() - 1), round ? -ETIMEDOUT : 0);
    um_event_reset(&a.event);
    a.count = 0;
  }
  return 0;
}

TEST(sync, event_lets_everyone_through_until_reset) { run_fibers(events, NULL); }

/* ---- semaphore ---- */

static int acquires(void *argument) {
  player *p = argument;
  int result = um_semaphore_acquire(&p->a->semaphore, p->deadline);
  if (result == 0) p->a->order[p->a->count++] = p->index;
  return result;
}

static int semaphores(void *argument) {
  arena a = {.count = 0};
  player p[HOLDERS];
  um_fiber *fibers[HOLDERS];
  (void)argument;
  um_semaphore_init(&a.semaphore, 2);
  CHECK_EQ(um_semaphore_acquire(&a.semaphore, um_now() - 1), 0); /* there: a try succeeds */
  CHECK_EQ(um_semaphore_acquire(&a.semaphore, UM_FOREVER), 0);
  CHECK_EQ(um_semaphore_acquire(&a.semaphore, um_now() - 1), -ETIMEDOUT);
  for (int i = 0; i < HOLDERS; i++) {
    p[i] = (player){&a, i, i == 4 ? um_after(1) : UM_FOREVER};
    fibers[i] = spawn(acquires, &p[i]);
  }
  CHECK_EQ(join(fibers[4]), -ETIMEDOUT);
  um_fiber_cancel(fibers[0]);
  CHECK_EQ(join(fibers[0]), -ECANCELED);
  for (int i = 0; i < HOLDERS - 2; i++) um_semaphore_release(&a.semaphore);
  for (int i = 1; i < HOLDERS; i++)
    if (i != 4) CHECK_EQ(join(fibers[i]), 0);
  const int expected[] = {1, 2, 3, 5, 6, 7};
  CHECK(!memcmp(a.order, expected, sizeof expected));
  CHECK_EQ(um_semaphore_acquire(&a.semaphore, um_now() - 1), -ETIMEDOUT); /* exactly as many */
  um_semaphore_release(&a.semaphore);
  CHECK_EQ(um_semaphore_acquire(&a.semaphore, UM_FOREVER), 0);
  return 0;
}

TEST(sync, semaphore_counts_and_is_fair) { run_fibers(semaphores, NULL); }

/* ---- queue ---- */

static void *item(intptr_t value) { return (void *)value; }

static int queue_ends(void *argument) {
  um_queue *q;
  void *out = NULL;
  (void)argument;
  CHECK_EQ(um_queue_create(&q, 0), UM_ECONFIG);
  CHECK(q == NULL);
  CHECK_EQ(um_queue_create(&q, ((size_t)1 << 24) + 1), UM_ECONFIG);
  CHECK_EQ(um_queue_create(&q, 3), 0);
  CHECK_EQ(um_queue_pop(q, &out, um_now() - 1), -ETIMEDOUT);
  CHECK_EQ(um_queue_pop_tail(q, &out, um_after(1)), -ETIMEDOUT);
  CHECK_EQ(um_queue_push(q, item(1), um_now() - 1), 0);
  CHECK_EQ(um_queue_push(q, item(2), UM_FOREVER), 0);
  CHECK_EQ(um_queue_unshift(q, item(3), UM_FOREVER), 0);
  CHECK_EQ(um_queue_count(q), 3);
  CHECK_EQ(um_queue_push(q, item(4), um_now() - 1), -ETIMEDOUT);
  CHECK_EQ(um_queue_unshift(q, item(4), um_after(1)), -ETIMEDOUT);
  CHECK_EQ(um_queue_pop(q, &out, UM_FOREVER), 0);
  CHECK(out == item(3));
  CHECK_EQ(um_queue_pop_tail(q, &out, UM_FOREVER), 0);
  CHECK(out == item(2));
  for (intptr_t i = 0; i < 100; i++) { /* round and round, both ways */
    CHECK_EQ(i % 3 ? um_queue_push(q, item(i), UM_FOREVER) : um_queue_unshift(q, item(i), UM_FOREVER), 0);
    CHECK_EQ(i % 3 ? um_queue_pop_tail(q, &out, UM_FOREVER) : um_queue_pop(q, &out, UM_FOREVER), 0);
    CHECK(out == item(i));
  }
  um_queue_close(q);
  um_queue_close(q);
  CHECK_EQ(um_queue_push(q, item(9), UM_FOREVER), UM_ECLOSED);
  CHECK_EQ(um_queue_pop(q, &out, UM_FOREVER), 0); /* what was inside is still to be had */
  CHECK(out == item(1));
  CHECK_EQ(um_queue_pop(q, &out, UM_FOREVER), UM_ECLOSED);
  CHECK_EQ(um_queue_pop_tail(q, &out, um_now() - 1), UM_ECLOSED);
  CHECK_EQ(um_queue_count(q), 0);
  um_queue_destroy(q);
  return 0;
}

TEST(sync, queue_at_both_ends) { run_fibers(queue_ends, NULL); }

static int pushes(void *argument) {
  player *p = argument;
  return um_queue_push(p->a->queue, item(p->index), p->deadline);
}

static int pops(void *argument) {
  player *p = argument;
  void *out = NULL;
  int result = um_queue_pop(p->a->queue, &out, p->deadline);
  return result < 0 ? result : (int)(intptr_t)out;
}

static int queue_waiters(void *argument) {
  arena a = {.count = 0};
  player p[HOLDERS];
  um_fiber *fibers[HOLDERS];
  void *out;
  (void)argument;
  CHECK_EQ(um_queue_create(&a.queue, 1), 0);
  CHECK_EQ(um_queue_push(a.queue, item(99), UM_FOREVER), 0);
  for (int i = 0; i < HOLDERS; i++) {
    p[i] = (player){&a, i, UM_FOREVER};
    fibers[i] = spawn(pushes, &p[i]);
  }
  yield_times(1);
  um_fiber_cancel(fibers[1]); /* its item must not appear */
  CHECK_EQ(join(fibers[1]), -ECANCELED);
  const int expected[] = {99, 0, 2, 3, 4};
  for (int i = 0; i < 5; i++) {
    CHECK_EQ(um_queue_pop(a.queue, &out, UM_FOREVER), 0);
    CHECK(out == item(expected[i]));
  }
  um_queue_close(a.queue); /* 5 is inside; 6 and 7 wait with theirs */
  CHECK_EQ(join(fibers[6]), UM_ECLOSED);
  CHECK_EQ(join(fibers[7]), UM_ECLOSED);
  CHECK_EQ(um_queue_pop(a.queue, &out, UM_FOREVER), 0);
  CHECK(out == item(5));
  for (int i = 0; i < 6; i++)
    if (i != 1) CHECK_EQ(join(fibers[i]), 0);
  um_queue_destroy(a.queue);
  CHECK_EQ(um_queue_create(&a.queue, 2), 0);
  for (int i = 0; i < 4; i++) {
    p[i] = (player){&a, i, UM_FOREVER};
    fibers[i] = spawn(pops, &p[i]);
  }
  yield_times(1);
  CHECK_EQ(um_queue_push(a.queue, item(5), UM_FOREVER), 0); /* from hand to hand */
  um_fiber_cancel(fibers[0]);                               /* granted already */
  um_fiber_cancel(fibers[1]);
  CHECK_EQ(um_queue_count(a.queue), 0);
  CHECK_EQ(join(fibers[0]), 5);
  CHECK_EQ(join(fibers[1]), -ECANCELED);
  um_queue_close(a.queue);
  CHECK_EQ(join(fibers[2]), UM_ECLOSED);
  CHECK_EQ(join(fibers[3]), UM_ECLOSED);
  um_queue_destroy(a.queue);
  return 0;
}

TEST(sync, queue_with_waiters_on_either_side) { run_fibers(queue_waiters, NULL); }

/* ---- outside fibers ---- */

static int post_locks(void *argument) {
  arena *a = argument;
  void *out;
  a->order[0] = um_mutex_lock(&a->mutex, UM_FOREVER); /* held: a loop must not block */
  a->order[1] = um_event_wait(&a->event, UM_FOREVER);
  a->order[2] = um_semaphore_acquire(&a->semaphore, UM_FOREVER);
  a->order[3] = um_queue_pop(a->queue, &out, UM_FOREVER);
  um_event_set(&a->event); /* but it may wake */
  return 0;
}

static int posts_to_itself(void *argument) {
  arena *a = argument;
  CHECK_EQ(um_mutex_lock(&a->mutex, UM_FOREVER), 0);
  CHECK_EQ(um_post(um_reactor_current(), post_locks, a), 0);
  CHECK_EQ(um_event_wait(&a->event, UM_FOREVER), 0);
  um_mutex_unlock(&a->mutex);
  return 0;
}

TEST(sync, a_callback_must_not_wait) {
  arena a = {.count = 0};
  um_mutex_init(&a.mutex);
  um_event_init(&a.event);
  um_semaphore_init(&a.semaphore, 0);
  CHECK_EQ(um_queue_create(&a.queue, 1), 0);
  run_fibers(posts_to_itself, &a);
  for (int i = 0; i < 4; i++) CHECK_EQ(a.order[i], UM_ENOTFIBER);
  um_queue_destroy(a.queue);
}

/* ---- no system call where nobody waits ---- */

static int uncontended(void *argument) {
  arena *a = argument;
  void *out;
  for (int i = 0; i < 100; i++) {
    if (um_mutex_lock(&a->mutex, UM_FOREVER)) return 1;
    um_mutex_unlock(&a->mutex);
    um_event_set(&a->event);
    if (um_event_wait(&a->event, UM_FOREVER)) return 2;
    um_event_reset(&a->event);
    um_semaphore_release(&a->semaphore);
    if (um_semaphore_acquire(&a->semaphore, UM_FOREVER)) return 3;
    if (um_queue_push(a->queue, a, UM_FOREVER) || um_queue_pop(a->queue, &out, UM_FOREVER)) return 4;
  }
  return 0;
}

/* futex(2) becomes fatal. */
static int forbid_futex(void) {
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_futex, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return -1;
  return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static int uncontended_without_futex(void *argument) {
  arena a = {.count = 0};
  (void)argument;
  um_mutex_init(&a.mutex);
  um_event_init(&a.event);
  um_semaphore_init(&a.semaphore, 0);
  if (um_queue_create(&a.queue, 4) < 0) return 5;
  if (forbid_futex() < 0) return 77;
  int result = uncontended(&a);
  um_queue_destroy(a.queue);
  return result;
}

TEST(sync, uncontended_makes_no_futex_call) {
  if (UNDER_ASAN || UNDER_TSAN || under_valgrind()) SKIP("the tool makes futex calls of its own");
  int result = in_child(uncontended_without_futex, NULL);
  if (result == 77) SKIP("no seccomp filters here");
  CHECK_EQ(result, 0);
}
