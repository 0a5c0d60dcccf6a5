/* Ruby fibers as tasks of a reactor.
 *
 * A loop fiber runs um_reactor_run(). Fibers of the machine are reached by transfer, and
 * transfer back to the loop to park; when one ends, Ruby goes on with the innermost
 * fiber that the thread's main fiber has resumed: that must be the loop. So whatever
 * is not a fiber of the machine (the visitor: the main fiber, a fiber somebody else
 * made) parks by resuming the loop, and the loop goes back to it by yielding.
 *
 * Ruby looks at interrupts after each switch. Whatever that or anybody else raises into a parked
 * fiber is caught right there, kept until the operation it waits for is over, and goes on from
 * um_after_wait(). What ends the thread (Thread#kill) is no exception: Ruby knows it by the
 * fiber that it struck, from fiber to fiber it comes only by ending one. So when it strikes
 * the loop that fiber ends, and the visitor, whom Ruby then tells, makes another.
 */
#include "machine.h"

#include <pthread.h>
#include <ruby/debug.h>
#include <ruby/version.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

VALUE um_cUM;
static VALUE task_class;
static ID id_task;

/* ---- objects ---- */

static void task_mark(void *data) {
  task *t = data;
  rb_gc_mark(t->self); /* must not be moved either */
  rb_gc_mark(t->fiber);
  rb_gc_mark(t->parked);
  rb_gc_mark(t->value);
  if (t->raised != Qundef) rb_gc_mark(t->raised);
  for (block_timeout *block = t->timeouts; block; block = block->outer) rb_gc_mark(block->error);
  if (t->machine) rb_gc_mark(t->machine->self);
}

static void task_free(void *data) {
  task *t = data;
  for (block_timeout *block = t->timeouts, *outer; block; block = outer) {
    outer = block->outer;
    xfree(block);
  }
  xfree(t);
}

static const rb_data_type_t task_type = {
    "UM/task", {task_mark, task_free, NULL, NULL, {NULL}}, NULL, NULL,
    RUBY_TYPED_FREE_IMMEDIATELY};

static void machine_mark(void *data) {
  machine *m = data;
  rb_gc_mark(m->self); /* we refer to it: it must not be moved */
  rb_gc_mark(m->loop);
  rb_gc_mark(m->thread);
  if (m->visitor) rb_gc_mark(m->visitor->self);
  for (task *t = m->tasks; t; t = t->next) rb_gc_mark(t->self);
  um_turn_mark(&m->idle);
}

/* With a visitor only at the end of the program: its fibers may have operations in the
 * kernel, and this may be another thread. */
static void machine_free(void *data) {
  machine *m = data;
  if (m->reactor && !m->visitor && m->pid == getpid()) um_reactor_destroy(m->reactor);
  xfree(m);
}

static const rb_data_type_t machine_type = {
    "UM", {machine_mark, machine_free, NULL, NULL, {NULL}}, NULL, NULL,
    RUBY_TYPED_FREE_IMMEDIATELY};

static VALUE machine_allocate(VALUE class) {
  machine *m;
  VALUE self = TypedData_Make_Struct(class, machine, &machine_type, m);
  m->self = self;
  m->loop = m->thread = Qnil;
  return self;
}

static task *task_new(machine *m, VALUE fiber) {
  task *t;
  VALUE self = TypedData_Make_Struct(task_class, task, &task_type, t);
  t->self = self;
  t->machine = m;
  t->fiber = t->parked = fiber;
  t->value = Qnil;
  t->raised = Qundef;
  return t;
}

machine *um_machine_get(VALUE object) {
  machine *m = rb_check_typeddata(object, &machine_type);
  if (!m->reactor) rb_raise(um_eError, m->closed ? "the machine was closed" : "the machine was not initialized");
  return m;
}

/* ---- the host ---- */

static VALUE loop_body(RB_BLOCK_CALL_FUNC_ARGLIST(unused, self));

static VALUE leave_for_loop(VALUE argument) {
  task *t = (task *)argument;
  machine *m = t->machine;
  t->parked = rb_fiber_current();
  if (t != m->visitor) return rb_fiber_transfer(m->loop, 0, NULL);
  if (NIL_P(m->loop) || !RTEST(rb_fiber_alive_p(m->loop))) m->loop = rb_fiber_new(loop_body, m->self);
  return rb_fiber_resume(m->loop, 0, NULL);
}

