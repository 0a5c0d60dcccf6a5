/* The loop: run ready tasks, flush what they wrote, submit and wait once. */
#include "reactor.h"

#include "../ablation.h"
#include "../error.h"
#include "../log.h"
#include "alloc.h"
#include "conn.h"
#include "slab.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <stdlib.h>
#include <string.h>

#define SHARED_STACK_SIZE (256u << 10)
#define SLAB_DECAY UM_SECOND

/* Looked at several times per operation: initial-exec spares a call each time. */
static _Thread_local um_reactor *thread_reactor __attribute__((tls_model("initial-exec")));
static unsigned fork_generation; /* how many forks lie between us and the first process */

int (*um__scripted_open)(um_reactor *reactor, um_error *error);

/* In the child: a fiber that forked must not reach the parent's ring through this. */
static void count_fork(void) {
  fork_generation++;
  thread_reactor = NULL;
}

static void first_use(void) {
  pthread_atfork(NULL, NULL, count_fork);
  um__log_init();
}

um_reactor *um__reactor(void) { return thread_reactor; }

um_reactor *um_reactor_current(void) { return thread_reactor; }

bool um__reactor_forked(const um_reactor *r) { return r->fork_generation != fork_generation; }

int um__reactor_check(const um_reactor *r) {
  if (um__reactor_forked(r)) return UM_EFORKED;
  return r->owned && !pthread_equal(r->owner, pthread_self()) ? UM_EWRONGTHREAD : 0;
}

/* ---- configuration ---- */

typedef struct field {
  const char *name;
  size_t offset;
  unsigned standard, least, most, multiple;
  bool power_of_two;
} field;

#define FIELD(name, ...) {#name, offsetof(um_reactor_config, name), __VA_ARGS__}
static const field fields[] = {
    FIELD(entries, 256, 8, 32768, 1, true),
    FIELD(cq_entries, 4096, 16, 65536, 1, true),
    FIELD(buffer_count, 256, 4, 32768, 1, true),
    FIELD(buffer_size, 16384, 4096, 1u << 20, 4096, false),
    FIELD(stack_size, 65536, 16384, 64u << 20, 4096, false),
    FIELD(max_switches, 256, 1, 65536, 1, false),
    FIELD(receive_limit, 32768, 4096, 16u << 20, 1, false),
    FIELD(send_limit, 262144, 16384, 64u << 20, 1, false),
    FIELD(receive_total, 64u << 20, 65536, UINT32_MAX, 1, false),
    FIELD(send_total, 256u << 20, 65536, UINT32_MAX, 1, false),
    FIELD(turn_bytes, 65536, 1024, 16u << 20, 1, false),
    FIELD(turn_records, 16, 1, 65536, 1, false),
};

static int complete_field(um_reactor_config *config, const field *f, um_error *error) {
  unsigned *value = (unsigned *)((char *)config + f->offset);
  if (*value == 0) *value = f->standard;
  if (*value < f->least || *value > f->most)
    return um__fail(error, UM_ECONFIG, "um_reactor_config.%s is %u: must be %u to %u", f->name,
                    *value, f->least, f->most);
  if (f->power_of_two && (*value & (*value - 1)))
    return um__fail(error, UM_ECONFIG, "um_reactor_config.%s is %u: must be a power of two",
                    f->name, *value);
  if (*value % f->multiple)
    return um__fail(error, UM_ECONFIG, "um_reactor_config.%s is %u: must be a multiple of %u",
                    f->name, *value, f->multiple);
  return 0;
}

static int complete_config(um_reactor *r, um_error *error) {
  um_reactor_config *config = &r->config;
  r->standard_buffers = !config->buffer_count && !config->buffer_size;
  if (!config->cq_entries && config->entries > 2048) config->cq_entries = 2 * config->entries;
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
    if (complete_field(config, &fields[i], error) < 0) return UM_ECONFIG;
  if (config->cq_entries < 2 * config->entries)
    return um__fail(error, UM_ECONFIG, "um_reactor_config.cq_entries is %u: must be at least twice entries (%u)",
                    config->cq_entries, config->entries);
  if (config->flags & ~UM_REACTOR_SQPOLL)
    return um__fail(error, UM_ECONFIG, "um_reactor_config.flags is 0x%x: unknown bits",
                    config->flags);
  return 0;
}

static atomic_flag told_of_fallback = ATOMIC_FLAG_INIT;

/* What is wrong with io_uring here is worth a line of a process's life, not more. */
static int open_best(um_reactor *r, um_error *error) {
  um_error why = {0};
  int result = um__uring_open(r, &why);
  if (error) *error = why;
  if (result != UM_ENOURING) return result;
  if (error) *error = (um_error){0};
  if (!atomic_flag_test_and_set(&told_of_fallback))
    um__log(UM_LOG_WARNING, "%s; until then the slower epoll backend is used (UM_BACKEND=epoll "
            "chooses it without this line)", why.message);
  return um__epoll_open(r, error);
}

