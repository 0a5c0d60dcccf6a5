/* Taking turns: a list of waiters of every kind.
 *
 * A fiber of a machine parks on an event of the library; anybody else pops a
 * Thread::Queue, which other fiber schedulers and plain threads both understand. */
#include "um_ruby.h"

struct um_turn_waiter {
  struct um_turn_waiter *next, *previous;
  um_turn *turn;
  um_event event;
  VALUE queue;     /* nil: nobody pops it, or not yet */
  bool on_ring;    /* a machine's fiber waits on `event` */
  um_time deadline;
  bool woken, returned;
};

static void leave(um_turn *turn, struct um_turn_waiter *waiter) {
  if (waiter->previous) waiter->previous->next = waiter->next;
  else turn->first = waiter->next;
  if (waiter->next) waiter->next->previous = waiter->previous;
  else turn->last = waiter->previous;
}

static void enter(um_turn *turn, struct um_turn_waiter *waiter) {
  waiter->previous = turn->last;
  if (turn->last) turn->last->next = waiter;
  else turn->first = waiter;
  turn->last = waiter;
}

static VALUE pop(VALUE queue, um_time deadline) {
#ifdef HAVE_RB_IO_TIMEOUT /* Ruby 3.2, and with it Queue#pop(timeout:) */
  if (deadline != UM_FOREVER) {
    um_time left = deadline - um_now();
    VALUE options = rb_hash_new();
    rb_hash_aset(options, ID2SYM(rb_intern("timeout")),
                 DBL2NUM(left < 0 ? 0 : (double)left / UM_SECOND));
    return rb_funcallv_kw(queue, rb_intern("pop"), 1, &options, RB_PASS_KEYWORDS);
  }
#endif
  (void)deadline;
  return rb_funcall(queue, rb_intern("pop"), 0);
}

static VALUE wait_woken(VALUE argument) {
  struct um_turn_waiter *waiter = (struct um_turn_waiter *)argument;
  if (waiter->on_ring) {
    int result = um_event_wait(&waiter->event, um_deadline(waiter->deadline));
    um_after_wait(waiter->woken ? 0 : result);
  } else {
    VALUE queue = rb_class_new_instance(0, NULL, rb_const_get(rb_cThread, rb_intern("Queue")));
    waiter->queue = queue;
    if (!waiter->woken) pop(queue, waiter->deadline); /* making it may let others run */
    RB_GC_GUARD(queue);
  }
  waiter->returned = true;
  return Qnil;
}

/* Whoever unwinds through here after it was woken passes the wake-up on. */
static VALUE wait_left(VALUE argument) {
  struct um_turn_waiter *waiter = (struct um_turn_waiter *)argument;
  if (!waiter->woken) leave(waiter->turn, waiter);
  else if (!waiter->returned) um_turn_wake_one(waiter->turn);
  return Qnil;
}

bool um_turn_wait(um_turn *turn, um_time deadline) {
  um_bury_machines(); /* one of their fibers may have the turn */
  struct um_turn_waiter waiter = {
      .turn = turn, .queue = Qnil, .on_ring = um_on_ring(), .deadline = deadline};
  um_event_init(&waiter.event);
  enter(turn, &waiter); /* first of all: from here on no wake-up is missed */
  um_ensure(wait_woken, (VALUE)&waiter, wait_left, (VALUE)&waiter);
  return waiter.woken;
}

static void wake(struct um_turn_waiter *waiter) {
  leave(waiter->turn, waiter);
  waiter->woken = true;
  if (waiter->on_ring) um_event_set(&waiter->event);
  else if (!NIL_P(waiter->queue)) rb_funcall(waiter->queue, rb_intern("push"), 1, Qtrue);
}

void um_turn_wake_one(um_turn *turn) {
  if (turn->first) wake(turn->first);
}

void um_turn_wake_all(um_turn *turn) {
  while (turn->first) wake(turn->first);
}

/* The waiters live on the stacks of fibers that are marked themselves; a queue may
 * only be referred to from there, in a register of a parked context. */
void um_turn_mark(const um_turn *turn) {
  for (struct um_turn_waiter *waiter = turn->first; waiter; waiter = waiter->next)
    rb_gc_mark(waiter->queue);
}