/* For um_after_wait(). The errinfo of what is no exception is Ruby's own: it must stay. */
static void keep(task *t, int state) {
  if (t->fatal) return;
  VALUE error = rb_errinfo();
  if (!RTEST(rb_obj_is_kind_of(error, rb_eException))) {
    t->fatal = state;
    return;
  }
  t->raised = error;
  rb_set_errinfo(Qnil);
}

/* Without a loop only the visitor runs, which has to be resumed by the next one. */
static bool loop_has_ended(machine *m) {
  return um_reactor_current() != m->reactor && m->pid == getpid();
}

/* -EINTR: the wait is to be abandoned; why is in the task. */
static int host_park(um_host *host, um_task *um) {
  task *t = (task *)um;
  int state = 0;
  t->is_parked = true;
  rb_protect(leave_for_loop, (VALUE)t, &state);
  if (state) keep(t, state);
  bool abandon = state || t->interrupted;
  while (loop_has_ended(t->machine)) {
    um_task_wake(um);
    rb_protect(leave_for_loop, (VALUE)t, &state);
    if (state) keep(t, state);
    abandon = true;
  }
  t->is_parked = t->interrupted = false;
  return abandon ? -EINTR : 0;
}

static VALUE go_to(VALUE argument) {
  task *t = (task *)argument;
  if (t == t->machine->visitor) {
    rb_fiber_yield(0, NULL);
  } else if (t->began) {
    rb_fiber_transfer(t->parked, 0, NULL);
  } else {
    VALUE value = t->value; /* the block's argument */
    t->began = true;
    t->value = Qnil;
    rb_fiber_transfer(t->fiber, 1, &value);
  }
  return Qnil;
}

/* What is raised in the loop's fiber concerns the thread: it goes to the visitor. */
static void raised_in_loop(machine *m, int state) {
  if (m->fatal) return;
  VALUE error = rb_errinfo();
  if (RTEST(rb_obj_is_kind_of(error, rb_eException))) {
    rb_set_errinfo(Qnil);
    um_interrupt(m->visitor, error);
  } else {
    m->fatal = state;
    um_reactor_stop(m->reactor);
  }
}

static void end_task(task *t);

/* Control comes back without the task having parked when something was raised into
 * the loop's fiber, which only Ruby's own means could reach. */
static void host_resume(um_host *host, um_task *um) {
  task *t = (task *)um;
  do {
    int state = 0;
    rb_protect(go_to, (VALUE)t, &state);
    if (state) raised_in_loop(t->machine, state);
    if (t->is_parked || t->ended) break;
    if (!NIL_P(t->fiber) && !RTEST(rb_fiber_alive_p(t->fiber))) end_task(t); /* killed at its very end */
  } while (!t->ended);
  RB_GC_GUARD(t->self);
}

void um_interrupt(task *t, VALUE error) {
  t->raised = error;
  if (!t->is_parked) return; /* raised when it next waits */
  t->interrupted = true;
  um_task_wake(&t->um);
}

/* ---- sleeping without the GVL ---- */

typedef struct sleep_call {
  void (*sleep)(void *);
  void *argument;
  bool slept;
} sleep_call;

static void *sleep_unlocked(void *data) {
  sleep_call *call = data;
  call->slept = true;
  call->sleep(call->argument);
  return NULL;
}

static void stop_reactor(void *reactor) { um_reactor_stop(reactor); }

/* An interrupt makes um_reactor_run() return, so that the loop can look at it; here
 * nothing may be raised. Stopping is safe in signal handlers: Ruby, told so, does not
 * start a thread for each sleep of the main one, to do it outside of them. */
static void around_sleep(void (*sleep)(void *), void *argument, void *reactor) {
  sleep_call call = {sleep, argument, false};
  rb_nogvl(sleep_unlocked, &call, stop_reactor, reactor, RB_NOGVL_INTR_FAIL | RB_NOGVL_UBF_ASYNC_SAFE);
  if (!call.slept) um_reactor_stop(reactor);
}

/* ---- the loop ---- */

static VALUE check_interrupts(VALUE unused) {
  rb_thread_check_ints();
  return Qnil;
}

