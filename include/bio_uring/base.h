/* What every other header uses: time, error codes, symbol visibility.
 *
 * Errors. Every function that can fail returns a negative code: -errno for
 * what the kernel reported (-ECONNRESET, -ETIMEDOUT, -ECANCELED, ...), or one of
 * the UM_E* codes below. `errno` is never used to report anything: it belongs to
 * the thread, and a fiber may resume after other fibers have changed it.
 * um_strerror() turns either kind into a sentence that says what to do.
 *
 * Time. Every call that may wait takes an absolute deadline as its last
 * parameter: nanoseconds on CLOCK_MONOTONIC. A deadline that has already passed
 * means "try without waiting": the call does what can be done at once, or
 * returns -ETIMEDOUT. A passed deadline or a cancellation never destroys what
 * the call worked on.
 */
#ifndef BIO_URING_BASE_H
#define BIO_URING_BASE_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define UM_API __attribute__((visibility("default")))

#define UM_VERSION_MAJOR 0
#define UM_VERSION_MINOR 1
#define UM_VERSION_PATCH 0

/* The version of the library at run time, such as "0.1.0". */
UM_API const char *um_version(void);

/* ---- time ---- */

typedef int64_t um_time;              /* nanoseconds, CLOCK_MONOTONIC */
#define UM_FOREVER INT64_MAX          /* never passes */
#define UM_MS INT64_C(1000000)
#define UM_SECOND INT64_C(1000000000)

/* The clock, read anew at each call (clock_gettime(2), no system call). */
UM_API um_time um_now(void);

/* A deadline so many milliseconds from now. Negative means UM_FOREVER. */
UM_API um_time um_after(int64_t milliseconds);

/* ---- errors ---- */

enum um_error_code {
  UM_ENOTFIBER = -20001,   /* the call may wait and was made outside a fiber */
  UM_ETRUNCATED = -20002,  /* EOF without close_notify: data may be missing (RFC 8446 6.1) */
  UM_ETLS = -20003,        /* protocol failure; um_tls_error() holds OpenSSL's words */
  UM_EVERIFY = -20004,     /* the peer's certificate was not accepted */
  UM_EREENTRANT = -20005,  /* another fiber is inside the same call on the same object */
  UM_EFORKED = -20006,     /* the reactor belongs to the parent of this process */
  UM_EWRONGTHREAD = -20007,/* the object belongs to another thread's reactor */
  UM_ECONFIG = -20008,     /* a configuration field is out of range; the message names it */
  UM_ENOURING = -20009,    /* io_uring cannot be used here; the message says why */
  UM_ERESOLVE = -20010,    /* the host name could not be resolved */
  UM_ECLOSED = -20011,     /* the object was closed while the call waited, or before */
  UM_ECERT = -20012,       /* certificate or key file missing, unreadable or not matching */
  UM_ETOOLONG = -20013,    /* a limit was reached before the wanted bytes were there */
  UM_EPLAINTEXT = -20014,  /* the peer spoke plain HTTP on a TLS port */
};

/* An error with a message that says what, where, and what to do about it.
 * Functions that take a `um_error *` accept NULL; they clear it first and fill
 * both fields whenever they fail. */
typedef struct um_error {
  int code;
  char message[256];
} um_error;

/* A sentence for any negative code. Static storage or, for unknown errno
 * values, thread-local storage valid until the next call. Never NULL. */
UM_API const char *um_strerror(int code);

#ifdef __cplusplus
}
#endif
#endif