static int open_backend(um_reactor *r, um_error *error) {
  const char *name = r->config.backend ? r->config.backend : secure_getenv("UM_BACKEND");
  if (!name || !*name) return open_best(r, error);
  if (!strcmp(name, "uring")) return um__uring_open(r, error);
  if (!strcmp(name, "epoll")) return um__epoll_open(r, error);
  if (!strcmp(name, "scripted") && um__scripted_open) return um__scripted_open(r, error);
  return um__fail(error, UM_ECONFIG, "%s is \"%.64s\": must be \"uring\" or \"epoll\", or empty for "
                  "whichever works", r->config.backend ? "um_reactor_config.backend" : "UM_BACKEND",
                  name);
}

/* ---- life ---- */

static void decay_slabs(struct um_timer *timer) {
  um__slab_pool_decay(((um_reactor *)((char *)timer - offsetof(um_reactor, slab_decay)))->slabs);
}

static void reactor_free(um_reactor *r) {
  um__conns_free(r);
  um__slab_pool_free(r->slabs);
  um__stack_pool_free(r->stacks);
  um__ops_free(r);
  um__free(r->timers);
  um__free(r);
}

static int allocate_parts(um_reactor *r) {
  r->stacks = um__stack_pool_new();
  r->slabs = um__slab_pool_new();
  if (!r->stacks || !r->slabs || um__ops_reserve(r) < 0 || um__timer_reserve(r) < 0) return -ENOMEM;
  r->slab_decay = (struct um_timer){.deadline = UM_FOREVER, .fire = decay_slabs};
  r->shared_stack = um__stack_take(r->stacks, SHARED_STACK_SIZE);
  return r->shared_stack ? 0 : -ENOMEM;
}

int um_reactor_create(um_reactor **out, const um_reactor_config *config, um_error *error) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, first_use);
  *out = NULL;
  if (error) *error = (um_error){0};
  um_reactor *r = um__alloc(sizeof *r);
  if (!r) {
    um__fail(error, -ENOMEM, "no memory for a reactor");
    return -ENOMEM; /* which an analyser would not know of um__fail() */
  }
  if (config) r->config = *config;
  TAILQ_INIT(&r->dirty);
  TAILQ_INIT(&r->holding);
  TAILQ_INIT(&r->starved);
  LIST_INIT(&r->fibers);
  r->fork_generation = fork_generation;
  int result = complete_config(r, error);
  if (result == 0) result = um__ablation_read(error);
  if (result == 0 && (result = allocate_parts(r)) < 0)
    um__fail(error, result, "no memory for a reactor's stacks");
  if (result == 0) result = open_backend(r, error);
  if (result < 0) {
    reactor_free(r);
    return result;
  }
  um__log(UM_LOG_INFO, "reactor: %s, %u entries, %u buffers of %u bytes", r->backend->name,
          r->config.entries, r->config.buffer_count, r->config.buffer_size);
  *out = r;
  return 0;
}

/* Work on other threads cannot be called back, only waited for. */
static void await_jobs(um_reactor *r) {
  while (r->jobs) {
    um__reactor_pump(r);
    um__posts_discard(r);
  }
}

void um_reactor_abandon(void) {
  um_reactor *r = thread_reactor;
  if (!r) return;
  r->around_sleep = NULL;
  r->supported = 0; /* what ends must not begin anew */
  while (um__ops_cancel(r) || r->jobs) {
    r->backend->wait(r, um_after(100));
    um__posts_discard(r);
  }
  r->tasks = 0;
  r->owned = r->running = false;
  thread_reactor = NULL;
}

int um_reactor_destroy(um_reactor *r) {
  if (!r) return 0;
  int check = um__reactor_check(r);
  if (check == UM_EWRONGTHREAD) return check;
  if ((r->tasks > r->jobs || r->running) && check == 0) return -EBUSY;
  atomic_store(&r->posts.closing, true);
  if (check == 0) { /* a fork's child has no such threads */
    await_jobs(r);
    um__posts_leave(r);
  }
  um__posts_discard(r);
  r->backend->close(r);
  reactor_free(r);
  return 0;
}

const char *um_reactor_backend(const um_reactor *r) { return r->backend->name; }

/* ---- the loop ---- */

static bool runnable(const um_reactor *r) {
  return r->ready.first || r->yielded.first || r->turns.first || r->shares.first ||
         r->cancel_refused ||
         atomic_load_explicit(&((um_reactor *)(uintptr_t)r)->posts.wake_pending,
                              memory_order_relaxed);
}

/* After the tasks ran: nothing they wrote may wait for them, and nothing they left
 * unread may keep a shared buffer from others. */
static void settle(um_reactor *r) {
  um__conns_flush(r);
  um__conns_release_buffers(r);
  if (unlikely(um__slab_pool_in_excess(r->slabs)) && r->slab_decay.deadline == UM_FOREVER)
    um__timer_set(r, &r->slab_decay, um_now() + SLAB_DECAY);
}

