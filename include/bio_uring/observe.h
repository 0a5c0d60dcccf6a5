/* Seeing inside: what a reactor does and where its fibers are.
 *
 * Counters are in bio_uring/reactor.h (um_reactor_metrics()). USDT probes of the
 * provider "bio_uring" are in the library where sys/sdt.h was there to build it; a
 * probe nobody looks at costs one no-op. docs/observing.md lists them.
 */
#ifndef BIO_URING_OBSERVE_H
#define BIO_URING_OBSERVE_H

#include <bio_uring/base.h>
#include <bio_uring/reactor.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- log ---- */

enum um_log_level { UM_LOG_OFF, UM_LOG_ERROR, UM_LOG_WARNING, UM_LOG_INFO, UM_LOG_DEBUG };

/* One message without a newline. Called on any thread, perhaps on several at once, and
 * perhaps on a small stack: it must not call the library. */
typedef void (*um_log_fn)(int level, const char *message, void *arg);

/* What the library says of itself, to `fn` or, when it is NULL, to standard error: one
 * write(2) a line; a line that cannot be written at once (a full disk, a pipe that is closed
 * or that nobody reads) is dropped. Messages above `level` cost a comparison. Without this
 * call the environment decides when the first reactor is created: UM_LOG is off, error,
 * warning (the default), info or debug; processes with raised privileges ignore it
 * (secure_getenv(3)).
 * Any thread, but not while another logs. */
UM_API void um_log_set(int level, um_log_fn fn, void *arg);

/* ---- histograms ---- */

/* buckets[i] counts durations below 2^i microseconds and not below 2^(i-1); the last
 * one all that are longer. */
#define UM_HISTOGRAM_BUCKETS 26
typedef struct um_histogram {
  uint64_t count;
  uint64_t sum; /* nanoseconds */
  uint64_t buckets[UM_HISTOGRAM_BUCKETS];
} um_histogram;

typedef struct um_histograms {
  um_histogram busy;      /* from one look at the kernel's completions to the next sleep: as long
                             as nothing else could run */
  um_histogram handshake; /* from wrapping a connection to the end of its TLS handshake */
} um_histograms;

/* Copies them; any thread. The reactor pays one clock reading a tick. */
UM_API void um_reactor_histograms(const um_reactor *reactor, um_histograms *out);

/* ---- trace ---- */

enum um_trace_kind {
  UM_TRACE_SUBMIT,   /* handed to the backend; `result` is 0, or why it was refused */
  UM_TRACE_CANCEL,   /* asked to end early */
  UM_TRACE_COMPLETE, /* a completion: `result` as the kernel gave it, bytes or -errno */
};

typedef struct um_trace_event {
  uint64_t id;           /* the operation's; comes again only after 2^32 others of its slot */
  const char *operation; /* "recv", "send", "accept", ...; static storage */
  int kind;              /* enum um_trace_kind */
  int fd;                /* -1: none */
  int result;
  int more;              /* UM_TRACE_COMPLETE: further completions will come (multishot) */
} um_trace_event;

/* Called on the reactor's thread for every operation submitted and completed. It may do
 * I/O of its own, write(2) for example, post and spawn; calls of this library that wait
 * return UM_ENOTFIBER, and what it submits itself is not traced: it is never entered
 * twice. */
typedef void (*um_trace_fn)(const um_trace_event *event, void *arg);
/* NULL ends it. The reactor's thread only: 0, UM_EWRONGTHREAD, UM_EFORKED. */
UM_API int um_reactor_trace(um_reactor *reactor, um_trace_fn fn, void *arg);

/* ---- fibers ---- */

typedef struct um_fiber_info {
  const char *name;      /* as um_fiber_options.name; NULL: none */
  const char *state;     /* "new", "waiting", "ready" or "running" */
  const char *waits_for; /* waiting: "recv", "send", "sleep", "a wake-up", ...; else NULL */
  int fd;                /* of what it waits for; -1: none */
  um_time age;           /* nanoseconds in that state, to within one tick */
  um_time deadline;      /* of the wait; UM_FOREVER: none */
  const void *id;        /* its um_fiber *, for telling them apart */
} um_fiber_info;

/* Calls fn for every fiber of the reactor, newest first; `info` is valid during the call.
 * fn must not start or end fibers. A host's own tasks are not listed. The reactor's
 * thread only, from a fiber or a posted callback: 0, UM_EWRONGTHREAD, UM_EFORKED. */
UM_API int um_reactor_fibers(um_reactor *reactor, void (*fn)(const um_fiber_info *info, void *arg),
                             void *arg);

#ifdef __cplusplus
}
#endif
#endif
