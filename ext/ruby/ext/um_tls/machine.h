/* The machine: a reactor whose tasks are Ruby fibers. */
#ifndef UM_MACHINE_H
#define UM_MACHINE_H

#include "um_ruby.h"

typedef struct machine machine;

/* A block with a deadline. Not on a stack: of an Enumerator that is dropped in mid-block that goes. */
typedef struct block_timeout {
  struct block_timeout *outer;
  um_time at;
  VALUE error;
} block_timeout;

/* What um_ensure() is to do; on the stack of the fiber. */
typedef struct duty {
  struct task *task;
  struct duty *outer;
  VALUE (*end)(VALUE);
  VALUE argument;
} duty;

typedef struct task {
  um_task um;            /* first: the reactor knows us by it */
  machine *machine;
  struct task *next, *previous;
  VALUE self;            /* the object that holds this */
  VALUE fiber;           /* nil for the visitor */
  VALUE parked;          /* the fiber to go on with: `fiber`, or one that it runs */
  VALUE value;           /* what it was scheduled with */
  VALUE raised;          /* Qundef, or to be raised when what it waits for is over */
  block_timeout *timeouts;
  duty *duties;
  int fd;                /* one more than the descriptor it waits on, or 0 */
  unsigned posts;        /* wake-ups on their way from other threads */
  int fatal;             /* not 0: rb_jump_tag() to it, when what it waits for is over */
  bool began, is_parked, interrupted, ended;
} task;

struct machine {
  um_host host;          /* first: um_task.host points to it */
  um_reactor *reactor;
  VALUE self, loop, thread;
  task *visitor;         /* whatever in the thread is no fiber of ours: its main fiber, usually */
  task *tasks;           /* alive, marked for the garbage collector */
  machine *next_left;    /* of those whose native thread has ended */
  unsigned live;
  um_turn idle;          /* who waits until no fiber is left */
  pid_t pid;
  int fatal;             /* as a task's, of the loop's fiber */
  bool closed;
  bool early_wake;       /* for the visitor, before there was one */
};

machine *um_machine_get(VALUE object);
/* The running task; makes the calling fiber one. Raises when it cannot be. */
task *um_enter(machine *m);
/* Raises for a negative result, after what was raised into the fiber. */
ssize_t um_finish(ssize_t result);
task *um_task_of_fiber(machine *m, VALUE fiber);
/* Has `error` raised in the task, in place of what it waits for. */
void um_interrupt(task *t, VALUE error);
int um_fd_of(VALUE io);

#endif
