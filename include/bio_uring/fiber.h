/* Fibers: stackful, cooperative, bound to one reactor (and so one thread).
 *
 * Only calls documented as waiting suspend a fiber. Nothing may be kept across
 * them in errno, in OpenSSL's error queue, or in a thread-local variable's
 * cached address.
 *
 * Cancellation. um_fiber_cancel() makes the fiber's current wait, or else its
 * next one, return -ECANCELED, once. Later waits work again, so that cleaning
 * up may wait; um_fiber_cancelled() stays true. When the awaited thing happened
 * anyway, its result is returned and the cancellation stays pending: nothing
 * that was received is lost.
 */
#ifndef BIO_URING_FIBER_H
#define BIO_URING_FIBER_H

#include <bio_uring/base.h>
#include <bio_uring/reactor.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct um_fiber um_fiber;
typedef int (*um_fiber_fn)(void *arg);

typedef struct um_fiber_options {
  unsigned stack_size;   /* bytes, multiple of 4096, >= 16384; 0 = the reactor's default */
  const char *name;      /* for diagnostics; not copied; may be NULL */
} um_fiber_options;

/* Starts fn(arg) as a fiber of `reactor` (NULL: the current one). It runs when
 * the caller next waits. With `out`, *out is a handle that must be given to
 * um_fiber_join() exactly once; with NULL the fiber is detached. `options` may
 * be NULL. The reactor's thread only, inside or outside its fibers.
 * Errors: -ENOMEM (no stack), UM_ECONFIG (stack_size), UM_ENOTFIBER (reactor
 * NULL and none current), UM_EWRONGTHREAD. */
UM_API int um_fiber_spawn(um_reactor *reactor, um_fiber **out, um_fiber_fn fn, void *arg,
                          const um_fiber_options *options);

/* Waits until the fiber has ended, stores what it returned in *result (may be
 * NULL) and frees the handle. After -ETIMEDOUT or -ECANCELED the handle is
 * still valid. Errors: -ETIMEDOUT, -ECANCELED, UM_ENOTFIBER, -EDEADLK (itself). */
UM_API int um_fiber_join(um_fiber *fiber, int *result, um_time deadline);

/* See "Cancellation" above. Harmless when the fiber has ended. */
UM_API void um_fiber_cancel(um_fiber *fiber);

/* Whether the calling fiber was ever cancelled. False outside fibers. */
UM_API int um_fiber_cancelled(void);

/* The calling fiber, or NULL. The pointer is valid while the fiber runs. */
UM_API um_fiber *um_fiber_self(void);

/* Lets every other runnable fiber and the ring go first.
 * Errors: -ECANCELED, UM_ENOTFIBER. */
UM_API int um_fiber_yield(void);

/* Waits until the time `until`. 0, -ECANCELED, UM_ENOTFIBER. */
UM_API int um_fiber_sleep(um_time until);

/* ---- groups ---- */

struct um_waitq { /* private */
  struct um_waiter *first, *last;
};

/* A set of fibers that are cancelled and joined together. Zero-initialised or
 * um_group_init(); belongs to one reactor; must outlive its members. */
typedef struct um_group {
  struct um_fiber *members; /* private */
  struct um_waitq waiters;  /* private */
  unsigned count;           /* members that have not ended; read-only */
  int result;               /* first negative result of a member, or 0; read-only */
} um_group;

/* The same as zero-initialising it. */
UM_API void um_group_init(um_group *group);
/* Like um_fiber_spawn() on the current reactor, detached, as a member. */
UM_API int um_group_spawn(um_group *group, um_fiber_fn fn, void *arg,
                          const um_fiber_options *options);
/* um_fiber_cancel() on every member. */
UM_API void um_group_cancel(um_group *group);
/* Waits until no member is left. 0, -ETIMEDOUT, -ECANCELED, UM_ENOTFIBER. */
UM_API int um_group_join(um_group *group, um_time deadline);

/* ---- fiber-local data ---- */

#define UM_LOCAL_KEYS 16

/* A process-wide key; `destroy` (may be NULL) is called with each fiber's
 * non-NULL value when that fiber ends. Any thread. Returns the key (>= 0) or
 * -EAGAIN when all UM_LOCAL_KEYS are taken. Keys are never given back. */
UM_API int um_local_create(void (*destroy)(void *value));
/* The calling fiber's value; NULL when unset, outside a fiber or no such key. */
UM_API void *um_local_get(int key);
/* 0, UM_ENOTFIBER, -EINVAL (no such key), -ENOMEM. */
UM_API int um_local_set(int key, void *value);

#ifdef __cplusplus
}
#endif
#endif
