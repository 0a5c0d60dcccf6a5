/* Tasks: parking, waking and running, whatever kind of fiber is behind them. */
#include "reactor.h"

static void queue_push(um_task_queue *queue, um_task *task) {
  task->next = NULL;
  if (queue->last) queue->last->next = task;
  else queue->first = task;
  queue->last = task;
}

static um_task *queue_pop(um_task_queue *queue) {
  um_task *task = queue->first;
  if (!task) return NULL;
  queue->first = task->next;
  if (!queue->first) queue->last = NULL;
  return task;
}

static void queue_append(um_task_queue *queue, um_task_queue *other) {
  if (!other->first) return;
  if (queue->last) queue->last->next = other->first;
  else queue->first = other->first;
  queue->last = other->last;
  other->first = other->last = NULL;
}

static void task_timeout(struct um_timer *timer) {
  um_task *task = (um_task *)((char *)timer - offsetof(um_task, timer));
  if (!task->shield) um__task_wake(task, -ETIMEDOUT);
}

int um_task_register(um_task *task, um_reactor *reactor, um_host *host) {
  int result = um__reactor_check(reactor);
  if (result == 0) result = um__timer_reserve(reactor);
  if (result < 0) return result;
  *task = (um_task){.reactor = reactor, .host = host, .state = UM_TASK_NEW};
  task->timer = (struct um_timer){.deadline = UM_FOREVER, .fire = task_timeout};
  reactor->tasks++;
  return 0;
}

void um_task_unregister(um_task *task) {
  um__timer_remove(task->reactor, &task->timer);
  um__timer_unreserve(task->reactor);
  task->reactor->tasks--;
}

void um__task_wake(um_task *task, int reason) {
  if (task->state != UM_TASK_PARKED && task->state != UM_TASK_NEW) return;
  UM_PROBE2(task_wake, task, reason);
  task->wake_reason = reason;
  task->state = UM_TASK_READY;
  task->since = task->reactor->looked;
  queue_push(&task->reactor->ready, task);
}

void um_task_wake(um_task *task) { um__task_wake(task, 0); }

void um__task_wake_for_share(um_task *task) {
  if (task->state != UM_TASK_PARKED && task->state != UM_TASK_NEW) return;
  task->state = UM_TASK_READY;
  task->since = task->reactor->looked;
  queue_push(&task->reactor->shares, task);
}

void um_task_cancel(um_task *task) {
  task->cancel_pending = task->cancelled = 1;
  if (task->state == UM_TASK_PARKED && !task->shield) um__task_wake(task, -ECANCELED);
}

um_task *um__task(void) {
  um_reactor *r = um__reactor();
  return r && !r->must_not_wait ? r->current : NULL;
}

um_task *um_task_current(void) { return um__task(); }

int um_task_wait(um_time deadline) {
  um_task *task = um__task();
  return task ? um__park(task->reactor, deadline) : UM_ENOTFIBER;
}

/* Whatever woke the task, a pending cancellation is taken by the wait it ends. */
static int take_reason(um_task *task, int host_result) {
  int reason = task->wake_reason;
  task->wake_reason = 0;
  if (host_result < 0 && !task->shield) return host_result;
  if (reason == -ECANCELED) task->cancel_pending = 0;
  return reason;
}

static int park_in(um_reactor *r, um_task *task, um_task_queue *queue) {
  if (queue) {
    task->state = UM_TASK_READY;
    queue_push(queue, task);
  } else {
    task->state = UM_TASK_PARKED;
  }
  task->since = r->looked;
  UM_PROBE2(task_park, task, task->waits_for);
  int result = task->host->park(task->host, task);
  r->current = task;
  task->state = UM_TASK_RUNNING;
  task->waits_for = NULL;
  task->turn_used = 0;
  return take_reason(task, result);
}

int um__park(um_reactor *r, um_time deadline) {
  um_task *task = r->current;
  if (unlikely(task->cancel_pending) && !task->shield) {
    task->cancel_pending = 0;
    return -ECANCELED;
  }
  um__timer_set(r, &task->timer, deadline);
  int reason = park_in(r, task, NULL);
  um__timer_clear(&task->timer);
  return reason;
}

void um__park_shielded(um_reactor *r) {
  um_task *task = r->current;
  task->shield++;
  park_in(r, task, NULL);
  task->shield--;
}

int um__yield(um_reactor *r, bool turn) {
  um_task *task = r->current;
  if (task->cancel_pending && !task->shield) {
    task->cancel_pending = 0;
    return -ECANCELED;
  }
  return park_in(r, task, turn ? &r->turns : &r->yielded);
}

void um__task_resume(um_reactor *r, um_task *task) {
  r->current = task;
  task->state = UM_TASK_RUNNING;
  UM_COUNT(r, switches, 1);
  UM_PROBE1(task_resume, task);
  task->host->resume(task->host, task);
  r->current = NULL;
}

/* At most max_switches, so that fibers waking each other cannot keep the loop
 * from the ring. Yielders wait until the ring was looked at. */
static bool run_ready(um_reactor *r) {
  queue_append(&r->ready, &r->yielded);
  bool any = r->ready.first != NULL;
  for (unsigned left = r->config.max_switches; left; left--) {
    um_task *task = queue_pop(&r->ready);
    if (!task) break;
    um__task_resume(r, task);
    if (unlikely(um__reactor_forked(r))) break; /* the others are the parent's to run */
  }
  return any;
}

/* Of those that used up their turn one goes at a time, so that a peer that keeps its
 * connection busy delays the others by one turn, not by all. */
static void run_turn(um_reactor *r) {
  um_task *task = queue_pop(&r->turns);
  if (task) um__task_resume(r, task);
}

static void run_shares(um_reactor *r) {
  um_task_queue shares = r->shares;
  r->shares = (um_task_queue){NULL, NULL};
  for (um_task *task; !um__reactor_forked(r) && (task = queue_pop(&shares));)
    um__task_resume(r, task);
}

/* Long work waits while there is short work, of which each step may be a tick: a request that
 * reads a file is not held up at each of them. But for so long at most. */
#define PATIENCE (UM_MS / 5)

static void run_long(um_reactor *r, bool others_ran) {
  if (!r->long_since) r->long_since = r->looked;
  if (others_ran && um_now() - r->long_since < PATIENCE) return;
  run_turn(r);
  run_shares(r);
  r->long_since = 0;
}

void um__tasks_run(um_reactor *r) {
  bool others_ran = run_ready(r);
  if (unlikely(um__reactor_forked(r))) return;
  if (r->turns.first || r->shares.first) run_long(r, others_ran);
}
