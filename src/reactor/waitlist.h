/* Who waits for an object of sync.h: fibers of any reactor, and plain threads. */
#ifndef UM_WAITLIST_H
#define UM_WAITLIST_H

#include "reactor.h"

#include <bio_uring/sync.h>

typedef struct um_list_waiter {
  struct um_list_waiter *next, *previous;
  um_task *task;        /* NULL: a thread */
  um_reactor *reactor;
  um_post_node node;    /* carries the wake-up to another reactor */
  uint32_t word;        /* threads: the futex */
  bool granted;         /* under the lock: it has what it waited for */
  bool woken;           /* fibers: the wake-up has been delivered */
  bool at_head;         /* queue: where its item goes, or which is wanted */
  int status;           /* queue: 0, or why it was let go */
  void *item;           /* queue: to push, or popped */
} um_list_waiter;

void um__waitlist_lock(um_waitlist *list);
void um__waitlist_unlock(um_waitlist *list);
/* Whether the caller may wait at all: 0, UM_ENOTFIBER, -ETIMEDOUT. */
int um__waitlist_may_wait(um_time deadline);
/* Lock held: appends, releases it, waits. 0 when granted; otherwise it has left
 * the list. */
int um__waitlist_wait(um_waitlist *list, um_list_waiter *waiter, um_time deadline);
/* Lock held: takes the first waiter off; give it to um__waitlist_wake() after
 * releasing the lock. */
um_list_waiter *um__waitlist_grant(um_waitlist *list);
void um__waitlist_wake(um_list_waiter *waiter);

#endif
