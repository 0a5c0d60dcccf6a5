/* The io_uring backend: set-up with probing, one submit-and-wait per tick. */
#include "../ablation.h"
#include "../error.h"
#include "alloc.h"
#include "reactor.h"
#include "slab.h"
#include "uring_probe.h"

#include <liburing.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define BUFFER_GROUP 0

typedef struct uring {
  struct io_uring ring;
  unsigned setup_flags;
  unsigned prepared;     /* the submission queue's tail, for other threads to read */

  /* Provided buffers. A buffer is the kernel's until a completion without
   * F_BUF_MORE; it goes back when that was seen and no segment refers to it. */
  struct io_uring_buf_ring *buffer_ring;
  uint8_t *buffers;
  size_t buffers_size;
  struct buffer_state {
    uint32_t offset;     /* where the kernel's next receive lands (incremental) */
    uint32_t references; /* segments in it */
    bool kernels;
  } *buffer_states;

  bool registered;       /* the slab arena is */
  int wake_fd;           /* eventfd */
  uint64_t wake_count;   /* what its pending read writes to */
  int poll_fd, work_fd;  /* epoll and eventfd for somebody else's loop, -1 until asked for */
} uring;

static uring *state(const um_reactor *r) { return r->backend_state; }

/* ---- submission ---- */

/* The queue is emptied into the kernel when full; waiting for room is never
 * needed then, but for SQPOLL, where the kernel's thread takes them. */
static struct io_uring_sqe *next_sqe(um_reactor *r) {
  uring *u = state(r);
  struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
  for (int tries = 0; unlikely(!sqe) && tries < 1000; tries++) {
    UM_COUNT(r, sq_full, 1);
    UM_COUNT(r, enters, 1);
    int result = io_uring_submit(&u->ring);
    if (result == -EBUSY || result == -EAGAIN) io_uring_get_events(&u->ring);
    if (u->setup_flags & IORING_SETUP_SQPOLL) io_uring_sqring_wait(&u->ring);
    sqe = io_uring_get_sqe(&u->ring);
  }
  __atomic_store_n(&u->prepared, u->ring.sq.sqe_tail, __ATOMIC_RELAXED);
  return sqe;
}

static void prepare_receive(um_reactor *r, struct io_uring_sqe *sqe, um_op *op) {
  if (op->code == UM_OP_RECV_MULTI) {
    io_uring_prep_recv_multishot(sqe, op->fd, NULL, 0, 0); /* length 0, no MSG_WAITALL */
    sqe->file_index = op->length; /* sqe->optlen: total cap, kernel 6.17 */
  } else {
    io_uring_prep_recv(sqe, op->fd, op->address, op->address ? op->length : r->config.buffer_size,
                       (int)op->flags);
    if (op->address) return;
  }
  sqe->flags |= IOSQE_BUFFER_SELECT;
  sqe->buf_group = BUFFER_GROUP;
}

static void prepare_send(um_reactor *r, struct io_uring_sqe *sqe, um_op *op) {
  if (op->code == UM_OP_SEND)
    io_uring_prep_send(sqe, op->fd, op->address, op->length, (int)op->flags);
  else if (op->buffer_index >= 0 && state(r)->registered)
    io_uring_prep_send_zc_fixed(sqe, op->fd, op->address, op->length, (int)op->flags, 0,
                                (unsigned)op->buffer_index);
  else
    io_uring_prep_send_zc(sqe, op->fd, op->address, op->length, (int)op->flags, 0);
}

static void prepare_file(struct io_uring_sqe *sqe, um_op *op) {
  switch (op->code) {
    case UM_OP_READ:
      io_uring_prep_read(sqe, op->fd, op->address, op->length, op->offset);
      break;
    case UM_OP_WRITE:
      io_uring_prep_write(sqe, op->fd, op->address, op->length, op->offset);
      break;
    case UM_OP_OPENAT:
      io_uring_prep_openat(sqe, op->fd, op->address, (int)op->flags, op->length);
      break;
    default:
      io_uring_prep_splice(sqe, op->fd2, (int64_t)op->offset2, op->fd, (int64_t)op->offset,
                           op->length, op->flags);
  }
}

