/* The reactor: one per thread; drives fibers from io_uring completions.
 *
 * Threads. A reactor may be created on any thread and belongs to the thread
 * that first runs or steps it. Every function here is for that thread only,
 * but for um_post(), um_post_node(), um_reactor_stop() and
 * um_reactor_metrics(), which may be called from any thread.
 *
 * fork(2). The child of a fork must not use the parent's reactor: every call
 * on it returns UM_EFORKED there. Create a new one, or exec.
 *
 * Without io_uring. Where the kernel or a container forbids it the same calls run on
 * epoll: slower, and with worker threads for files that are not in memory. How a reactor
 * talks to the kernel is chosen by um_reactor_config.backend, else by UM_BACKEND in the
 * environment, "uring" or "epoll"; else it is io_uring where that works and epoll where
 * not, and the first reactor of a process that has to make do says so, once, as a
 * warning of the log (observe.h). What is asked for by name is never replaced. On epoll
 *  - um_futex_wait() and um_futex_wake() return -EOPNOTSUPP;
 *  - um_waitid() knows P_PID only, else -EOPNOTSUPP;
 *  - um_splice() into a socket moves at most 4,096 bytes a call;
 *  - um_recvmsg() ignores MSG_WAITALL;
 *  - um_openat(), um_splice(), and um_read() and um_write() of files are not interrupted: their
 *    deadline or cancellation is answered when a worker is through with them;
 *  - a blocking listener that other processes accept from as well may block the thread
 *    for a moment: set O_NONBLOCK on it;
 *  - um_connect() sets O_NONBLOCK for the moment of connect(2);
 *  - UM_REACTOR_SQPOLL, entries, cq_entries and zerocopy_threshold have no effect.
 *
 * Privileges. A ring keeps the credentials it was created with
 * (CVE-2024-22017): drop privileges before creating reactors.
 */
#ifndef BIO_URING_REACTOR_H
#define BIO_URING_REACTOR_H

#include <bio_uring/base.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct um_reactor um_reactor;

/* Use a kernel thread that polls the submission queue: it burns a core
 * (30-49 % more CPU here on 2 cores) and excludes DEFER_TASKRUN. */
#define UM_REACTOR_SQPOLL 0x1u

/* Zero in any field means its default. Validation failures return UM_ECONFIG
 * and a message that names the field. */
typedef struct um_reactor_config {
  unsigned entries;       /* submission queue, 8..32768, power of two; 256 */
  unsigned cq_entries;    /* completion queue, >= 2 * entries, power of two; 4096 */
  unsigned buffer_count;  /* provided receive buffers, 4..32768, power of two; 256 */
  unsigned buffer_size;   /* bytes each, 4096..1 MiB, multiple of 4096; 16384. When both are zero
                             and io_uring fills buffers bit by bit (kernel 6.12): 16 of 65536 */
  unsigned stack_size;    /* fiber stacks, 16384..64 MiB, multiple of 4096; 65536 */
  unsigned max_switches;  /* fiber switches before the ring is looked at, 1..65536; 256 */
  unsigned receive_limit; /* ciphertext bytes queued per connection before its receive
                             pauses (TCP then holds the peer back), 4096..16 MiB; 32768 */
  unsigned send_limit;    /* ciphertext bytes queued per connection before its writers
                             park, 16384..64 MiB; 262144 */
  unsigned receive_total; /* ciphertext bytes queued by all connections together, above which
                             each may queue 4096 and no more, 65536..UINT_MAX; 64 MiB */
  unsigned send_total;    /* memory of all connections' send buffers, above which each may queue
                             16384 and no more, 65536..UINT_MAX; 256 MiB */
  unsigned turn_bytes;    /* plaintext a connection may read in one turn before other
                             connections go, 1024..16 MiB; 65536 */
  unsigned turn_records;  /* records without data (KeyUpdate, session tickets, empty ones) that a
                             connection may have handled in one turn, 1..65536; 16 */
  unsigned zerocopy_threshold; /* sends of at least so many bytes use SEND_ZC from the
                             registered slabs; 0 = never (it never helps on loopback) */
  unsigned flags;         /* UM_REACTOR_* */
  const char *backend;    /* NULL: UM_BACKEND from the environment, else what works */
} um_reactor_config;

/* Creates a reactor; `config` may be NULL. On failure *out is NULL.
 * Errors: UM_ECONFIG, UM_ENOURING (io_uring was asked for by name), -ENOMEM, -EMFILE,
 * -ENFILE. */
UM_API int um_reactor_create(um_reactor **out, const um_reactor_config *config, um_error *error);

/* Frees a reactor with no fibers left. From the reactor's thread, outside its
 * fibers. In the child of a fork it only forgets the memory.
 * Errors: -EBUSY while fibers have not ended. */
UM_API int um_reactor_destroy(um_reactor *reactor);

/* Runs until every fiber has ended or um_reactor_stop() was called: at once when there
 * is none, whatever was posted.
 * Returns 0, UM_EFORKED, UM_EWRONGTHREAD, UM_EREENTRANT (called by one of its
 * own fibers), or what the kernel said when the ring itself failed. */
UM_API int um_reactor_run(um_reactor *reactor);

