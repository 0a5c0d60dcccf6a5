/* The epoll backend, for where io_uring is forbidden.
 *
 * An operation is tried without waiting at the first wait() after its submission. What would
 * have to wait is queued at its descriptor (a watch) and tried again whenever epoll says that
 * the descriptor may be ready: a try too many does no harm, so an event needs no generation.
 *
 * What epoll knows of a descriptor follows from its queue alone. With a multishot operation in
 * it, the registration is level-triggered and stays: no epoll_ctl(2) per receive. Otherwise
 * it is good for one event. With the queue empty nothing is armed: a number that was closed,
 * and perhaps reused, can then neither be waited for in vain nor fire for ever. */
#include "backend_epoll.h"

#include "../error.h"
#include "alloc.h"

#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define CHUNK 256u          /* watches allocated together */
#define MOST_EVENTS 128u    /* a wait: each may take a provided buffer */
#define WAKE_FD (-1)        /* events of no watch */
#define TIMER_FD (-2)

STAILQ_HEAD(op_queue, um_op);

typedef struct watch {
  struct op_queue waiting;
  uint32_t armed;      /* what epoll tells us of; 0: nothing */
  bool known;          /* epoll most likely has an entry */
} watch;

typedef struct poller {
  int epoll_fd, wake_fd, timer_fd;
  struct op_queue fresh; /* submitted, not tried yet */
  struct op_queue timed; /* wait for op->timeout */
  struct op_queue cancels;
  unsigned unsubmitted; /* fresh and cancels, for other threads to read */
  watch **chunks;      /* by descriptor */
  unsigned chunk_count;
  uint8_t *buffers;
  size_t buffers_size;
  unsigned *free_buffers, free_count;
  unsigned most_events;
  bool milliseconds;   /* no epoll_pwait2(2) here: kernel 5.11, or a seccomp filter */
} poller;

static poller *state(const um_reactor *r) { return r->backend_state; }

/* ---- watches ---- */

static watch *find_watch(poller *p, int fd) {
  return &p->chunks[(unsigned)fd / CHUNK][(unsigned)fd % CHUNK];
}

static watch *new_chunk(void) {
  watch *chunk = um__alloc(CHUNK * sizeof *chunk);
  for (unsigned i = 0; chunk && i < CHUNK; i++) STAILQ_INIT(&chunk[i].waiting);
  return chunk;
}

/* Chunks stay where they are: watches are pointed to while the table grows. */
static int make_watch(poller *p, int fd) {
  unsigned chunk = (unsigned)fd / CHUNK;
  if (chunk >= p->chunk_count) {
    unsigned count = chunk + 1 > 2 * p->chunk_count ? chunk + 1 : 2 * p->chunk_count;
    watch **grown = um__alloc(count * sizeof *grown);
    if (!grown) return -ENOMEM;
    if (p->chunks) memcpy(grown, p->chunks, p->chunk_count * sizeof *grown);
    um__free(p->chunks);
    p->chunks = grown;
    p->chunk_count = count;
  }
  if (!p->chunks[chunk]) p->chunks[chunk] = new_chunk();
  return p->chunks[chunk] ? 0 : -ENOMEM;
}

static uint32_t wanted_events(const watch *w) {
  uint32_t events = 0, once = EPOLLONESHOT;
  const um_op *op;
  STAILQ_FOREACH(op, &w->waiting, link) {
    events |= op->wait_events;
    if (op->code == UM_OP_RECV_MULTI || op->code == UM_OP_ACCEPT_MULTI) once = 0;
  }
  return STAILQ_EMPTY(&w->waiting) ? 0 : events | once;
}

/* Tells epoll what the queue wants. The number may belong to another file by now than when
 * epoll learned of it, so each answer is checked against the opposite belief. */