static VALUE loop_body(RB_BLOCK_CALL_FUNC_ARGLIST(unused, self)) {
  machine *m = rb_check_typeddata(self, &machine_type);
  while (!m->closed) {
    int result = um_reactor_run(m->reactor), state = 0;
    if (result == UM_EFORKED) break; /* the child left the fiber that forked it */
    if (result < 0) rb_bug("UM: the ring failed: %s", um_strerror(result));
    if (!m->fatal) rb_protect(check_interrupts, Qnil, &state);
    if (state) raised_in_loop(m, state);
    if (!m->fatal) continue;
    state = m->fatal;
    m->fatal = 0;
    rb_jump_tag(state);
  }
  return Qnil;
}

/* ---- machines whose thread has ended ---- */

/* Which machine the native thread runs. Ruby 3.1 tells nobody of a thread that ends by an exception,
 * Ruby 3.4 nobody of one in a Ractor, and the native thread may be given to a new one:
 * whichever comes first, that or the native thread's own end, finds the machine. */
static pthread_key_t own_machine;
static pthread_once_t own_machine_once = PTHREAD_ONCE_INIT;
static _Atomic(machine *) left_behind;

/* On the native thread, without the GVL: only what the kernel has is taken back. */
static void native_thread_ends(void *data) {
  machine *m = data;
  if (m->pid != getpid()) return;
  um_reactor_abandon();
  m->next_left = atomic_load(&left_behind);
  while (!atomic_compare_exchange_weak(&left_behind, &m->next_left, m));
}

static void make_key(void) {
  if (pthread_key_create(&own_machine, native_thread_ends)) rb_bug("UM: no key for the machines of threads");
}

/* The kernel has nothing of its fibers any more, nor may others wait for them. */
static void bury(machine *m) {
  for (task *t = m->tasks, *next; t; t = next) {
    next = t->next;
    t->ended = true;
    t->next = t->previous = NULL;
    for (duty *d = t->duties; d; d = d->outer) d->end(d->argument);
    t->duties = NULL;
  }
  m->tasks = m->visitor = NULL;
  m->live = 0;
  m->closed = true;
  um_reactor_destroy(m->reactor);
  m->reactor = NULL;
  rb_gc_unregister_address(&m->self);
}

void um_bury_machines(void) {
  if (!atomic_load_explicit(&left_behind, memory_order_relaxed)) return;
  for (machine *m = atomic_exchange(&left_behind, NULL), *next; m; m = next) {
    next = m->next_left;
    bury(m);
  }
}

static void bury_own(machine *m) {
  um_reactor_abandon();
  pthread_setspecific(own_machine, NULL);
  bury(m);
}

static void thread_ends(rb_event_flag_t event, VALUE data, VALUE self, ID method, VALUE class) {
  machine *m = um_reactor_current() ? pthread_getspecific(own_machine) : NULL;
  if (m) bury_own(m);
}

/* ---- entering ---- */

um_task *um_here(void) {
  if (!um_reactor_current()) return NULL;
  machine *m = pthread_getspecific(own_machine);
  if (m && m->thread == rb_thread_current()) return um_task_current();
  if (m) bury_own(m);
  return NULL;
}

static um_reactor *reactor_here(void) {
  um_here();
  return um_reactor_current();
}

/* A ring is for one native thread, and so is what we know by pthread_getspecific(). Ruby moves
 * threads between native ones in Ractors, and with RUBY_MN_THREADS=1 in the main one, too. */
static void keep_native_thread(void) {
#ifdef HAVE_RB_THREAD_LOCK_NATIVE_THREAD
  rb_thread_lock_native_thread();
#endif
}

/* Ruby 3.3 moves them and cannot be told not to. */
static void check_kind_of_thread(void) {
#ifndef HAVE_RB_THREAD_LOCK_NATIVE_THREAD
  if (strncmp(ruby_version, "3.3.", 4)) return;
  const char *threads = getenv("RUBY_MN_THREADS");
  VALUE ractor = rb_path2class("Ractor");
  if (threads && !strcmp(threads, "1"))
    rb_raise(um_eError, "RUBY_MN_THREADS=1 has Ruby 3.3 move threads between native ones, which a ring cannot follow");
  if (rb_funcall(ractor, rb_intern("current"), 0) != rb_funcall(ractor, rb_intern("main"), 0))
    rb_raise(um_eError, "Ruby 3.3 moves a Ractor's threads between native ones, which a ring cannot follow; 3.4 can do without");
#endif
}

