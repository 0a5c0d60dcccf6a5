/* Accepting with one multishot operation, with back-off while descriptors or
 * memory are short. The kernel answers it with all that is in the listening socket's queue, however
 * many: who must not have so many accepts one at a time. */
#include "alloc.h"
#include "../log.h"
#include "reactor.h"
#include "waitq.h"

#include <bio_uring/io.h>

#include <poll.h>
#include <string.h>
#include <unistd.h>

#define ENOUGH 64u               /* accepted and not taken: pause accepting */
#define BACKOFF_FIRST (10 * UM_MS)
#define BACKOFF_MOST UM_SECOND

struct um_acceptor {
  um_reactor *reactor;
  int listen_fd;
  um_op *op;                     /* armed: accept, or poll on an O_NONBLOCK listener */
  um_task *waiter, *closer;
  int *accepted;                 /* descriptors [first, last) */
  unsigned first, last, capacity;
  int error;                     /* for the next call */
  um_time backoff;
  struct um_timer retry;         /* set: backing off */
  bool poll_first, singly;
};

static void arm(um_acceptor *a);

/* Without a caller the next one arms it: it may have been paused meanwhile. */
static void backed_off(struct um_timer *timer) {
  um_acceptor *a = (um_acceptor *)((char *)timer - offsetof(um_acceptor, retry));
  if (a->waiter) arm(a);
}

static bool short_of_something(int error) {
  return error == -EMFILE || error == -ENFILE || error == -ENOBUFS || error == -ENOMEM;
}

/* Errors of one connection that never came to be (accept(2)) concern nobody. */
static bool of_one_connection(int error) {
  switch (error) {
    case -ECONNABORTED: case -EINTR: case -ECANCELED: case -ENETDOWN: case -EPROTO:
    case -ENOPROTOOPT: case -EHOSTDOWN: case -ENONET: case -EHOSTUNREACH: case -ENETUNREACH:
      return true;
    default:
      return false;
  }
}

static void back_off(um_acceptor *a, int error) {
  if (!a->backoff)
    um__log(UM_LOG_WARNING, "accepting pauses: %s%s", um_strerror(error),
            error == -EMFILE ? ": raise the limit of open files (RLIMIT_NOFILE)" : "");
  a->backoff = !a->backoff ? BACKOFF_FIRST : a->backoff < BACKOFF_MOST / 2 ? a->backoff * 2 : BACKOFF_MOST;
  UM_COUNT(a->reactor, accept_backoffs, 1);
  um__timer_set(a->reactor, &a->retry, um_now() + a->backoff);
}

static int keep(um_acceptor *a, int fd) {
  if (a->first == a->last) a->first = a->last = 0;
  if (a->last == a->capacity) {
    unsigned capacity = a->capacity ? a->capacity * 2 : 2 * ENOUGH;
    int *grown = um__alloc_raw(capacity * sizeof *grown);
    if (!grown) return -ENOMEM;
    if (a->accepted) memcpy(grown, a->accepted + a->first, (a->last - a->first) * sizeof *grown);
    um__free(a->accepted);
    a->last -= a->first;
    a->first = 0;
    a->accepted = grown;
    a->capacity = capacity;
  }
  a->accepted[a->last++] = fd;
  return 0;
}

static void failed(um_acceptor *a, int error) {
  if (short_of_something(error)) back_off(a, error);
  else if (error == -EAGAIN) a->poll_first = true;
  else if (!of_one_connection(error)) a->error = error;
}

static void accept_over(um_acceptor *a, um_op *op) {
  a->op = NULL;
  um__op_release(op);
  if (a->closer) um__task_wake(a->closer, 0);
}

static void accept_done(um_op *op, const um_completion *completion) {
  um_acceptor *a = op->owner;
  int fd = completion->result;
  if (!completion->more) accept_over(a, op);
  if (fd < 0) {
    failed(a, fd);
  } else if (keep(a, fd) < 0) {
    close(fd);
    back_off(a, -ENOMEM);
  } else {
    a->backoff = 0;
  }
  if (a->last - a->first >= ENOUGH && a->op) um__op_cancel(a->op);
  if (a->waiter && (a->first < a->last || a->error)) um__task_wake(a->waiter, 0);
  else if (a->waiter) arm(a);
}

static void accept_polled(um_op *op, const um_completion *completion) {
  um_acceptor *a = op->owner;
  (void)completion;
  accept_over(a, op);
  if (a->waiter) arm(a);
}

static void arm(um_acceptor *a) {
  bool backing_off = a->retry.deadline != UM_FOREVER;
  if (a->op || a->closer || backing_off || a->last - a->first >= ENOUGH) return;
  enum um_op_code accepting = a->singly ? UM_OP_ACCEPT : UM_OP_ACCEPT_MULTI;
  enum um_op_code code = a->poll_first ? UM_OP_POLL : accepting;
  um_op *op = um__op_new(a->reactor, code, a->listen_fd);
  if (!op) {
    back_off(a, -ENOMEM);
    return;
  }
  op->owner = a;
  op->flags = a->poll_first ? POLLIN : SOCK_CLOEXEC;
  op->done = a->poll_first ? accept_polled : accept_done;
  a->poll_first = false;
  a->op = op;
  int result = um__op_submit(op);
  if (result < 0) {
    a->op = NULL;
    back_off(a, result);
  }
}

int um_acceptor_create(um_acceptor **out, int fd) {
  um_task *task = um__task();
  *out = NULL;
  if (!task) return UM_ENOTFIBER;
  um_acceptor *a = um__alloc(sizeof *a);
  if (!a || um__timer_reserve(task->reactor) < 0) {
    um__free(a);
    return -ENOMEM;
  }
  a->reactor = task->reactor;
  a->listen_fd = fd;
  a->retry = (struct um_timer){.deadline = UM_FOREVER, .fire = backed_off};
  *out = a;
  return 0;
}

int um_acceptor_next(um_acceptor *a, um_time deadline) {
  um_task *task = um__task();
  if (!task) return UM_ENOTFIBER;
  if (a->waiter) return UM_EREENTRANT;
  while (a->first == a->last && !a->error) {
    arm(a);
    a->waiter = task;
    um__waits_for(a->reactor, "accept", a->listen_fd);
    int result = um__park(a->reactor, deadline);
    a->waiter = NULL;
    if (result == 0) continue;
    if (a->first == a->last && !a->error) return result;
    if (result == -ECANCELED) task->cancel_pending = 1;
  }
  if (a->first < a->last) return a->accepted[a->first++];
  int error = a->error;
  a->error = 0;
  return error;
}

void um_acceptor_pause(um_acceptor *a) {
  if (a->op) um__op_cancel(a->op);
}

void um__acceptor_singly(um_acceptor *a, bool singly) {
  if (singly && !a->singly) um_acceptor_pause(a); /* the next call arms it again */
  a->singly = singly;
}

void um_acceptor_destroy(um_acceptor *a) {
  if (!a) return;
  um_reactor *r = a->reactor;
  a->closer = um__task();
  if (a->op) um__op_cancel(a->op);
  while (a->op) {
    if (a->closer) um__park_shielded(r);
    else um__reactor_pump(r);
  }
  for (; a->first < a->last; a->first++) close(a->accepted[a->first]);
  um__timer_remove(r, &a->retry);
  um__timer_unreserve(r);
  um__free(a->accepted);
  um__free(a);
}