static int watch_update(poller *p, int fd, watch *w) {
  uint32_t wanted = wanted_events(w);
  if (wanted == w->armed) return 0;
  struct epoll_event event = {.events = wanted, .data.u64 = (uint64_t)fd};
  int action = !wanted ? EPOLL_CTL_DEL : w->known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  w->armed = wanted;
  w->known = wanted != 0;
  if (epoll_ctl(p->epoll_fd, action, fd, &event) == 0 || !wanted) return 0;
  if (errno == ENOENT) action = EPOLL_CTL_ADD;
  else if (errno == EEXIST) action = EPOLL_CTL_MOD;
  else action = 0;
  if (action && epoll_ctl(p->epoll_fd, action, fd, &event) == 0) return 0;
  w->armed = 0;
  w->known = false;
  return -errno;
}

/* ---- provided buffers ---- */

int um__epoll_receive(um_reactor *r, int fd, size_t most, int flags, um_completion *c) {
  poller *p = state(r);
  if (!p->free_count) return -ENOBUFS;
  unsigned id = p->free_buffers[p->free_count - 1]; /* the last one used: still in the cache */
  uint8_t *data = p->buffers + (size_t)id * r->config.buffer_size;
  ssize_t n = recv(fd, data, most, flags | MSG_DONTWAIT);
  if (n <= 0) return n < 0 ? -errno : 0;
  p->free_count--;
  UM_COUNT(r, buffers_used, 1);
  c->has_buffer = true;
  c->buffer = id;
  c->data = data;
  return (int)n;
}

static void epoll_recycle(um_reactor *r, unsigned id) {
  state(r)->free_buffers[state(r)->free_count++] = id;
  UM_COUNT(r, buffers_used, -1);
}

/* ---- trying and waiting ---- */

static void deliver(um_reactor *r, um_op *op, um_completion *c, enum um_outcome outcome) {
  c->more = outcome != UM_ENDED;
  um__op_complete(r, um__op_user_data(op), c);
}

static enum um_outcome try(um_reactor *r, um_op *op, um_completion *c) {
  *c = (um_completion){0};
  enum um_outcome outcome;
  do outcome = um__epoll_try(r, op, c);
  while (c->result == -EINTR && op->code != UM_OP_CLOSE); /* closed it is nevertheless */
  return outcome;
}

