#include "waitq.h"

static void unlink_waiter(um_waitq *queue, um_waiter *waiter) {
  if (waiter->previous) waiter->previous->next = waiter->next;
  else queue->first = waiter->next;
  if (waiter->next) waiter->next->previous = waiter->previous;
  else queue->last = waiter->previous;
}

int um__waitq_wait(um_waitq *queue, um_time deadline) {
  um_task *task = um__task();
  um_waiter self = {.task = task, .previous = queue->last};
  if (queue->last) queue->last->next = &self;
  else queue->first = &self;
  queue->last = &self;
  int reason = um__park(task->reactor, deadline);
  if (!self.woken) {
    unlink_waiter(queue, &self);
    return reason;
  }
  if (reason == -ECANCELED) task->cancel_pending = 1; /* the wake-up came first */
  return 0;
}

void um__waitq_wake_one(um_waitq *queue) {
  um_waiter *first = queue->first;
  if (!first) return;
  unlink_waiter(queue, first);
  first->woken = true;
  um__task_wake(first->task, 0);
}

void um__waitq_wake_all(um_waitq *queue) {
  while (queue->first) um__waitq_wake_one(queue);
}
