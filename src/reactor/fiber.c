/* The library's own fibers: one kind of task, hosted by an assembly switch.
 *
 * A um_fiber lives at the top of its own stack, so that an idle fiber costs one
 * page. A joinable fiber's stack is kept until it is joined. */
#include "alloc.h"
#include "reactor.h"
#include "waitq.h"

#include <string.h>

struct um_fiber {
  um_task task; /* first: a task of this host is a fiber */
  um_context context;
  um_stack *stack;
  um_fiber_fn fn;
  void *arg;
  const char *name;
  void **locals;
  um_group *group;
  um_fiber *group_next, *group_previous;
  LIST_ENTRY(um_fiber) link;
  um_waitq joiners;
  int result;
  bool ended, joinable;
};

static int host_park(um_host *host, um_task *task) {
  (void)host;
  um__context_switch(&((um_fiber *)task)->context, &task->reactor->loop, false);
  return 0;
}

static void fiber_free(um_fiber *fiber) {
  um__context_free(&fiber->context);
  um__stack_give(fiber->stack);
}

static void host_resume(um_host *host, um_task *task) {
  (void)host;
  um_fiber *fiber = (um_fiber *)task;
  um__context_switch(&task->reactor->loop, &fiber->context, false);
  if (fiber->ended && !fiber->joinable) fiber_free(fiber);
}

static um_host fiber_host = {host_park, host_resume};

/* ---- locals ---- */

static struct {
  atomic_int count;
  void (*destroy[UM_LOCAL_KEYS])(void *);
} local_keys;

int um_local_create(void (*destroy)(void *)) {
  int key = atomic_load(&local_keys.count);
  do
    if (key == UM_LOCAL_KEYS) return -EAGAIN;
  while (!atomic_compare_exchange_weak(&local_keys.count, &key, key + 1));
  local_keys.destroy[key] = destroy;
  return key;
}

void *um_local_get(int key) {
  um_fiber *self = um_fiber_self();
  bool known = key >= 0 && key < atomic_load(&local_keys.count);
  return self && known && self->locals ? self->locals[key] : NULL;
}

int um_local_set(int key, void *value) {
  um_fiber *self = um_fiber_self();
  if (!self) return UM_ENOTFIBER;
  if (key < 0 || key >= atomic_load(&local_keys.count)) return -EINVAL;
  if (!self->locals && !(self->locals = um__alloc(UM_LOCAL_KEYS * sizeof(void *)))) return -ENOMEM;
  self->locals[key] = value;
  return 0;
}

static void locals_destroy(um_fiber *fiber) {
  for (int key = 0; fiber->locals && key < UM_LOCAL_KEYS; key++) {
    void *value = fiber->locals[key];
    fiber->locals[key] = NULL;
    if (value && local_keys.destroy[key]) local_keys.destroy[key](value);
  }
  um__free(fiber->locals);
}

/* ---- groups ---- */

void um_group_init(um_group *group) { memset(group, 0, sizeof *group); }

static void group_enter(um_group *group, um_fiber *fiber) {
  fiber->group = group;
  fiber->group_next = group->members;
  if (group->members) group->members->group_previous = fiber;
  group->members = fiber;
  group->count++;
}

static void group_leave(um_fiber *fiber) {
  um_group *group = fiber->group;
  if (!group) return;
  if (fiber->group_previous) fiber->group_previous->group_next = fiber->group_next;
  else group->members = fiber->group_next;
  if (fiber->group_next) fiber->group_next->group_previous = fiber->group_previous;
  if (fiber->result < 0 && group->result == 0) group->result = fiber->result;
  if (--group->count == 0) um__waitq_wake_all(&group->waiters);
}

void um_group_cancel(um_group *group) {
  for (um_fiber *fiber = group->members; fiber; fiber = fiber->group_next) um_fiber_cancel(fiber);
}

int um_group_join(um_group *group, um_time deadline) {
  if (!um__task()) return UM_ENOTFIBER;
  while (group->count) {
    int result = um__waitq_wait(&group->waiters, deadline);
    if (result < 0 && group->count) return result;
  }
  return 0;
}

/* ---- life ---- */

static void fiber_end(um_fiber *fiber) {
  um_reactor *r = fiber->task.reactor;
  locals_destroy(fiber);
  group_leave(fiber);
  LIST_REMOVE(fiber, link);
  UM_PROBE2(fiber_end, fiber, fiber->result);
  UM_COUNT(r, fibers, -1);
  um_task_unregister(&fiber->task);
  fiber->ended = true;
  um__waitq_wake_all(&fiber->joiners);
  um__context_switch(&fiber->context, &r->loop, true);
}

static void fiber_entry(void *argument) {
  um_fiber *fiber = argument;
  um__context_entered(&fiber->context, &fiber->task.reactor->loop);
  fiber->result = fiber->fn(fiber->arg);
  fiber_end(fiber);
}

/* Carves the fiber out of its stack's top and prepares what is left to run it. */
static um_fiber *fiber_new(um_reactor *r, size_t stack_size) {
  um_stack *stack = um__stack_take(r->stacks, stack_size);
  if (!stack) return NULL;
  uintptr_t top = (uintptr_t)(stack->bottom + stack->size) - sizeof(um_fiber);
  um_fiber *fiber = (um_fiber *)(top & ~(uintptr_t)63);
  memset(fiber, 0, sizeof *fiber);
  fiber->stack = stack;
  if (um_task_register(&fiber->task, r, &fiber_host) < 0) {
    um__stack_give(stack);
    return NULL;
  }
  um_stack rest = {.bottom = stack->bottom, .size = (size_t)((char *)fiber - stack->bottom)};
  um__context_make(&fiber->context, &rest, fiber_entry, fiber);
  return fiber;
}