static void prepare_other(struct io_uring_sqe *sqe, um_op *op) {
  switch (op->code) {
    case UM_OP_POLL:
      io_uring_prep_poll_add(sqe, op->fd, op->flags);
      break;
    case UM_OP_TIMEOUT:
      io_uring_prep_timeout(sqe, &op->timeout, 0, IORING_TIMEOUT_ABS);
      break;
    case UM_OP_FUTEX_WAIT:
      io_uring_prep_futex_wait(sqe, op->address, op->offset, FUTEX_BITSET_MATCH_ANY,
                               FUTEX2_SIZE_U32 | FUTEX2_PRIVATE, 0);
      break;
    case UM_OP_FUTEX_WAKE:
      io_uring_prep_futex_wake(sqe, op->address, op->offset, FUTEX_BITSET_MATCH_ANY,
                               FUTEX2_SIZE_U32 | FUTEX2_PRIVATE, 0);
      break;
    case UM_OP_WAITID:
      io_uring_prep_waitid(sqe, (idtype_t)op->fd, op->length, op->address, (int)op->flags, 0);
      break;
    default:
      io_uring_prep_msg_ring(sqe, op->fd, 0, op->offset, 0);
  }
}

static void prepare_socket(struct io_uring_sqe *sqe, um_op *op) {
  switch (op->code) {
    case UM_OP_SENDMSG:
      io_uring_prep_sendmsg(sqe, op->fd, op->address, op->flags);
      break;
    case UM_OP_RECVMSG:
      io_uring_prep_recvmsg(sqe, op->fd, op->address, op->flags);
      break;
    case UM_OP_ACCEPT:
      io_uring_prep_accept(sqe, op->fd, op->address, op->address2, (int)op->flags);
      break;
    case UM_OP_ACCEPT_MULTI:
      io_uring_prep_multishot_accept(sqe, op->fd, NULL, NULL, (int)op->flags);
      break;
    case UM_OP_CONNECT:
      io_uring_prep_connect(sqe, op->fd, op->address, op->length);
      break;
    case UM_OP_SHUTDOWN:
      io_uring_prep_shutdown(sqe, op->fd, (int)op->flags);
      break;
    default:
      io_uring_prep_close(sqe, op->fd);
  }
}

static int uring_submit(um_reactor *r, um_op *op) {
  struct io_uring_sqe *sqe = next_sqe(r);
  if (!sqe) return -EBUSY;
  if (op->code <= UM_OP_RECV_MULTI) prepare_receive(r, sqe, op);
  else if (op->code <= UM_OP_SEND_ZC) prepare_send(r, sqe, op);
  else if (op->code <= UM_OP_CLOSE) prepare_socket(sqe, op);
  else if (op->code >= UM_OP_READ && op->code <= UM_OP_SPLICE) prepare_file(sqe, op);
  else prepare_other(sqe, op);
  io_uring_sqe_set_data64(sqe, um__op_user_data(op));
  return 0;
}

static int uring_cancel(um_reactor *r, um_op *op) {
  struct io_uring_sqe *sqe = next_sqe(r);
  if (!sqe) return -EBUSY;
  io_uring_prep_cancel64(sqe, um__op_user_data(op), 0);
  io_uring_sqe_set_data64(sqe, um__op_user_data(op) | UM_USER_DATA_CANCEL);
  return 0;
}

/* ---- provided buffers ---- */

static void lend_buffer(um_reactor *r, unsigned id) {
  uring *u = state(r);
  u->buffer_states[id] = (struct buffer_state){.kernels = true};
  io_uring_buf_ring_add(u->buffer_ring, u->buffers + (size_t)id * r->config.buffer_size,
                        r->config.buffer_size, (unsigned short)id,
                        io_uring_buf_ring_mask(r->config.buffer_count), 0);
  io_uring_buf_ring_advance(u->buffer_ring, 1);
}

static void uring_recycle(um_reactor *r, unsigned id) {
  struct buffer_state *buffer = &state(r)->buffer_states[id];
  if (--buffer->references || buffer->kernels) return;
  UM_COUNT(r, buffers_used, -1);
  lend_buffer(r, id);
}

static void take_buffer(um_reactor *r, const struct io_uring_cqe *cqe, um_completion *completion) {
  uring *u = state(r);
  unsigned id = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
  struct buffer_state *buffer = &u->buffer_states[id];
  completion->has_buffer = true;
  completion->buffer = id;
  completion->data = u->buffers + (size_t)id * r->config.buffer_size + buffer->offset;
  if (cqe->res > 0) buffer->offset += (uint32_t)cqe->res;
  buffer->references++;
  if (cqe->flags & IORING_CQE_F_BUF_MORE) return;
  buffer->kernels = false;
  UM_COUNT(r, buffers_used, 1);
}

/* ---- completion ---- */

