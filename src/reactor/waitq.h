/* Tasks of one reactor waiting for something, first come, first served.
 * Not for other threads: see sync.c for those. */
#ifndef UM_WAITQ_H
#define UM_WAITQ_H

#include "reactor.h"

typedef struct um_waiter {
  struct um_waiter *next, *previous;
  um_task *task;
  bool woken;
} um_waiter;

typedef struct um_waitq um_waitq; /* bio_uring/fiber.h: groups have one */

/* Parks the current task at the end of the queue. 0 when woken; otherwise why it
 * was not, and it has left the queue. A wake-up that raced with a deadline counts. */
int um__waitq_wait(um_waitq *queue, um_time deadline);
void um__waitq_wake_one(um_waitq *queue);
void um__waitq_wake_all(um_waitq *queue);

#endif