static int check_spawn(um_reactor *r, const um_fiber_options *options) {
  if (!r) return UM_ENOTFIBER;
  int result = um__reactor_check(r);
  unsigned size = options ? options->stack_size : 0;
  if (size && (size < 16384 || size % 4096 || size > 64u << 20)) return UM_ECONFIG;
  return result;
}

static int make(um_reactor *r, um_fiber **out, um_fiber_fn fn, void *arg,
                const um_fiber_options *options, um_group *group) {
  int result = check_spawn(r, options);
  if (result < 0) return result;
  bool sized = options && options->stack_size;
  um_fiber *fiber = fiber_new(r, sized ? options->stack_size : r->config.stack_size);
  if (!fiber) return -ENOMEM;
  fiber->fn = fn;
  fiber->arg = arg;
  fiber->name = options ? options->name : NULL;
  if (group) group_enter(group, fiber);
  fiber->task.since = r->looked;
  LIST_INSERT_HEAD(&r->fibers, fiber, link);
  UM_PROBE2(fiber_spawn, fiber, fn);
  UM_COUNT(r, spawned, 1);
  UM_COUNT(r, fibers, 1);
  *out = fiber;
  return 0;
}

int um_fiber_spawn(um_reactor *reactor, um_fiber **out, um_fiber_fn fn, void *arg,
                   const um_fiber_options *options) {
  um_fiber *fiber;
  int result = make(reactor ? reactor : um__reactor(), &fiber, fn, arg, options, NULL);
  if (result < 0) return result;
  fiber->joinable = out != NULL;
  if (out) *out = fiber;
  um__task_wake(&fiber->task, 0);
  return 0;
}

int um_group_spawn(um_group *group, um_fiber_fn fn, void *arg, const um_fiber_options *options) {
  um_fiber *fiber;
  int result = make(um__reactor(), &fiber, fn, arg, options, group);
  if (result == 0) um__task_wake(&fiber->task, 0);
  return result;
}

int um__group_run(um_group *group, um_fiber_fn fn, void *arg) {
  um_fiber *fiber;
  um_reactor *r = um__reactor();
  static const um_fiber_options options = {.name = "connection"};
  int result = make(r, &fiber, fn, arg, &options, group);
  if (result == 0) um__task_resume(r, &fiber->task);
  return result;
}

int um_fiber_join(um_fiber *fiber, int *result, um_time deadline) {
  um_fiber *self = um_fiber_self();
  if (fiber == self) return -EDEADLK;
  while (!fiber->ended) {
    if (!um__task()) return UM_ENOTFIBER;
    int reason = um__waitq_wait(&fiber->joiners, deadline);
    if (reason < 0 && !fiber->ended) return reason;
  }
  if (result) *result = fiber->result;
  fiber_free(fiber);
  return 0;
}

void um_fiber_cancel(um_fiber *fiber) {
  if (!fiber->ended) um_task_cancel(&fiber->task);
}

void um_reactor_cancel_all(um_reactor *r) {
  um_fiber *fiber;
  LIST_FOREACH(fiber, &r->fibers, link) um_fiber_cancel(fiber);
}

/* ---- looking at them ---- */

static void describe(const um_fiber *fiber, um_time now, um_fiber_info *info) {
  static const char *const states[] = {"new", "waiting", "ready", "running"};
  const um_task *task = &fiber->task;
  bool waiting = task->state == UM_TASK_PARKED;
  *info = (um_fiber_info){.name = fiber->name, .state = states[task->state], .fd = -1,
                          .age = now - task->since, .deadline = UM_FOREVER, .id = fiber};
  if (!waiting) return;
  info->waits_for = task->waits_for ? task->waits_for : "a wake-up";
  info->fd = task->waits_for ? task->waits_fd : -1;
  info->deadline = task->timer.deadline;
}

int um_reactor_fibers(um_reactor *r, void (*fn)(const um_fiber_info *, void *), void *arg) {
  int result = um__reactor_check(r);
  if (result < 0) return result;
  um_fiber *fiber;
  um_fiber_info info;
  um_time now = um_now();
  LIST_FOREACH(fiber, &r->fibers, link) {
    describe(fiber, now, &info);
    fn(&info, arg);
  }
  return 0;
}

um_fiber *um_fiber_self(void) {
  um_reactor *r = um__reactor();
  um_task *task = r ? r->current : NULL;
  return task && task->host == &fiber_host ? (um_fiber *)task : NULL;
}

int um_fiber_cancelled(void) {
  um_reactor *r = um__reactor();
  return r && r->current && r->current->cancelled;
}

int um_fiber_yield(void) {
  um_task *task = um__task();
  return task ? um__yield(task->reactor, false) : UM_ENOTFIBER;
}

int um_fiber_sleep(um_time until) {
  um_task *task = um__task();
  if (!task) return UM_ENOTFIBER;
  um__waits_for(task->reactor, "sleep", -1);
  int reason = um__park(task->reactor, until);
  return reason == -ETIMEDOUT ? 0 : reason;
}