static void deliver(um_reactor *r, const struct io_uring_cqe *cqe) {
  um_completion completion = {.result = cqe->res,
                              .more = cqe->flags & IORING_CQE_F_MORE,
                              .notification = cqe->flags & IORING_CQE_F_NOTIF};
  if (cqe->flags & IORING_CQE_F_BUFFER) take_buffer(r, cqe, &completion);
  um__op_complete(r, cqe->user_data, &completion);
}

static void reap(um_reactor *r) {
  struct io_uring *ring = &state(r)->ring;
  struct io_uring_cqe *cqe;
  unsigned head, seen = 0;
  io_uring_for_each_cqe(ring, head, cqe) {
    deliver(r, cqe);
    seen++;
  }
  io_uring_cq_advance(ring, seen);
}

/* Under DEFER_TASKRUN completions are made only when we enter: TASKRUN says that
 * there is something to make. */
static bool must_enter(um_reactor *r) {
  struct io_uring *ring = &state(r)->ring;
  unsigned flags = __atomic_load_n(ring->sq.kflags, __ATOMIC_RELAXED);
  if (unlikely(flags & IORING_SQ_CQ_OVERFLOW)) UM_COUNT(r, cq_overflows, 1);
  return io_uring_sq_ready(ring) || (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW));
}

typedef struct sleep_call {
  struct io_uring *ring;
  um_time left;
  int result;
} sleep_call;

static void submit_and_sleep(void *argument) {
  sleep_call *call = argument;
  if (call->left == UM_FOREVER) {
    call->result = io_uring_submit_and_wait(call->ring, 1);
    return;
  }
  struct __kernel_timespec timeout = {call->left / UM_SECOND, call->left % UM_SECOND};
  struct io_uring_cqe *cqe;
  call->result = io_uring_submit_and_wait_timeout(call->ring, &cqe, 1, &timeout, NULL);
}

static int enter_and_wait(um_reactor *r, um_time until) {
  struct io_uring *ring = &state(r)->ring;
  um_time left = until == UM_FOREVER ? UM_FOREVER : until > 0 ? until - um_now() : 0;
  if (left <= 0 || io_uring_cq_ready(ring)) {
    if (!must_enter(r)) return 0;
    UM_COUNT(r, enters, 1);
    return io_uring_submit_and_get_events(ring);
  }
  UM_COUNT(r, enters, 1);
  UM_COUNT(r, waits, 1);
  sleep_call call = {ring, left, -EINTR};
  if (r->around_sleep) r->around_sleep(submit_and_sleep, &call, r->around_data);
  else submit_and_sleep(&call);
  return call.result;
}

/* Before looking at the ring: what comes later makes it readable again. */
static void clear_pollable(uring *u) {
  uint64_t count;
  if (u->work_fd >= 0 && read(u->work_fd, &count, sizeof count) < 0) return; /* was clear */
}

/* EBUSY and EAGAIN: the completion queue overflowed or memory is short: reap what
 * is there, the next tick tries again. */
static int uring_wait(um_reactor *r, um_time until) {
  uring *u = state(r);
  clear_pollable(u);
  int result = enter_and_wait(r, until);
  reap(r);
  if (unlikely(u->work_fd >= 0) && must_enter(r)) eventfd_write(u->work_fd, 1);
  bool passing = result == -ETIME || result == -EINTR || result == -EBUSY || result == -EAGAIN;
  return result < 0 && !passing ? result : 0;
}

static unsigned uring_unsubmitted(const um_reactor *r) {
  /* Read by other threads; the head is the kernel's. */
  return __atomic_load_n(&state(r)->prepared, __ATOMIC_RELAXED) -
         __atomic_load_n(state(r)->ring.sq.khead, __ATOMIC_RELAXED);
}

/* ---- wake-ups ---- */

static int arm_wake(um_reactor *r);

static void woken(um_op *op, const um_completion *completion) {
  um_reactor *r = op->reactor;
  (void)completion;
  um__op_release(op);
  UM_COUNT(r, wakes, 1);
  arm_wake(r);
}

static int arm_wake(um_reactor *r) {
  um_op *op = um__op_new(r, UM_OP_READ, state(r)->wake_fd);
  if (!op) return -ENOMEM;
  op->address = &state(r)->wake_count;
  op->length = sizeof state(r)->wake_count;
  op->offset = (uint64_t)-1;
  op->done = woken;
  return um__op_submit(op);
}

static int send_message(um_reactor *from, int ring_fd);

/* A ring that has not started, or whose completion queue is full, looks at its posts before
 * it sleeps; one that is closed has none. */
