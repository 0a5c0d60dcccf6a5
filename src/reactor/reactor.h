/* The reactor's own state. One thread touches it, but for `posts`. */
#ifndef UM_REACTOR_H
#define UM_REACTOR_H

#include "backend.h"
#include "observe.h"
#include "op.h"
#include "stack.h"

#include <bio_uring/fiber.h>
#include <bio_uring/host.h>
#include <bio_uring/reactor.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

enum um_task_state { UM_TASK_NEW, UM_TASK_PARKED, UM_TASK_READY, UM_TASK_RUNNING };

typedef struct um_task_queue {
  um_task *first, *last;
} um_task_queue;

struct um_conn;
TAILQ_HEAD(um_conn_list, um_conn);
struct um_fiber;
LIST_HEAD(um_fiber_list, um_fiber);

struct um_reactor {
  const um_backend *backend;
  void *backend_state;
  unsigned capabilities;   /* UM_CAN_* */
  uint64_t supported;      /* bit per um_op_code */
  um_reactor_config config;
  bool standard_buffers;   /* the configuration leaves them to the backend */

  um_task *current;        /* running task; NULL in the loop itself */
  um_context loop;         /* the loop's own, while a fiber runs */
  um_stack *shared_stack;  /* OpenSSL's, for every fiber (tls_stream.c) */
  bool must_not_wait;      /* on the shared stack, or in a trace callback */

  um_task_queue ready;     /* run in this tick */
  um_task_queue yielded;   /* run after the ring was looked at */
  um_task_queue turns;     /* gave way after their share: one at a time */
  um_task_queue shares;    /* have long work to do, a share of each tick */
  um_time long_since;      /* when either was passed over first, or 0 */

  struct um_timer **timers; /* heap, 1-based */
  unsigned timer_count, timer_reserved, timer_capacity;
  um_op *step_timer;       /* kernel timeout while somebody else polls */
  um_time step_timer_at;

  um_op **op_chunks;
  unsigned op_chunk_count;
  um_op *op_free;
  bool cancel_refused;     /* of one of them or more */

  struct um_stack_pool *stacks;
  struct um_segment *segment_free;
  struct um_slab_pool *slabs;
  struct um_timer slab_decay;  /* set while more are free than are worth keeping */
  struct um_conn_list dirty;   /* have output and no send in flight */
  struct um_conn_list holding; /* have unread bytes in provided buffers */
  struct um_conn_list starved; /* want a receive and found no buffer */
  struct um_fiber_list fibers;
  unsigned tasks;              /* registered and not ended, and jobs */
  unsigned jobs;               /* work out on other threads (worker.h) */

  struct {
    _Atomic(um_post_node *) head; /* newest first */
    atomic_bool wake_pending;     /* a wake-up is on its way */
    atomic_bool stop;
    atomic_bool closing;
    atomic_uint inside;           /* threads in the middle of a post */
  } posts;

  void (*around_sleep)(void (*sleep)(void *), void *argument, void *data); /* or NULL */
  void *around_data;

  pthread_t owner;
  bool owned, running;
  unsigned fork_generation;
  um_metrics metrics;

  um_trace_fn trace;       /* or NULL */
  void *trace_arg;
  bool tracing;
  um_time looked;          /* when the ring was looked at last */
  um_histograms histograms;
};

/* Counters are written by the owning thread only and may be read by any. */
#define UM_COUNT(reactor, field, n)                                              \
  __atomic_store_n(&(reactor)->metrics.field, (reactor)->metrics.field + (uint64_t)(n), \
                   __ATOMIC_RELAXED)

um_reactor *um__reactor(void); /* this thread's, running; or NULL */
/* 0, UM_EFORKED or UM_EWRONGTHREAD. */
int um__reactor_check(const um_reactor *reactor);
bool um__reactor_forked(const um_reactor *reactor); /* from any thread */

/* ---- tasks (task.c) ---- */
/* Makes a parked task runnable, with what um__park() is to return. */
void um__task_wake(um_task *task, int reason);
/* The same for long work: when there is nothing short to do. */
void um__task_wake_for_share(um_task *task);
/* Parks the current task: 0 when woken, -ETIMEDOUT, -ECANCELED, or the host's code. */
int um__park(um_reactor *reactor, um_time deadline);
/* Before a park: what for, for those who look at fibers. */
static inline void um__waits_for(um_reactor *reactor, const char *what, int fd) {
  reactor->current->waits_for = what;
  reactor->current->waits_fd = fd;
}
/* The same for drains: neither deadline nor cancellation ends it. */
void um__park_shielded(um_reactor *reactor);
/* Runs other tasks first. `turn`: wait for this connection's turn instead. */
int um__yield(um_reactor *reactor, bool turn);
/* Runs it until it parks or ends. From the loop only. */
void um__task_resume(um_reactor *reactor, um_task *task);
/* um_group_spawn() from the loop, and runs the fiber at once until it parks or ends. */
int um__group_run(um_group *group, um_fiber_fn fn, void *arg);
/* The task that may wait here, or NULL: none, or on the shared stack. */
um_task *um__task(void);
/* What a transfer reports that ended with `result`: the bytes it moved before, if there were
 * any; what stopped it is found again next time. */
static inline ssize_t um__outcome(size_t done, int result) {
  if (!done && result < 0) return result;
  if (result == -ECANCELED) um__task()->cancel_pending = 1;
  return (ssize_t)done;
}
void um__tasks_run(um_reactor *reactor);

/* ---- timers (timer.c) ---- */
/* Room for one more timer, so that setting it cannot fail. 0 or -ENOMEM. */
int um__timer_reserve(um_reactor *reactor);
void um__timer_unreserve(um_reactor *reactor);
void um__timer_set(um_reactor *reactor, struct um_timer *timer, um_time deadline);
void um__timer_clear(struct um_timer *timer);  /* O(1): it stays in the heap */
void um__timer_remove(um_reactor *reactor, struct um_timer *timer); /* before its memory goes */
um_time um__timers_next(um_reactor *reactor);
void um__timers_expire(um_reactor *reactor, um_time now);

/* ---- posts (post.c) ---- */
void um__posts_run(um_reactor *reactor);
void um__posts_discard(um_reactor *reactor);
/* Waits until no thread is in the middle of a post. */
void um__posts_leave(um_reactor *reactor);

/* ---- listening (acceptor.c) ---- */
struct um_acceptor;
/* Whether further connections are accepted one at a time, when they are asked for. */
void um__acceptor_singly(struct um_acceptor *acceptor, bool singly);

/* ---- loop (reactor.c) ---- */
/* One look at the ring without running tasks, for drains outside fibers. */
int um__reactor_pump(um_reactor *reactor);
/* Gives free memory back to the system: pooled slabs, and what malloc holds (glibc only).
 * Milliseconds for 100 MB. */
void um__reactor_trim(um_reactor *reactor);

#endif