/* Makes um_reactor_run() return after its current tick. Any thread; safe in
 * signal handlers. Fibers stay where they are; run again to go on. */
UM_API void um_reactor_stop(um_reactor *reactor);

/* Asks every fiber of the reactor to end: um_fiber_cancel() on each. A host's tasks
 * (bio_uring/host.h) are their host's business. */
UM_API void um_reactor_cancel_all(um_reactor *reactor);

/* For somebody else's event loop: does what can be done without waiting.
 * Returns UM_STEP_* or an error like um_reactor_run(). When it says IDLE, poll
 * um_reactor_fd() for POLLIN and step again when it is readable: timers make it
 * readable as well. */
enum { UM_STEP_DONE = 0, UM_STEP_IDLE = 1, UM_STEP_RUNNABLE = 2 };
UM_API int um_reactor_step(um_reactor *reactor);
/* Pollable, for POLLIN only; the reactor's own. Made at the first call: negative
 * when no descriptor was left (-EMFILE, -ENFILE, -ENOMEM). */
UM_API int um_reactor_fd(um_reactor *reactor);

/* The reactor running on this thread, or NULL. */
UM_API um_reactor *um_reactor_current(void);

/* "uring", "epoll" or "scripted". */
UM_API const char *um_reactor_backend(const um_reactor *reactor);

/* Creates a default reactor, runs `main(arg)` in its first fiber until every
 * fiber has ended, destroys it. Returns main's result, or the reactor's error. */
UM_API int um_run(int (*main)(void *arg), void *arg);

/* ---- posting work to a reactor ---- */

/* Calls fn(arg) on the reactor's thread, outside any fiber, soon. fn must not
 * wait (waiting calls return UM_ENOTFIBER) but may spawn and wake fibers. A
 * negative result is counted (metrics.post_errors) and does not stop the loop.
 * Wake-ups are coalesced: one for any number of posts the reactor has not seen.
 * Errors: -ENOMEM, UM_ECLOSED when the reactor is being destroyed. */
typedef int (*um_post_fn)(void *arg);
UM_API int um_post(um_reactor *reactor, um_post_fn fn, void *arg);

/* The same without allocation, safe in signal handlers. The node must stay
 * valid until fn runs, and must not be posted again before. */
typedef struct um_post_node {
  struct um_post_node *next;
  um_post_fn fn;
  void *arg;
  unsigned flags; /* private, zero */
} um_post_node;
UM_API void um_post_node_push(um_reactor *reactor, um_post_node *node);

/* ---- metrics ---- */

/* Counters since the reactor was created; gauges are marked. Reading is safe
 * from any thread at any time and costs the reactor nothing. */
typedef struct um_metrics {
  uint64_t ticks;            /* rounds of the loop */
  uint64_t enters;           /* io_uring_enter(2) or epoll_pwait2(2) calls */
  uint64_t submissions;      /* operations handed to the kernel */
  uint64_t completions;      /* completions reaped */
  uint64_t cancels;          /* cancellations asked for */
  uint64_t stale;            /* completions whose operation was already gone */
  uint64_t switches;         /* fibers resumed */
  uint64_t waits;            /* times the loop slept in the kernel */
  uint64_t spawned;          /* fibers started */
  uint64_t fibers;           /* gauge: fibers alive */
  uint64_t pending;          /* gauge: operations the kernel owns */
  uint64_t unsubmitted;      /* gauge: prepared, not yet handed over */
  uint64_t enobufs;          /* receives that found no provided buffer */
  uint64_t sq_full;          /* submission queue full: submitted early */
  uint64_t cq_overflows;     /* completion queue overflowed: flushed by the kernel */
  uint64_t short_sends;      /* sends resumed after a short count */
  uint64_t posts;            /* callbacks run for um_post() */
  uint64_t post_errors;      /* of those, with a negative result */
  uint64_t wakes;            /* wake-ups sent to this reactor by other threads */
  uint64_t timers;           /* timers that fired */
  uint64_t buffers_used;     /* gauge: provided buffers not with the kernel */
  uint64_t received_bytes;   /* ciphertext received by connections */
  uint64_t sent_bytes;       /* ciphertext sent by connections */
  uint64_t copied_bytes;     /* left unread at a tick's end, copied out of the ring */
  uint64_t accept_backoffs;  /* accept paused for want of descriptors or memory */
  uint64_t unregistered;     /* registrations refused by the kernel, done without */
  uint64_t turns;            /* times a connection gave way after its share of a turn */
  uint64_t receive_queued;   /* gauge: ciphertext received and not taken yet */
  uint64_t send_held;        /* gauge: memory of send buffers that connections hold */
  uint64_t squeezed;         /* times receive_total or send_total made a connection's limit small */
  uint64_t floods;           /* turns that records without data used up: KeyUpdates, ... */
  uint64_t receive_pauses;   /* times a connection had receive_limit queued: its peer waits */
  uint64_t send_waits;       /* times a connection waited for its peer to take what is queued: a
                                writer at send_limit, a reader at twice that */
} um_metrics;
/* Copies them; any thread. */
UM_API void um_reactor_metrics(const um_reactor *reactor, um_metrics *out);

#ifdef __cplusplus
}
#endif
#endif