static int tick(um_reactor *r, um_time until) {
  UM_COUNT(r, ticks, 1);
  if (unlikely(r->cancel_refused)) um__ops_cancel_again(r);
  um__tasks_run(r);
  if (unlikely(um__reactor_forked(r))) return UM_EFORKED;
  settle(r);
  bool done = r->tasks == 0 || atomic_load_explicit(&r->posts.stop, memory_order_relaxed);
  if (done || runnable(r)) until = 0;
  if (until) {
    um_time next = um__timers_next(r);
    if (next < until) until = next;
  }
  um__histogram_add(&r->histograms.busy, um_now() - r->looked);
  int result = r->backend->wait(r, until);
  um__timers_expire(r, r->looked = um_now());
  um__posts_run(r);
  return result;
}

int um__reactor_pump(um_reactor *r) {
  settle(r);
  return r->backend->wait(r, um_after(100));
}

void um__reactor_trim(um_reactor *r) {
  um__slab_pool_shrink(r->slabs);
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

static int enter(um_reactor *r) {
  int result = um__reactor_check(r);
  if (result < 0) return result;
  if (r->running || thread_reactor) return UM_EREENTRANT;
  if (!r->owned) {
    r->owned = true;
    r->owner = pthread_self();
    result = r->backend->start(r);
    if (result < 0) {
      r->owned = false;
      return result;
    }
  }
  r->running = true;
  r->looked = um_now();
  thread_reactor = r;
  return 0;
}

static void leave(um_reactor *r) {
  thread_reactor = NULL;
  r->running = false;
}

int um_reactor_run(um_reactor *r) {
  int result = enter(r);
  if (result < 0) return result;
  while (result == 0 && r->tasks && !atomic_load_explicit(&r->posts.stop, memory_order_relaxed))
    result = tick(r, UM_FOREVER);
  atomic_store(&r->posts.stop, false);
  leave(r);
  return result;
}

static void step_timer_done(um_op *op, const um_completion *completion) {
  (void)completion;
  um_reactor *r = op->reactor;
  if (r->step_timer == op) r->step_timer = NULL;
  um__op_release(op);
}

/* The poller must wake for our earliest timer: one kernel timeout, moved only
 * when an earlier one is wanted. */
static int arm_step_timer(um_reactor *r) {
  um_time next = um__timers_next(r);
  if (next == UM_FOREVER || (r->step_timer && r->step_timer_at <= next)) return 0;
  if (r->step_timer) um__op_cancel(r->step_timer);
  um_op *op = um__op_new(r, UM_OP_TIMEOUT, -1);
  if (!op) return -ENOMEM;
  op->done = step_timer_done;
  op->timeout = (struct __kernel_timespec){next / UM_SECOND, next % UM_SECOND};
  r->step_timer = op;
  r->step_timer_at = next;
  int result = um__op_submit(op);
  if (result < 0) r->step_timer = NULL;
  return result;
}

/* Whether something is left that the descriptor would not tell of: completions may have
 * asked for more, and the kernel's timeout may be over already. */
static bool left_to_do(um_reactor *r) {
  um_time next = um__timers_next(r);
  bool timed = next == UM_FOREVER || (r->step_timer && r->step_timer_at <= next);
  bool starved = r->starved.tqh_first && r->metrics.buffers_used < r->config.buffer_count;
  return !timed || starved || r->dirty.tqh_first || r->backend->unsubmitted(r) || runnable(r);
}

int um_reactor_step(um_reactor *r) {
  int result = enter(r);
  if (result < 0) return result;
  atomic_store(&r->posts.stop, false);
  result = tick(r, 0);
  int state = r->tasks == 0 ? UM_STEP_DONE : runnable(r) ? UM_STEP_RUNNABLE : UM_STEP_IDLE;
  if (result == 0 && state == UM_STEP_IDLE) {
    settle(r);
    result = arm_step_timer(r);
    if (result == 0) result = r->backend->wait(r, 0); /* hand both over */
    if (left_to_do(r)) state = UM_STEP_RUNNABLE;
  }
  leave(r);
  return result < 0 ? result : state;
}

void um_reactor_around_sleep(um_reactor *r,
                             void (*around)(void (*sleep)(void *), void *argument, void *data),
                             void *data) {
  r->around_sleep = around;
  r->around_data = data;
}

int um_reactor_fd(um_reactor *r) {
  int result = um__reactor_check(r);
  return result < 0 ? result : r->backend->pollable(r);
}

int um_run(int (*main)(void *arg), void *arg) {
  um_reactor *r;
  um_fiber *fiber;
  um_error error;
  int ended = 0;
  if (thread_reactor) return UM_EREENTRANT;
  int result = um_reactor_create(&r, NULL, &error);
  if (result < 0) return result;
  result = um_fiber_spawn(r, &fiber, main, arg, NULL);
  if (result == 0) result = um_reactor_run(r);
  if (result == 0) um_fiber_join(fiber, &ended, 0); /* unless it was stopped before */
  um_reactor_destroy(r);
  return result < 0 ? result : ended;
}
