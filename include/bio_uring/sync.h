/* Mutex, event, semaphore and queue: between fibers of one reactor, between
 * reactors, and from plain threads.
 *
 * All are fair (first come, first served) and may be used from any thread.
 * Uncontended operations make no system call. A fiber that must wait parks; a
 * thread that runs no fiber blocks in futex(2). All objects are plain memory:
 * initialise, use, destroy when nobody is inside a call; none may move in between.
 * Waiting calls return 0, -ETIMEDOUT or -ECANCELED unless noted.
 */
#ifndef BIO_URING_SYNC_H
#define BIO_URING_SYNC_H

#include <bio_uring/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/* private: a lock held for a few instructions and a list of who waits */
typedef struct um_waitlist {
  uint32_t lock;
  void *first, *last;
} um_waitlist;

typedef struct um_mutex {
  um_waitlist waiters;
  uint32_t state; /* private */
} um_mutex;

/* Unlocked. The same as zero-initialising it. */
UM_API void um_mutex_init(um_mutex *mutex);
/* Not recursive: locking twice from one fiber waits until the deadline. */
UM_API int um_mutex_lock(um_mutex *mutex, um_time deadline);
/* 0 or -EBUSY. */
UM_API int um_mutex_trylock(um_mutex *mutex);
/* By whoever holds it. Hands over to the first waiter. */
UM_API void um_mutex_unlock(um_mutex *mutex);

/* A flag to wait for: set lets everyone through until it is reset. */
typedef struct um_event {
  um_waitlist waiters;
  uint32_t set; /* private */
} um_event;

/* Not set. The same as zero-initialising it. */
UM_API void um_event_init(um_event *event);
/* Lets through who waits, and who comes until it is reset. */
UM_API void um_event_set(um_event *event);
/* Makes those who come from now on wait. */
UM_API void um_event_reset(um_event *event);
/* Returns at once when it is set. */
UM_API int um_event_wait(um_event *event, um_time deadline);

typedef struct um_semaphore {
  um_waitlist waiters;
  uint64_t value; /* private */
} um_semaphore;

/* With `value` permits. */
UM_API void um_semaphore_init(um_semaphore *semaphore, uint64_t value);
/* Takes a permit, waiting for one. */
UM_API int um_semaphore_acquire(um_semaphore *semaphore, um_time deadline);
/* Gives one back, to the first who waits if anybody does. */
UM_API void um_semaphore_release(um_semaphore *semaphore);

/* A bounded queue of pointers: any number of producers and consumers. */
typedef struct um_queue um_queue;

/* `capacity` items at most, 1..2^24. Errors: -ENOMEM, UM_ECONFIG. */
UM_API int um_queue_create(um_queue **out, size_t capacity);
/* Nobody may be waiting; items still inside are the caller's to have removed. */
UM_API void um_queue_destroy(um_queue *queue);
/* Waits while full. Also UM_ECLOSED. A past deadline makes it a try. */
UM_API int um_queue_push(um_queue *queue, void *item, um_time deadline);
/* The same at the head, so that it is the next to be popped. */
UM_API int um_queue_unshift(um_queue *queue, void *item, um_time deadline);
/* Waits while empty. UM_ECLOSED once closed *and* empty. */
UM_API int um_queue_pop(um_queue *queue, void **item, um_time deadline);
/* Takes the newest item instead. */
UM_API int um_queue_pop_tail(um_queue *queue, void **item, um_time deadline);
/* No more pushes; everyone waiting learns of it. */
UM_API void um_queue_close(um_queue *queue);
/* Items inside, at this moment. */
UM_API size_t um_queue_count(um_queue *queue);

#ifdef __cplusplus
}
#endif
#endif