static void check_thread(machine *m) {
  if (m->pid != getpid())
    rb_raise(um_eError, "the machine belongs to the parent process: make a new one after fork");
  if (NIL_P(m->thread)) {
    m->thread = rb_thread_current();
    keep_native_thread();
  }
  if (m->thread != rb_thread_current())
    rb_raise(um_eError, "the machine belongs to another thread");
  if (reactor_here())
    rb_raise(um_eError, "this thread is running another machine, or this one's loop");
}

static void register_visitor(machine *m) {
  m->visitor = task_new(m, Qnil);
  int result = um_task_register(&m->visitor->um, m->reactor, &m->host);
  if (result < 0) {
    m->visitor = NULL;
    um_raise(result);
  }
  um_task_wake(&m->visitor->um);
  rb_gc_register_address(&m->self); /* the thread's own pointer to it is invisible */
}

/* The visitor stays a task from now on: what it calls next waits in the ring too. */
static void become_visitor(machine *m) {
  int state = 0;
  check_thread(m);
  if (!m->visitor) register_visitor(m);
  pthread_setspecific(own_machine, m);
  m->visitor->is_parked = m->visitor->began = true;
  rb_protect(leave_for_loop, (VALUE)m->visitor, &state);
  m->visitor->is_parked = false;
  if (state && um_reactor_current() != m->reactor) {
    m->loop = Qnil; /* no memory for a fiber, say: it may be tried again */
    rb_jump_tag(state);
  }
  if (state) keep(m->visitor, state);
}

task *um_enter(machine *m) {
  if (reactor_here() != m->reactor || !um_here()) {
    if (m->visitor) check_thread(m);
    become_visitor(m);
  }
  task *t = (task *)um_here();
  if (t->raised != Qundef || t->fatal) um_after_wait(0);
  return t;
}

static task *current(void) { return (task *)um_here(); }

bool um_on_ring(void) { return um_here() != NULL; }

um_time um_deadline_of(VALUE seconds) {
  if (NIL_P(seconds)) return UM_FOREVER;
  double wait = NUM2DBL(seconds);
  if (wait > 1e9) return UM_FOREVER;
  return um_now() + (um_time)(wait < 0 ? 0 : wait * UM_SECOND);
}

um_time um_deadline(um_time own) {
  task *t = current();
  for (block_timeout *block = t ? t->timeouts : NULL; block; block = block->outer)
    if (block->at < own) own = block->at;
  return own;
}

NORETURN(static void raise_error(VALUE error));
static void raise_error(VALUE error) {
  if (rb_obj_is_kind_of(error, rb_cClass)) rb_raise(error, "execution expired");
  rb_exc_raise(error);
}

/* The outermost block whose time is up: it ends the inner ones too. */
static void check_timeouts(task *t) {
  VALUE error = Qundef;
  um_time now = um_now();
  for (block_timeout *block = t->timeouts; block; block = block->outer)
    if (block->at <= now) error = block->error;
  if (error != Qundef) raise_error(error);
}

void um_after_wait(int result) {
  task *t = current();
  if (!t) return;
  if (t->fatal) {
    int state = t->fatal;
    t->fatal = 0;
    t->raised = Qundef;
    rb_jump_tag(state);
  }
  if (t->raised != Qundef) {
    VALUE error = t->raised;
    t->raised = Qundef;
    raise_error(error);
  }
  if (result == -ETIMEDOUT) check_timeouts(t);
}

static VALUE duty_done(VALUE argument) {
  duty *d = (duty *)argument;
  d->task->duties = d->outer;
  return d->end(d->argument);
}

VALUE um_ensure(VALUE (*body)(VALUE), VALUE argument, VALUE (*end)(VALUE), VALUE end_argument) {
  task *t = current();
  if (!t) return rb_ensure(body, argument, end, end_argument);
  duty d = {t, t->duties, end, end_argument};
  t->duties = &d;
  return rb_ensure(body, argument, duty_done, (VALUE)&d);
}

ssize_t um_finish(ssize_t result) {
  um_after_wait(result < 0 ? (int)result : 0);
  if (result < 0) um_raise((int)result);
  return result;
}

/* ---- fibers ---- */

