/* Bring your own fibers: how the reactor parks and resumes what it runs.
 *
 * The reactor knows *tasks*. The library's own C fibers are one kind; a language
 * runtime embeds um_task in its own fiber and supplies a host. Everything that
 * waits (um_recv(), um_tls_read(), um_mutex_lock(), ...) then works from that
 * runtime's fibers.
 */
#ifndef BIO_URING_HOST_H
#define BIO_URING_HOST_H

#include <bio_uring/base.h>
#include <bio_uring/reactor.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct um_task um_task;

typedef struct um_host {
  /* Called by the task that waits, on its own stack: give control back to
   * whoever called resume(). Returns when resume() is called for it again.
   * 0, or a negative code (usually -ECANCELED) when the runtime wants the wait
   * abandoned, for example because an exception is to be raised: the operation is
   * then cancelled and drained (park() is called again until it is) and the
   * waiting call returns that code. Must not unwind the stack. */
  int (*park)(struct um_host *host, um_task *self);
  /* Called by the reactor's loop: run `task` until it parks or ends. */
  void (*resume)(struct um_host *host, um_task *task);
} um_host;

struct um_timer { /* private */
  um_time at, deadline;
  void (*fire)(struct um_timer *timer);
  unsigned index;
};

struct um_task { /* private, but for its size */
  um_task *next, *previous;
  um_reactor *reactor;
  um_host *host;
  struct um_timer timer;
  int wake_reason;
  unsigned char state, cancel_pending, cancelled, shield;
  unsigned turn_used; /* plaintext bytes read since it was resumed */
  const char *waits_for;
  int waits_fd;
  um_time since; /* it is in its state */
};

/* Makes `task` known to the reactor; it is not runnable yet. The reactor does
 * not end while tasks are registered. 0, UM_EWRONGTHREAD, UM_EFORKED, -ENOMEM. */
UM_API int um_task_register(um_task *task, um_reactor *reactor, um_host *host);
/* Forgets it. Must be neither parked nor runnable. */
UM_API void um_task_unregister(um_task *task);
/* Queues a parked or new task; harmless when it is runnable already. */
UM_API void um_task_wake(um_task *task);
/* Like um_fiber_cancel(). */
UM_API void um_task_cancel(um_task *task);
/* Parks the calling task until um_task_wake(), the deadline or a cancellation.
 * 0, -ETIMEDOUT, -ECANCELED, what the host's park() returned, UM_ENOTFIBER. */
UM_API int um_task_wait(um_time deadline);
/* The task running on this thread, or NULL. */
UM_API um_task *um_task_current(void);

/* For runtimes with a global lock: `around` is called in place of every sleep of the
 * loop in the kernel, on the reactor's thread. It calls sleep(argument), once, with
 * the lock released, or not at all: then the loop goes on as after a signal. It must
 * not unwind. um_reactor_stop() ends a sleep from outside. NULL: sleep plainly. */
UM_API void um_reactor_around_sleep(um_reactor *reactor,
                                    void (*around)(void (*sleep)(void *argument), void *argument,
                                                   void *data),
                                    void *data);

/* Gives up the reactor that runs on this thread, if any: the runtime threw away the stack it
 * ran on, with the thread of its own that its tasks belonged to, and they are never resumed.
 * Takes back what they have given to the kernel, and waits for it: until then their memory
 * must be there. Only um_reactor_destroy() may follow, from any thread. */
UM_API void um_reactor_abandon(void);

#ifdef __cplusplus
}
#endif
#endif
