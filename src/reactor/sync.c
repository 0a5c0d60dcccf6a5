/* Mutex, event, semaphore: one list of waiters, whoever they are.
 *
 * A waiter is *granted* what it waits for while the list is locked, then woken: a
 * fiber of this reactor directly, one of another reactor by a post, a thread by
 * futex(2). Granted and woken are two steps: a waiter whose deadline passes in
 * between finds itself granted and stays until the wake-up has been delivered,
 * because that still refers to it. */
#include "waitlist.h"

#include <errno.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* ---- the list's own lock: 0 free, 1 held, 2 held and waited for ---- */

static long futex(uint32_t *word, int operation, uint32_t value, const struct timespec *until) {
  return syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, until, NULL,
                 FUTEX_BITSET_MATCH_ANY);
}

void um__waitlist_lock(um_waitlist *list) {
  uint32_t seen = 0;
  if (__atomic_compare_exchange_n(&list->lock, &seen, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
    return;
  while (__atomic_exchange_n(&list->lock, 2, __ATOMIC_ACQUIRE) != 0)
    futex(&list->lock, FUTEX_WAIT_BITSET, 2, NULL);
}

void um__waitlist_unlock(um_waitlist *list) {
  if (__atomic_exchange_n(&list->lock, 0, __ATOMIC_RELEASE) == 2)
    futex(&list->lock, FUTEX_WAKE, 1, NULL);
}

/* ---- waiting ---- */

static void append(um_waitlist *list, um_list_waiter *waiter) {
  um_list_waiter *last = list->last;
  waiter->previous = last;
  if (last) last->next = waiter;
  else list->first = waiter;
  list->last = waiter;
}

static void unlink_waiter(um_waitlist *list, um_list_waiter *waiter) {
  if (waiter->previous) waiter->previous->next = waiter->next;
  else list->first = waiter->next;
  if (waiter->next) waiter->next->previous = waiter->previous;
  else list->last = waiter->previous;
}

/* Withdraws from the list; false when it was granted already. */
static bool withdraw(um_waitlist *list, um_list_waiter *waiter) {
  um__waitlist_lock(list);
  bool granted = waiter->granted;
  if (!granted) unlink_waiter(list, waiter);
  um__waitlist_unlock(list);
  return !granted;
}

static int fiber_waits(um_waitlist *list, um_list_waiter *waiter, um_time deadline) {
  int reason = 0;
  while (!waiter->woken && reason == 0) reason = um__park(waiter->reactor, deadline);
  if (waiter->woken) {
    if (reason == -ECANCELED) waiter->task->cancel_pending = 1;
    return 0;
  }
  if (withdraw(list, waiter)) return reason;
  if (reason == -ECANCELED) waiter->task->cancel_pending = 1;
  while (!waiter->woken) um__park_shielded(waiter->reactor);
  return 0;
}

static int thread_waits(um_waitlist *list, um_list_waiter *waiter, um_time deadline) {
  struct timespec until = {deadline / UM_SECOND, deadline % UM_SECOND};
  bool timed = deadline != UM_FOREVER;
  while (!__atomic_load_n(&waiter->word, __ATOMIC_ACQUIRE)) {
    long result = futex(&waiter->word, FUTEX_WAIT_BITSET, 0, timed ? &until : NULL);
    if (result == 0 || errno != ETIMEDOUT) continue;
    if (withdraw(list, waiter)) return -ETIMEDOUT;
    timed = false; /* granted: the wake-up is on its way */
  }
  return 0;
}

/* A thread that runs a reactor must not block outside its fibers. */
int um__waitlist_may_wait(um_time deadline) {
  if (um__reactor() && !um__task()) return UM_ENOTFIBER;
  return deadline != UM_FOREVER && deadline <= um_now() ? -ETIMEDOUT : 0;
}

int um__waitlist_wait(um_waitlist *list, um_list_waiter *waiter, um_time deadline) {
  int result = um__waitlist_may_wait(deadline);
  if (result < 0) {
    um__waitlist_unlock(list);
    return result;
  }
  waiter->task = um__task();
  waiter->reactor = waiter->task ? waiter->task->reactor : NULL;
  append(list, waiter);
  um__waitlist_unlock(list);
  return waiter->task ? fiber_waits(list, waiter, deadline) : thread_waits(list, waiter, deadline);
}

/* ---- waking ---- */

um_list_waiter *um__waitlist_grant(um_waitlist *list) {
  um_list_waiter *waiter = list->first;
  if (!waiter) return NULL;
  unlink_waiter(list, waiter);
  waiter->next = NULL;
  waiter->granted = true;
  return waiter;
}

static int wake_task(void *argument) {
  um_list_waiter *waiter = argument;
  waiter->woken = true;
  um__task_wake(waiter->task, 0);
  return 0;
}

void um__waitlist_wake(um_list_waiter *waiter) {
  if (!waiter) return;
  if (!waiter->task) {
    /* From the store on the waiter may be gone; waking its address is harmless. */
    uint32_t *word = &waiter->word;
    __atomic_store_n(word, 1, __ATOMIC_RELEASE);
    futex(word, FUTEX_WAKE, 1, NULL);
  } else if (waiter->reactor == um__reactor()) {
    wake_task(waiter);
  } else {
    waiter->node = (um_post_node){.fn = wake_task, .arg = waiter};
    um_post_node_push(waiter->reactor, &waiter->node);
  }
}

/* ---- mutex: 0 free, 1 held, 2 held and perhaps waited for ---- */

void um_mutex_init(um_mutex *mutex) { memset(mutex, 0, sizeof *mutex); }

int um_mutex_trylock(um_mutex *mutex) {
  uint32_t seen = 0;
  return __atomic_compare_exchange_n(&mutex->state, &seen, 1, false, __ATOMIC_ACQUIRE,
                                     __ATOMIC_RELAXED) ? 0 : -EBUSY;
}

int um_mutex_lock(um_mutex *mutex, um_time deadline) {
  if (um_mutex_trylock(mutex) == 0) return 0;
  um__waitlist_lock(&mutex->waiters);
  if (__atomic_exchange_n(&mutex->state, 2, __ATOMIC_ACQUIRE) == 0) {
    um__waitlist_unlock(&mutex->waiters);
    return 0;
  }
  um_list_waiter self = {0};
  return um__waitlist_wait(&mutex->waiters, &self, deadline);
}

/* Handing over leaves the state at 2: the new owner's unlock looks at the list. */
void um_mutex_unlock(um_mutex *mutex) {
  uint32_t seen = 1;
  if (__atomic_compare_exchange_n(&mutex->state, &seen, 0, false, __ATOMIC_RELEASE,
                                  __ATOMIC_RELAXED))
    return;
  um__waitlist_lock(&mutex->waiters);
  um_list_waiter *next = um__waitlist_grant(&mutex->waiters);
  if (!next) __atomic_store_n(&mutex->state, 0, __ATOMIC_RELEASE);
  um__waitlist_unlock(&mutex->waiters);
  um__waitlist_wake(next);
}

/* ---- event ---- */

void um_event_init(um_event *event) { memset(event, 0, sizeof *event); }

void um_event_set(um_event *event) {
  um__waitlist_lock(&event->waiters);
  __atomic_store_n(&event->set, 1, __ATOMIC_RELEASE);
  um_list_waiter *all = NULL, **end = &all;
  for (um_list_waiter *waiter; (waiter = um__waitlist_grant(&event->waiters)); end = &waiter->next)
    *end = waiter;
  um__waitlist_unlock(&event->waiters);
  for (um_list_waiter *next; all; all = next) {
    next = all->next;
    um__waitlist_wake(all);
  }
}

void um_event_reset(um_event *event) { __atomic_store_n(&event->set, 0, __ATOMIC_RELEASE); }

/* Under the lock even when it is set: whoever sets it is through with it then, and the
 * caller may let it go. */
int um_event_wait(um_event *event, um_time deadline) {
  um__waitlist_lock(&event->waiters);
  if (__atomic_load_n(&event->set, __ATOMIC_ACQUIRE)) {
    um__waitlist_unlock(&event->waiters);
    return 0;
  }
  um_list_waiter self = {0};
  return um__waitlist_wait(&event->waiters, &self, deadline);
}

/* ---- semaphore ---- */

void um_semaphore_init(um_semaphore *semaphore, uint64_t value) {
  memset(semaphore, 0, sizeof *semaphore);
  semaphore->value = value;
}

int um_semaphore_acquire(um_semaphore *semaphore, um_time deadline) {
  um__waitlist_lock(&semaphore->waiters);
  if (semaphore->value) {
    semaphore->value--;
    um__waitlist_unlock(&semaphore->waiters);
    return 0;
  }
  um_list_waiter self = {0};
  return um__waitlist_wait(&semaphore->waiters, &self, deadline);
}

void um_semaphore_release(um_semaphore *semaphore) {
  um__waitlist_lock(&semaphore->waiters);
  um_list_waiter *next = um__waitlist_grant(&semaphore->waiters);
  if (!next) semaphore->value++;
  um__waitlist_unlock(&semaphore->waiters);
  um__waitlist_wake(next);
}