static void link_task(machine *m, task *t) {
  t->next = m->tasks;
  if (m->tasks) m->tasks->previous = t;
  m->tasks = t;
  m->live++;
}

static void unlink_task(machine *m, task *t) {
  if (t->previous) t->previous->next = t->next;
  else m->tasks = t->next;
  if (t->next) t->next->previous = t->previous;
  t->next = t->previous = NULL;
}

/* start(fiber, value): makes a fiber that has not run one of the machine's. */
static VALUE machine_start(VALUE self, VALUE fiber, VALUE value) {
  machine *m = um_machine_get(self);
  if (reactor_here() != m->reactor) check_thread(m);
  task *t = task_new(m, fiber);
  int result = um_task_register(&t->um, m->reactor, &m->host);
  if (result < 0) um_raise(result);
  t->value = value;
  link_task(m, t);
  rb_ivar_set(fiber, id_task, t->self);
  um_task_wake(&t->um);
  return fiber;
}

static void end_task(task *t) {
  machine *m = t->machine;
  t->ended = true;
  um_task_unregister(&t->um);
  if (!t->posts) unlink_task(m, t); /* or else the last callback does */
  if (--m->live == 0) um_turn_wake_all(&m->idle);
}

/* The last thing a fiber of the machine does. */
static VALUE machine_ended(VALUE self, VALUE fiber) {
  task *t = um_task_of_fiber(um_machine_get(self), fiber);
  if (t && !t->ended) end_task(t);
  return Qnil;
}

task *um_task_of_fiber(machine *m, VALUE fiber) {
  VALUE object = rb_attr_get(fiber, id_task);
  task *t = NIL_P(object) ? NULL : rb_check_typeddata(object, &task_type);
  return t && t->machine == m ? t : m->visitor; /* after a fork: another machine's */
}

/* schedule(fiber, value): goes on with a fiber that waits in #yield, which returns the
 * value; an exception is raised in it instead, whatever it waits for. */
static VALUE machine_schedule(VALUE self, VALUE fiber, VALUE value) {
  machine *m = um_machine_get(self);
  task *t = um_task_of_fiber(m, fiber);
  if (!t) rb_raise(rb_eArgError, "not a fiber of this machine");
  if (t->ended) return self;
  if (rb_obj_is_kind_of(value, rb_eException)) {
    um_interrupt(t, value);
  } else {
    t->value = value;
    um_task_wake(&t->um);
  }
  return self;
}

/* Wakes are harmless in excess: who waits checks what for. */
static int wake_here(void *data) {
  task *t = data;
  t->posts--;
  if (!t->ended) um_task_wake(&t->um);
  else if (!t->posts) unlink_task(t->machine, t);
  return 0;
}

/* From any thread; under the GVL, as the callback. */
static void wake_anywhere(task *t) {
  if (reactor_here() == t->machine->reactor) {
    um_task_wake(&t->um);
  } else if (um_post(t->machine->reactor, wake_here, t) == 0) {
    t->posts++;
  }
}

void um_interrupt_anywhere(um_task *um, VALUE error) {
  task *t = (task *)um;
  t->raised = error;
  t->interrupted = t->is_parked;
  wake_anywhere(t);
}

/* wake(fiber): ends its #park, from any thread. */
static VALUE machine_wake(VALUE self, VALUE fiber) {
  machine *m = um_machine_get(self);
  task *t = um_task_of_fiber(m, fiber);
  if (!t) m->early_wake = true;
  if (!t || t->ended) return Qfalse;
  t->value = Qtrue;
  wake_anywhere(t);
  return Qtrue;
}

/* raise_in_main(error): what ends the program must not end in a fiber. */
static VALUE machine_raise_in_main(VALUE self, VALUE error) {
  machine *m = um_machine_get(self);
  if (m->visitor) um_interrupt(m->visitor, error);
  return Qnil;
}

/* yield: waits until the fiber is scheduled; what it was scheduled with. */
static VALUE machine_yield(VALUE self) {
  task *t = um_enter(um_machine_get(self));
  int result = um_task_wait(um_deadline(UM_FOREVER));
  um_after_wait(result);
  VALUE value = t->value;
  t->value = Qnil;
  return value;
}