static void set_timer(poller *p) {
  struct itimerspec when = {0};
  const um_op *op, *first = STAILQ_FIRST(&p->timed);
  STAILQ_FOREACH(op, &p->timed, link) {
    struct timespec at = {op->timeout.tv_sec, op->timeout.tv_nsec};
    bool earlier = at.tv_sec < when.it_value.tv_sec ||
                   (at.tv_sec == when.it_value.tv_sec && at.tv_nsec < when.it_value.tv_nsec);
    if (op == first || earlier) when.it_value = at;
  }
  if (first && !when.it_value.tv_sec && !when.it_value.tv_nsec) when.it_value.tv_nsec = 1;
  timerfd_settime(p->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

/* Queues what has to wait: 0, or why it cannot. */
static int wait_for(um_reactor *r, um_op *op) {
  poller *p = state(r);
  if (op->wait_fd < 0) {
    op->stage = UM_STAGE_TIMED;
    STAILQ_INSERT_TAIL(&p->timed, op, link);
    set_timer(p);
    return 0;
  }
  int result = make_watch(p, op->wait_fd);
  if (result < 0) return result;
  watch *w = find_watch(p, op->wait_fd);
  op->stage = UM_STAGE_WAITING;
  STAILQ_INSERT_TAIL(&w->waiting, op, link);
  result = watch_update(p, op->wait_fd, w);
  if (result == 0) return 0;
  op->stage = UM_STAGE_NONE;
  STAILQ_REMOVE(&w->waiting, op, um_op, link);
  return result;
}

/* Tries an operation that is in no queue, and queues it when it has to wait. */
static void begin(um_reactor *r, um_op *op) {
  um_completion c;
  enum um_outcome outcome;
  op->stage = UM_STAGE_NONE;
  while ((outcome = try(r, op, &c)) == UM_AGAIN) {
    deliver(r, op, &c, outcome);
    if (um__reactor_forked(r)) return;
    if (!op->cancelling) continue;
    outcome = UM_WAITS;
    break;
  }
  if (outcome == UM_ELSEWHERE) return;
  int error = outcome == UM_ENDED ? 0 : wait_for(r, op);
  if (error < 0 && outcome == UM_WAITS) c = (um_completion){.result = error};
  if (error < 0) outcome = UM_ENDED;
  if (outcome != UM_WAITS) deliver(r, op, &c, outcome);
}

static void try_later(poller *p, um_op *op) {
  op->stage = UM_STAGE_FRESH;
  STAILQ_INSERT_TAIL(&p->fresh, op, link);
  __atomic_store_n(&p->unsubmitted, p->unsubmitted + 1, __ATOMIC_RELAXED);
}

/* What epoll does not take (any more) is tried once more and hears why. */
static void rearm(poller *p, int fd, watch *w) {
  if (watch_update(p, fd, w) == 0) return;
  for (um_op *op; (op = STAILQ_FIRST(&w->waiting));) {
    STAILQ_REMOVE_HEAD(&w->waiting, link);
    try_later(p, op);
  }
}

/* Tries all that waits at a descriptor. Completions may submit and cancel, which touches
 * other queues only. What ends leaves epoll before its owner hears of it, who may close the
 * descriptor. A splice may have to wait at its other descriptor now. */
static void serve(um_reactor *r, int fd) {
  poller *p = state(r);
  watch *w = find_watch(p, fd);
  if (w->armed & EPOLLONESHOT) w->armed = 0;
  for (um_op *op = STAILQ_FIRST(&w->waiting), *next; op; op = next) {
    um_completion c;
    bool moves_on = op->code == UM_OP_SPLICE;
    enum um_outcome outcome = moves_on ? UM_ENDED : try(r, op, &c);
    next = outcome == UM_AGAIN ? op : STAILQ_NEXT(op, link);
    if (outcome == UM_ENDED) {
      STAILQ_REMOVE(&w->waiting, op, um_op, link);
      watch_update(p, fd, w);
    }
    if (moves_on) try_later(p, op);
    else if (outcome != UM_WAITS) deliver(r, op, &c, outcome);
    if (um__reactor_forked(r)) return; /* descriptors are the parent's business */
    if (next == op && op->cancelling) next = STAILQ_NEXT(op, link);
  }
  rearm(p, fd, w);
}

/* ---- submitting and cancelling ---- */

static int epoll_submit(um_reactor *r, um_op *op) {
  try_later(state(r), op);
  return 0;
}

static int epoll_cancel(um_reactor *r, um_op *op) {
  poller *p = state(r);
  STAILQ_INSERT_TAIL(&p->cancels, op, cancel_link);
  __atomic_store_n(&p->unsubmitted, p->unsubmitted + 1, __ATOMIC_RELAXED);
  return 0;
}

/* What a send or a receive moved before is its result, as with io_uring. */
static int cancelled_result(const um_op *op) {
  bool moves = op->code == UM_OP_RECV || op->code == UM_OP_SEND;
  return moves && op->offset ? (int)op->offset : -ECANCELED;
}

static void end_cancelled(um_reactor *r, um_op *op) {
  poller *p = state(r);
  if (op->stage == UM_STAGE_FRESH) {
    STAILQ_REMOVE(&p->fresh, op, um_op, link);
  } else if (op->stage == UM_STAGE_TIMED) {
    STAILQ_REMOVE(&p->timed, op, um_op, link);
    set_timer(p);
  } else if (op->stage == UM_STAGE_WAITING) {
    watch *w = find_watch(p, op->wait_fd);
    STAILQ_REMOVE(&w->waiting, op, um_op, link);
    rearm(p, op->wait_fd, w);
  }
  um_completion c = {.result = cancelled_result(op)};
  deliver(r, op, &c, UM_ENDED);
}

static void run_cancels(um_reactor *r) {
  struct op_queue taken = STAILQ_HEAD_INITIALIZER(taken);
  STAILQ_CONCAT(&taken, &state(r)->cancels);
  for (um_op *op; !um__reactor_forked(r) && (op = STAILQ_FIRST(&taken));) {
    STAILQ_REMOVE_HEAD(&taken, cancel_link);
    uint64_t user_data = um__op_user_data(op) | UM_USER_DATA_CANCEL;
    bool late = !op->in_kernel || op->stage >= UM_STAGE_WORKING; /* its own end comes */
    if (!late) end_cancelled(r, op);
    else if (op->in_kernel) op->stage = UM_STAGE_ABANDONED;
    um__op_complete(r, user_data, &(um_completion){.result = late ? -EALREADY : 0});
  }
}

/* What is submitted meanwhile is for the next round. */
static void run_queue(um_reactor *r, struct op_queue *queue) {
  struct op_queue taken = STAILQ_HEAD_INITIALIZER(taken);
  STAILQ_CONCAT(&taken, queue);
  for (um_op *op; !um__reactor_forked(r) && (op = STAILQ_FIRST(&taken));) {
    STAILQ_REMOVE_HEAD(&taken, link);
    begin(r, op);
  }
}

/* ---- the wait ---- */

typedef struct sleep_call {
  poller *p;
  struct epoll_event *events;
  um_time left;
  int result;
} sleep_call;

static void sleep_in_epoll(void *argument) {
  sleep_call *call = argument;
  poller *p = call->p;
  bool forever = call->left == UM_FOREVER;
  struct timespec timeout = {call->left / UM_SECOND, call->left % UM_SECOND};
  int result = -1, count = (int)p->most_events;
  if (!p->milliseconds)
    result = epoll_pwait2(p->epoll_fd, call->events, count, forever ? NULL : &timeout, NULL);
  if (result < 0 && !p->milliseconds) p->milliseconds = errno == ENOSYS || errno == EPERM;
  if (p->milliseconds) {
    um_time ms = (call->left - 1) / UM_MS + 1;
    if (ms > 60000) ms = 60000;
    result = epoll_wait(p->epoll_fd, call->events, count, forever ? -1 : (int)ms);
  }
  call->result = result < 0 ? -errno : result;
}

static int look(um_reactor *r, struct epoll_event *events, um_time until) {
  um_time left = until == UM_FOREVER ? UM_FOREVER : until > 0 ? until - um_now() : 0;
  sleep_call call = {state(r), events, left < 0 ? 0 : left, -EINTR};
  UM_COUNT(r, enters, 1);
  if (left > 0) UM_COUNT(r, waits, 1);
  if (left > 0 && r->around_sleep) r->around_sleep(sleep_in_epoll, &call, r->around_data);
  else sleep_in_epoll(&call);
  return call.result;
}

static void clear(int fd) {
  uint64_t count;
  if (read(fd, &count, sizeof count) < 0) return; /* was clear */
}

static void take_event(um_reactor *r, int fd) {
  if (fd >= 0) {
    serve(r, fd);
  } else if (fd == WAKE_FD) {
    clear(state(r)->wake_fd);
    UM_COUNT(r, wakes, 1);
  } else {
    clear(state(r)->timer_fd);
    run_queue(r, &state(r)->timed);
  }
}

/* Sleeps only when nothing has completed and nothing is to be tried. */
static int epoll_backend_wait(um_reactor *r, um_time until) {
  poller *p = state(r);
  struct epoll_event events[MOST_EVENTS];
  uint64_t completed = r->metrics.completions;
  __atomic_store_n(&p->unsubmitted, 0, __ATOMIC_RELAXED);
  run_queue(r, &p->fresh);
  run_cancels(r);
  if (um__reactor_forked(r)) return UM_EFORKED;
  if (p->unsubmitted || r->metrics.completions != completed) until = 0;
  int count = look(r, events, until);
  for (int i = 0; i < count && !um__reactor_forked(r); i++) take_event(r, (int)events[i].data.u64);
  return count < 0 && count != -EINTR ? count : 0;
}

static unsigned epoll_unsubmitted(const um_reactor *r) {
  return __atomic_load_n(&state(r)->unsubmitted, __ATOMIC_RELAXED);
}

static void epoll_wake(um_reactor *r, um_reactor *from) {
  (void)from;
  um__wake_fd(state(r)->wake_fd);
}

static int epoll_pollable(um_reactor *r) { return state(r)->epoll_fd; }

/* ---- life ---- */

static int epoll_start(um_reactor *r) {
  (void)r;
  return 0;
}

static void epoll_backend_close(um_reactor *r) {
  poller *p = state(r);
  if (!p) return;
  if (p->epoll_fd >= 0) close(p->epoll_fd);
  if (p->wake_fd >= 0) close(p->wake_fd);
  if (p->timer_fd >= 0) close(p->timer_fd);
  if (p->buffers) um__unmap(p->buffers, p->buffers_size);
  for (unsigned i = 0; i < p->chunk_count; i++) um__free(p->chunks[i]);
  um__free(p->chunks);
  um__free(p->free_buffers);
  um__free(p);
  r->backend_state = NULL;
}

static const um_backend epoll_backend = {
    .name = "epoll",
    .submit = epoll_submit,
    .cancel = epoll_cancel,
    .wait = epoll_backend_wait,
    .recycle = epoll_recycle,
    .start = epoll_start,
    .pollable = epoll_pollable,
    .wake = epoll_wake,
    .unsubmitted = epoll_unsubmitted,
    .close = epoll_backend_close,
};

static int add_own(poller *p, int fd, int name) {
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)name};
  return epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static int open_descriptors(poller *p) {
  p->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (p->epoll_fd < 0) return -errno;
  p->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (p->wake_fd < 0) return -errno;
  p->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  if (p->timer_fd < 0) return -errno;
  int result = add_own(p, p->wake_fd, WAKE_FD);
  return result < 0 ? result : add_own(p, p->timer_fd, TIMER_FD);
}

static int make_buffers(um_reactor *r) {
  poller *p = state(r);
  unsigned count = r->config.buffer_count;
  p->buffers_size = (size_t)count * r->config.buffer_size;
  p->buffers = um__map(p->buffers_size);
  p->free_buffers = um__alloc_raw(count * sizeof *p->free_buffers);
  if (!p->buffers || !p->free_buffers) return -ENOMEM;
  while (p->free_count < count) {
    p->free_buffers[p->free_count] = count - 1 - p->free_count;
    p->free_count++;
  }
  p->most_events = count / 2 < MOST_EVENTS ? count / 2 : MOST_EVENTS;
  return 0;
}

int um__epoll_open(um_reactor *r, um_error *error) {
  poller *p = um__alloc(sizeof *p);
  if (!p) return um__fail(error, -ENOMEM, "no memory for the epoll backend");
  STAILQ_INIT(&p->fresh);
  STAILQ_INIT(&p->timed);
  STAILQ_INIT(&p->cancels);
  p->epoll_fd = p->wake_fd = p->timer_fd = -1;
  r->backend = &epoll_backend;
  r->backend_state = p;
  r->capabilities = UM_CAN_RECV_MULTI | UM_CAN_RECV_CAP;
  r->supported = um__epoll_supported();
  int result = open_descriptors(p);
  if (result == 0) result = make_buffers(r);
  if (result == 0) return 0;
  epoll_backend_close(r);
  return um__fail(error, result, "epoll backend: %s", um_strerror(result));
}