static void message_done(um_op *op, const um_completion *completion) {
  int ring_fd = op->fd;
  um__op_release(op);
  if (completion->result == -ENOMEM || completion->result == -EAGAIN)
    send_message(op->reactor, ring_fd);
}

static int send_message(um_reactor *from, int ring_fd) {
  um_op *op = um__op_new(from, UM_OP_MSG_RING, ring_fd);
  if (!op) return -ENOMEM;
  op->offset = UM_USER_DATA_NONE;
  op->done = message_done;
  return um__op_submit(op);
}

/* From a fiber of another ring the message leaves with that ring's next submission:
 * no system call of its own. Outside its fibers no submission may follow. */
static void uring_wake(um_reactor *r, um_reactor *from) {
  bool message = from && from->current && from->backend == r->backend &&
                 from->supported >> UM_OP_MSG_RING & 1;
  if (!message || send_message(from, state(r)->ring.ring_fd) < 0) um__wake_fd(state(r)->wake_fd);
}

/* Under DEFER_TASKRUN the ring's own descriptor wakes no poller: completions are not made
 * before we enter (seen on 6.18). A registered eventfd is told of work to do, but not
 * reliably when another eventfd caused it: so wake_fd is polled itself, beside it. */
static int watch(int poll_fd, int fd) {
  struct epoll_event event = {.events = EPOLLIN};
  return epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* It starts readable, for what was there before. */
static int open_pollable(uring *u) {
  u->work_fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
  u->poll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (u->work_fd < 0 || u->poll_fd < 0) return -errno;
  int result = io_uring_register_eventfd(&u->ring, u->work_fd);
  if (result == 0) result = watch(u->poll_fd, u->work_fd);
  return result < 0 ? result : watch(u->poll_fd, u->wake_fd);
}

static void close_pollable(uring *u) {
  if (u->work_fd >= 0) close(u->work_fd);
  if (u->poll_fd >= 0) close(u->poll_fd);
  u->work_fd = u->poll_fd = -1;
}

static int uring_pollable(um_reactor *r) {
  uring *u = state(r);
  if (u->poll_fd >= 0) return u->poll_fd;
  int result = open_pollable(u);
  if (result == 0) return u->poll_fd;
  io_uring_unregister_eventfd(&u->ring);
  close_pollable(u);
  return result;
}

/* ---- life ---- */

static int uring_start(um_reactor *r) {
  uring *u = state(r);
  if (u->setup_flags & IORING_SETUP_R_DISABLED) {
    int result = io_uring_enable_rings(&u->ring);
    if (result < 0) return result;
    u->setup_flags &= ~IORING_SETUP_R_DISABLED; /* start() may be tried again */
  }
  return arm_wake(r);
}

static void uring_close(um_reactor *r) {
  uring *u = state(r);
  if (!u) return;
  /* A forked child has the descriptor, but not the memory (io_uring_ring_dontfork). */
  if (u->ring.ring_fd >= 0 && um__reactor_forked(r)) close(u->ring.ring_fd);
  else if (u->ring.ring_fd >= 0) io_uring_queue_exit(&u->ring);
  /* Not io_uring_free_buf_ring(): in a forked child that would speak to the parent's ring. */
  if (u->buffer_ring) munmap(u->buffer_ring, r->config.buffer_count * sizeof(struct io_uring_buf));
  if (u->buffers) um__unmap(u->buffers, u->buffers_size);
  if (u->wake_fd >= 0) close(u->wake_fd);
  close_pollable(u);
  um__free(u->buffer_states);
  um__free(u);
  r->backend_state = NULL;
}

static const um_backend uring_backend = {
    .name = "uring",
    .submit = uring_submit,
    .cancel = uring_cancel,
    .wait = uring_wait,
    .recycle = uring_recycle,
    .start = uring_start,
    .pollable = uring_pollable,
    .wake = uring_wake,
    .unsubmitted = uring_unsubmitted,
    .close = uring_close,
};

/* What to give up, one by one, when the kernel refuses the set-up flags. */
static int set_up_ring(um_reactor *r) {
  static const unsigned steps[] = {IORING_SETUP_DEFER_TASKRUN, IORING_SETUP_SINGLE_ISSUER,
                                   IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
                                   IORING_SETUP_SUBMIT_ALL};
  uring *u = state(r);
  unsigned flags = IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL |
                   IORING_SETUP_SINGLE_ISSUER;
  if (r->config.flags & UM_REACTOR_SQPOLL) flags |= IORING_SETUP_SQPOLL;
  else if (!UM_ABLATED(DEFER_TASKRUN)) flags |= IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
  int result = -EINVAL;
  for (size_t step = 0; result == -EINVAL && step <= sizeof steps / sizeof *steps; step++) {
    struct io_uring_params params = {
        .flags = flags, .cq_entries = r->config.cq_entries, .sq_thread_idle = 100};
    result = io_uring_queue_init_params(r->config.entries, &u->ring, &params);
    u->setup_flags = flags;
    if (step == sizeof steps / sizeof *steps) break;
    flags &= ~steps[step];
    if (step == 0 && !(flags & IORING_SETUP_SQPOLL)) flags |= IORING_SETUP_COOP_TASKRUN;
  }
  if (result < 0) u->ring.ring_fd = -1;
  return result;
}

/* Where receives share a buffer few large ones do, and stay in the cache: 1 MiB in all instead of
 * 4, which took 1.46 of epoll's CPU in bulk where this takes 1.06. */
static int set_up_buffer_ring(um_reactor *r) {
  uring *u = state(r);
  bool incremental = um__uring_features()->incremental && !UM_ABLATED(INCREMENTAL);
  if (incremental && r->standard_buffers) {
    r->config.buffer_count = 16;
    r->config.buffer_size = 65536;
  }
  unsigned flags = incremental ? IOU_PBUF_RING_INC : 0;
  int result;
  u->buffer_ring = io_uring_setup_buf_ring(&u->ring, r->config.buffer_count, BUFFER_GROUP, flags,
                                           &result);
  return u->buffer_ring ? 0 : result;
}

/* The kernel gives the locked memory of a closed ring back late (liburing #157). */
static int patiently(int (*set_up)(um_reactor *), um_reactor *r) {
  int result = set_up(r);
  for (long ms = 1; result == -ENOMEM && ms <= 64; ms *= 2) {
    nanosleep(&(struct timespec){.tv_nsec = ms * UM_MS}, NULL);
    result = set_up(r);
  }
  return result;
}

static int set_up_buffers(um_reactor *r) {
  uring *u = state(r);
  unsigned count = r->config.buffer_count;
  u->buffers_size = (size_t)count * r->config.buffer_size;
  u->buffers = um__map(u->buffers_size);
  u->buffer_states = um__alloc(count * sizeof *u->buffer_states);
  if (!u->buffers || !u->buffer_states) return -ENOMEM;
  for (unsigned id = 0; id < count; id++) lend_buffer(r, id);
  return 0;
}

/* Registered slabs only serve SEND_ZC; refused (memlock), sends go unregistered. */
static void register_slabs(um_reactor *r) {
  struct iovec *regions;
  unsigned count;
  if (!r->config.zerocopy_threshold || um__slab_arena(r->slabs, &regions, &count) < 0) return;
  if (io_uring_register_buffers(&state(r)->ring, regions, count) == 0) {
    state(r)->registered = true;
    return;
  }
  UM_COUNT(r, unregistered, 1);
}

static int open_parts(um_reactor *r, um_error *error) {
  uring *u = state(r);
  const um_uring_features *features = um__uring_features();
  int result = patiently(set_up_ring, r);
  if (result < 0) return um__uring_refused(error, result);
  um__uring_supported(&u->ring, &r->supported);
  result = patiently(set_up_buffer_ring, r);
  if (result == -ENOMEM) return um__uring_refused(error, result);
  if (result < 0)
    return um__fail(error, result == -EINVAL ? UM_ENOURING : result,
                    "io_uring: no provided-buffer ring (%s): kernel 5.19 or newer is needed",
                    um_strerror(result));
  if (set_up_buffers(r) < 0) return um__fail(error, -ENOMEM, "no memory for the receive buffers");
  io_uring_ring_dontfork(&u->ring);
  if (features->multishot_receive && !UM_ABLATED(MULTISHOT)) r->capabilities |= UM_CAN_RECV_MULTI;
  if (features->capped_receive) r->capabilities |= UM_CAN_RECV_CAP;
  register_slabs(r);
  return 0;
}

int um__uring_open(um_reactor *r, um_error *error) {
  uring *u = um__alloc(sizeof *u);
  if (!u) return um__fail(error, -ENOMEM, "no memory for the io_uring backend");
  u->ring.ring_fd = u->poll_fd = u->work_fd = -1;
  r->backend = &uring_backend;
  r->backend_state = u;
  u->wake_fd = eventfd(0, EFD_CLOEXEC);
  int result = u->wake_fd < 0 ? um__fail(error, -errno, "eventfd: %s", strerror(errno))
                              : open_parts(r, error);
  if (result < 0) uring_close(r);
  return result;
}