/* park(seconds): true when woken by #wake, false when the time is up. */
static VALUE machine_park(VALUE self, VALUE seconds) {
  machine *m = um_machine_get(self);
  task *t = um_enter(m);
  um_time until = um_deadline_of(seconds);
  int result = 0;
  if (t == m->visitor && m->early_wake) t->value = Qtrue;
  m->early_wake = false;
  while (t->value != Qtrue && result != -ETIMEDOUT) {
    result = um_task_wait(um_deadline(until));
    um_after_wait(result);
  }
  bool woken = t->value == Qtrue;
  t->value = Qnil;
  return woken ? Qtrue : Qfalse;
}

/* snooze: lets the other fibers that can run go first. */
static VALUE machine_snooze(VALUE self) {
  um_enter(um_machine_get(self));
  um_after_wait(um_fiber_yield());
  return self;
}

/* sleep(seconds): suspends the fiber; returns the seconds. */
static VALUE machine_sleep(VALUE self, VALUE seconds) {
  um_enter(um_machine_get(self));
  um_time until = um_deadline_of(seconds), now;
  do um_after_wait(um_task_wait(um_deadline(until)));
  while ((now = um_now()) < until);
  return seconds;
}

static VALUE timeout_ended(VALUE argument) {
  block_timeout *block = (block_timeout *)argument;
  task *t = current(); /* none, or another, if the block shut the machine down */
  block_timeout **link = t ? &t->timeouts : NULL;
  while (link && *link && *link != block) link = &(*link)->outer;
  if (!link || !*link) return Qnil;
  *link = block->outer;
  xfree(block);
  return Qnil;
}

/* timeout(seconds, error) { }: what the block waits for when the time is up raises. */
static VALUE machine_timeout(VALUE self, VALUE seconds, VALUE error) {
  task *t = um_enter(um_machine_get(self));
  um_time at = um_deadline_of(seconds);
  block_timeout *block = ALLOC(block_timeout);
  *block = (block_timeout){t->timeouts, at, error};
  t->timeouts = block;
  return rb_ensure(rb_yield, seconds, timeout_ended, (VALUE)block);
}

/* drain: waits until all of the machine's fibers have ended. */
static VALUE machine_drain(VALUE self) {
  machine *m = um_machine_get(self);
  um_enter(m);
  while (m->live) um_turn_wait(&m->idle, UM_FOREVER);
  return self;
}

/* ---- life ---- */

static void read_options(VALUE options, um_reactor_config *config) {
  ID names[] = {rb_intern("size"), rb_intern("sqpoll")};
  VALUE values[2];
  rb_get_kwargs(options, names, 0, 2, values);
  if (values[0] != Qundef && !NIL_P(values[0])) config->entries = NUM2UINT(values[0]);
  if (values[1] != Qundef && RTEST(values[1])) config->flags |= UM_REACTOR_SQPOLL;
}

/* UM.new(size: 256, sqpoll: false) */
static VALUE machine_initialize(int argc, VALUE *argv, VALUE self) {
  machine *m = rb_check_typeddata(self, &machine_type);
  VALUE options;
  rb_scan_args(argc, argv, "0:", &options);
  check_kind_of_thread();
  um_here();
  um_bury_machines();
  um_reactor_config config = {0};
  if (!NIL_P(options)) read_options(options, &config);
  um_error error;
  if (um_reactor_create(&m->reactor, &config, &error) < 0) rb_raise(um_eError, "%s", error.message);
  m->host = (um_host){host_park, host_resume};
  m->pid = getpid();
  um_reactor_around_sleep(m->reactor, around_sleep, m->reactor);
  return self;
}

/* The visitor leaves: the loop finds no task and ends. Returns what that was interrupted by. */
static int leave_machine(machine *m) {
  task *t = m->visitor;
  t->ended = true;
  um_task_unregister(&t->um);
  m->closed = true;
  int state = 0;
  rb_protect(leave_for_loop, (VALUE)t, &state);
  m->visitor = NULL;
  pthread_setspecific(own_machine, NULL);
  rb_gc_unregister_address(&m->self);
  return state;
}

