/* What the parts of the extension share. Public headers of libbio_uring only.
 *
 * Two rules hold everywhere: nothing suspends or raises inside an OpenSSL frame,
 * and nothing stays armed in the kernel between two calls from Ruby. */
#ifndef UM_RUBY_H
#define UM_RUBY_H

/* First: its configuration asks the C library for everything it has. */
#include <ruby.h>
#include <ruby/io.h>
#include <ruby/thread.h>

#include <bio_uring/base.h>
#include <bio_uring/bio.h>
#include <bio_uring/fiber.h>
#include <bio_uring/host.h>
#include <bio_uring/io.h>
#include <bio_uring/reactor.h>
#include <bio_uring/sync.h>

#include <stdbool.h>

extern VALUE um_cUM;       /* class UM: the machine */
extern VALUE um_eError;    /* UM::Error */
extern VALUE um_eTimeout;  /* UM::TimeoutError */

void um_init_connection(VALUE tls_module);
void um_init_machine(void);
void um_init_machine_io(void);
void um_init_queue(void);

/* ---- errors ---- */

/* Raises what a negative code of the library means; does not return. */
NORETURN(void um_raise(int code));

/* ---- waiting (machine.c) ---- */

/* The task that runs in this Ruby thread, or NULL: never um_task_current() itself. */
um_task *um_here(void);
/* Frees the machines of threads that have ended. */
void um_bury_machines(void);
/* Whether this thread runs a machine: waiting then goes through its ring. */
bool um_on_ring(void);
/* An absolute deadline from seconds (nil: none). */
um_time um_deadline_of(VALUE seconds);
/* The earlier of `own` and the deadlines of the blocks the running fiber is in. */
um_time um_deadline(um_time own);
/* Call after everything the wait brought was put away: raises what was raised into
 * the fiber while it was parked, and the timeouts of its blocks that passed. */
void um_after_wait(int result);

/* rb_ensure(). Of a fiber that never goes on, because its thread has ended, the end is done as
 * well: so `body` must run nobody else's code, which could leave it by other means. */
VALUE um_ensure(VALUE (*body)(VALUE), VALUE argument, VALUE (*end)(VALUE), VALUE end_argument);

/* Has `error` raised in a task of any thread's machine, in place of what it waits for. */
void um_interrupt_anywhere(um_task *task, VALUE error);

/* Whether reading from it, if it is a TLS connection of ours, makes progress whatever its
 * descriptor says. */
bool um_tls_ahead(VALUE socket);

/* ---- taking turns (turn.c) ---- */

/* Who waits for a turn: fibers of machines, of other schedulers, and threads. All
 * of it is guarded by the GVL. Zero-initialised. */
typedef struct um_turn {
  struct um_turn_waiter *first, *last;
} um_turn;

/* Waits until woken. False when the deadline passed. May raise; then it has left
 * the list, and a wake-up it had been given went to the next one. */
bool um_turn_wait(um_turn *turn, um_time deadline);
void um_turn_wake_one(um_turn *turn);
void um_turn_wake_all(um_turn *turn);
void um_turn_mark(const um_turn *turn);

#endif