/* shut_down: frees the ring. Fibers must have ended. */
static VALUE machine_shut_down(VALUE self) {
  machine *m = rb_check_typeddata(self, &machine_type);
  task *visitor = m->visitor;
  int state = 0;
  if (!m->reactor) return Qnil;
  if (m->pid == getpid()) {
    if (m->live) rb_raise(um_eError, "%u fibers of the machine have not ended", m->live);
    if (m->visitor && current() != m->visitor)
      rb_raise(um_eError, "a machine is shut down by the fiber that runs it, not by one of its own");
    if (m->visitor) state = leave_machine(m);
  }
  m->closed = true;
  um_reactor_destroy(m->reactor);
  m->reactor = NULL;
  if (state) rb_jump_tag(state);
  if (visitor && visitor->raised != Qundef) raise_error(visitor->raised); /* on the way out */
  return Qnil;
}

/* live: how many of its fibers have not ended. */
static VALUE machine_live(VALUE self) { return UINT2NUM(um_machine_get(self)->live); }

/* running?: whether the calling fiber runs on this machine. */
static VALUE machine_running_p(VALUE self) {
  machine *m = um_machine_get(self);
  return reactor_here() == m->reactor && um_here() ? Qtrue : Qfalse;
}

/* ours?: whether the machine was made in this process and can be used; not after a fork. */
static VALUE machine_ours_p(VALUE self) {
  machine *m = rb_check_typeddata(self, &machine_type);
  return m->reactor && m->pid == getpid() ? Qtrue : Qfalse;
}

/* metrics: what the ring has done so far, counted; names as in um_metrics(3). */
static VALUE machine_metrics(VALUE self) {
  um_metrics metrics;
  um_reactor_metrics(um_machine_get(self)->reactor, &metrics);
  static const char *const names[] = {
      "ticks", "enters", "submissions", "completions", "cancels", "stale", "switches", "waits",
      "spawned", "fibers", "pending", "unsubmitted", "enobufs", "sq_full", "cq_overflows",
      "short_sends", "posts", "post_errors", "wakes", "timers", "buffers_used", "received_bytes",
      "sent_bytes", "copied_bytes", "accept_backoffs", "unregistered", "turns", "receive_queued", "send_held",
      "squeezed", "floods", "receive_pauses", "send_waits"};
  _Static_assert(sizeof names / sizeof *names == sizeof metrics / sizeof(uint64_t), "a name for each");
  const uint64_t *values = (const uint64_t *)&metrics;
  VALUE hash = rb_hash_new();
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    rb_hash_aset(hash, ID2SYM(rb_intern(names[i])), ULL2NUM(values[i]));
  return hash;
}

void um_init_machine(void) {
#if 0 /* for RDoc, which looks at one file at a time */
  um_cUM = rb_define_class("UM", rb_cObject);
#endif
  id_task = rb_intern("um_task");
  pthread_once(&own_machine_once, make_key);
  rb_add_event_hook(thread_ends, RUBY_EVENT_THREAD_END, Qnil);
  /* Document-class: UM::Task
   * The machine's side of a fiber; private. */
  task_class = rb_define_class_under(um_cUM, "Task", rb_cObject);
  rb_undef_alloc_func(task_class);
  rb_define_alloc_func(um_cUM, machine_allocate);
  rb_define_method(um_cUM, "initialize", machine_initialize, -1);
  rb_define_method(um_cUM, "schedule", machine_schedule, 2);
  rb_define_method(um_cUM, "wake", machine_wake, 1);
  rb_define_method(um_cUM, "yield", machine_yield, 0);
  rb_define_method(um_cUM, "switch", machine_yield, 0);
  rb_define_method(um_cUM, "park", machine_park, 1);
  rb_define_method(um_cUM, "snooze", machine_snooze, 0);
  rb_define_method(um_cUM, "sleep", machine_sleep, 1);
  rb_define_method(um_cUM, "timeout", machine_timeout, 2);
  rb_define_method(um_cUM, "drain", machine_drain, 0);
  rb_define_method(um_cUM, "shut_down", machine_shut_down, 0);
  rb_define_method(um_cUM, "live", machine_live, 0);
  rb_define_method(um_cUM, "running?", machine_running_p, 0);
  rb_define_method(um_cUM, "ours?", machine_ours_p, 0);
  rb_define_method(um_cUM, "metrics", machine_metrics, 0);
  rb_define_private_method(um_cUM, "start", machine_start, 2);
  rb_define_private_method(um_cUM, "ended", machine_ended, 1);
  rb_define_private_method(um_cUM, "raise_in_main", machine_raise_in_main, 1);
}
