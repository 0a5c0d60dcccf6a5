/* The epoll backend's operations: one try each, by the system call of that name. Descriptors
 * may be blocking, and their flags are their owner's: so MSG_DONTWAIT, RWF_NOWAIT, or a look
 * with poll(2) before. */
#include "alloc.h"
#include "backend_epoll.h"
#include "worker.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define UNIX_RETRY (5 * UM_MS)

static enum um_outcome waits(um_op *op, int fd, uint32_t events) {
  op->wait_fd = fd;
  op->wait_events = events;
  return UM_WAITS;
}

static int checked(ssize_t result) { return result < 0 ? -errno : (int)result; }

/* The events that are there; 0 for none. */
static int events_now(int fd, uint32_t events) {
  struct pollfd p = {.fd = fd, .events = (short)events};
  if (fd < 0) return -EBADF;
  int result = poll(&p, 1, 0);
  if (result <= 0) return checked(result);
  return p.revents & POLLNVAL ? -EBADF : p.revents;
}

/* ---- sending and receiving ---- */

/* What has been moved by all tries, once that is all there is to move. */
static int moved(um_op *op, int result, bool whole) {
  if (result > 0) op->offset += (uint64_t)result;
  bool over = result <= 0 ? result != -EAGAIN || op->flags & MSG_DONTWAIT
                          : !whole || op->offset == op->length;
  if (op->offset) return over ? (int)op->offset : -EAGAIN;
  return result;
}

static bool is_stream(int fd) {
  int type = 0;
  socklen_t length = sizeof type;
  return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_STREAM;
}

static int receive(um_reactor *r, um_op *op, um_completion *c) {
  int flags = (int)op->flags | MSG_DONTWAIT;
  if (!op->address) return um__epoll_receive(r, op->fd, r->config.buffer_size, flags, c);
  size_t left = op->length - op->offset;
  int result = checked(recv(op->fd, (char *)op->address + op->offset, left, flags));
  bool wanted = (flags & MSG_WAITALL) && !(flags & MSG_PEEK);
  return moved(op, result, wanted && result < (int)left && is_stream(op->fd));
}

static int send_bytes(um_op *op) {
  int flags = (int)(op->flags & ~(unsigned)MSG_WAITALL) | MSG_DONTWAIT;
  const char *from = (const char *)op->address + op->offset;
  int result = checked(send(op->fd, from, op->length - op->offset, flags));
  return moved(op, result, op->flags & MSG_WAITALL);
}

static enum um_outcome receive_multi(um_reactor *r, um_op *op, um_completion *c) {
  size_t most = r->config.buffer_size;
  if (op->length && op->length - op->offset < most) most = op->length - op->offset;
  waits(op, op->fd, EPOLLIN);
  c->result = um__epoll_receive(r, op->fd, most, 0, c);
  if (c->result == -EAGAIN) return UM_WAITS;
  if (c->result <= 0) return UM_ENDED;
  op->offset += (uint64_t)c->result;
  if (op->length && op->offset == op->length) return UM_ENDED;
  return (size_t)c->result == most ? UM_AGAIN : UM_LATER;
}

/* ---- accepting and connecting ---- */

static pthread_mutex_t accepting = PTHREAD_MUTEX_INITIALIZER;

static void lock_accepting(void) { pthread_mutex_lock(&accepting); }
static void unlock_accepting(void) { pthread_mutex_unlock(&accepting); }
static void watch_forks(void) {
  pthread_atfork(lock_accepting, unlock_accepting, unlock_accepting);
}

static bool listens(int fd) {
  int yes = 0;
  socklen_t length = sizeof yes;
  return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &yes, &length) == 0 && yes;
}

/* accept(2) on a blocking listener would wait if another reactor took the connection that
 * poll(2) saw. */
static int accept_now(um_op *op) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch_forks);
  lock_accepting();
  int result = events_now(op->fd, POLLIN);
  if (result == 0 && listens(op->fd)) result = -EAGAIN;
  else if (result >= 0)
    result = checked(accept4(op->fd, op->address, op->address2, (int)op->flags));
  unlock_accepting();
  return result;
}

static enum um_outcome accept_multi(um_op *op, um_completion *c) {
  waits(op, op->fd, EPOLLIN);
  c->result = accept_now(op);
  return c->result == -EAGAIN ? UM_WAITS : c->result < 0 ? UM_ENDED : UM_AGAIN;
}

/* There is no MSG_DONTWAIT for connect(2). Nothing else can be under way on a socket that
 * is not connected, so its flag may change for the moment of the call. */
static int connect_now(const um_op *op) {
  int flags = fcntl(op->fd, F_GETFL);
  if (flags < 0) return -errno;
  bool blocks = !(flags & O_NONBLOCK);
  if (blocks) fcntl(op->fd, F_SETFL, flags | O_NONBLOCK);
  int result = checked(connect(op->fd, op->address, op->length));
  if (blocks) fcntl(op->fd, F_SETFL, flags);
  return result;
}

static int connect_result(const um_op *op) {
  int error = 0;
  socklen_t length = sizeof error;
  int ready = events_now(op->fd, POLLOUT);
  if (ready <= 0) return ready ? ready : -EAGAIN;
  return getsockopt(op->fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0 ? -errno : -error;
}

/* op->offset: it is under way. A local socket whose listener's queue is full tells nobody
 * when there is room: that is tried again and again. */
static enum um_outcome try_connect(um_op *op, um_completion *c) {
  c->result = op->offset ? connect_result(op) : connect_now(op);
  int result = c->result;
  if (result == -EINPROGRESS || result == -EALREADY || result == -EINTR) op->offset = 1;
  else if (result != -EAGAIN) return UM_ENDED;
  c->result = 0;
  if (op->offset) return waits(op, op->fd, EPOLLOUT);
  c->result = -EAGAIN;
  if (((struct sockaddr *)op->address)->sa_family != AF_UNIX) return UM_ENDED;
  um_time at = um_now() + UNIX_RETRY;
  op->timeout = (struct __kernel_timespec){at / UM_SECOND, at % UM_SECOND};
  return waits(op, -1, 0);
}

static enum um_outcome try_timeout(um_op *op, um_completion *c) {
  um_time at = op->timeout.tv_sec * UM_SECOND + op->timeout.tv_nsec;
  c->result = -ETIME;
  return um_now() >= at ? UM_ENDED : waits(op, -1, 0);
}

/* ---- files ---- */

static mode_t type_of(int fd) {
  struct stat status;
  return fstat(fd, &status) < 0 ? 0 : status.st_mode & S_IFMT;
}

static int transfer(const um_op *op, size_t length, int flags) {
  struct iovec part = {op->address, length};
  off_t at = (off_t)op->offset;
  return checked(op->code == UM_OP_READ ? preadv2(op->fd, &part, 1, at, flags)
                                        : pwritev2(op->fd, &part, 1, at, flags));
}

/* Not all drivers know RWF_NOWAIT. A pipe or a terminal that poll(2) calls writable takes
 * PIPE_BUF bytes at least. */
static int transfer_some(const um_op *op) {
  int result = transfer(op, op->length, RWF_NOWAIT);
  if (result != -EOPNOTSUPP) return result;
  bool much = op->code == UM_OP_WRITE && op->length > PIPE_BUF;
  return transfer(op, much ? PIPE_BUF : op->length, 0);
}

static int splice_some(const um_op *op) {
  loff_t from = (loff_t)op->offset2, to = (loff_t)op->offset;
  size_t length = op->length;
  if (length > PIPE_BUF && type_of(op->fd) == S_IFSOCK) length = PIPE_BUF; /* as above */
  return checked(splice(op->fd2, from < 0 ? NULL : &from, op->fd, to < 0 ? NULL : &to, length,
                        op->flags | SPLICE_F_NONBLOCK));
}

static int file_call(const um_op *op) {
  switch (op->code) {
    case UM_OP_OPENAT:
      return checked(openat(op->fd, op->address, (int)op->flags, (mode_t)op->length));
    case UM_OP_SPLICE:
      return splice_some(op);
    default:
      return transfer(op, op->length, 0);
  }
}

typedef struct file_work {
  um__work work; /* first */
  um_op *op;
  int result;
} file_work;

static void run_file(um__work *work) {
  file_work *f = (file_work *)work;
  f->result = file_call(f->op);
}

/* A splice that found nothing waits again. */
static void file_done(um__work *work) {
  file_work *f = (file_work *)work;
  um_op *op = f->op;
  um_completion c = {.result = f->result};
  um__free(f);
  if (c.result == -EAGAIN && op->stage == UM_STAGE_WORKING) {
    op->reactor->backend->submit(op->reactor, op);
    return;
  }
  if (c.result == -EAGAIN) c.result = -ECANCELED;
  um__op_complete(op->reactor, um__op_user_data(op), &c);
}

/* A worker waits for the disk. Without one it is the loop that does. */
static enum um_outcome off_loop(um_op *op, um_completion *c) {
  file_work *f = um__alloc(sizeof *f);
  if (f) {
    *f = (file_work){.work = {.run = run_file, .done = file_done}, .op = op};
    op->stage = UM_STAGE_WORKING;
    if (um__work_submit(op->reactor, &f->work) == 0) return UM_ELSEWHERE;
    op->stage = UM_STAGE_NONE;
    um__free(f);
  }
  c->result = file_call(op);
  return c->result == -EAGAIN ? waits(op, op->fd, POLLOUT) : UM_ENDED;
}

/* poll(2) knows nothing of files: they are ready, and then they wait for the disk. What is in
 * the page cache takes no worker. */
static enum um_outcome transfer_file(um_op *op, um_completion *c) {
  if (op->code == UM_OP_READ && (int64_t)op->offset >= 0) {
    c->result = transfer(op, op->length, RWF_NOWAIT);
    if (c->result == 0 || (c->result > 0 && (uint32_t)c->result == op->length)) return UM_ENDED;
  }
  return off_loop(op, c);
}

static enum um_outcome try_transfer(um_op *op, um_completion *c) {
  uint32_t events = op->code == UM_OP_READ ? POLLIN : POLLOUT;
  c->result = events_now(op->fd, events);
  if (c->result == 0) return waits(op, op->fd, events);
  mode_t type = c->result > 0 ? type_of(op->fd) : 0;
  if (type == S_IFREG || type == S_IFBLK) return transfer_file(op, c);
  if (c->result > 0) c->result = transfer_some(op);
  return c->result == -EAGAIN ? waits(op, op->fd, events) : UM_ENDED;
}

/* First for something to read, then for room: with both, neither call waits. */
static enum um_outcome try_splice(um_op *op, um_completion *c) {
  c->result = events_now(op->fd2, POLLIN);
  if (c->result == 0) return waits(op, op->fd2, POLLIN);
  if (c->result > 0) c->result = events_now(op->fd, POLLOUT);
  if (c->result == 0) return waits(op, op->fd, POLLOUT);
  return c->result < 0 ? UM_ENDED : off_loop(op, c);
}

/* ---- all ---- */

static int perform(um_reactor *r, um_op *op, um_completion *c) {
  int flags = (int)(op->flags & ~(unsigned)MSG_WAITALL) | MSG_DONTWAIT;
  switch (op->code) {
    case UM_OP_RECV:
      return receive(r, op, c);
    case UM_OP_SEND:
      return send_bytes(op);
    case UM_OP_SENDMSG:
      return checked(sendmsg(op->fd, op->address, flags));
    case UM_OP_RECVMSG:
      return checked(recvmsg(op->fd, op->address, flags));
    case UM_OP_ACCEPT:
      return accept_now(op);
    case UM_OP_SHUTDOWN:
      return checked(shutdown(op->fd, (int)op->flags));
    case UM_OP_CLOSE:
      return checked(close(op->fd));
    default: {
      int events = events_now(op->fd, op->flags);
      return events ? events : -EAGAIN;
    }
  }
}

static uint32_t events_of(const um_op *op) {
  if (op->code == UM_OP_POLL) return op->flags & 0xffff;
  return op->code == UM_OP_SEND || op->code == UM_OP_SENDMSG ? EPOLLOUT : EPOLLIN;
}

enum um_outcome um__epoll_try(um_reactor *r, um_op *op, um_completion *c) {
  switch (op->code) {
    case UM_OP_RECV_MULTI:
      return receive_multi(r, op, c);
    case UM_OP_ACCEPT_MULTI:
      return accept_multi(op, c);
    case UM_OP_CONNECT:
      return try_connect(op, c);
    case UM_OP_TIMEOUT:
      return try_timeout(op, c);
    case UM_OP_READ: case UM_OP_WRITE:
      return try_transfer(op, c);
    case UM_OP_SPLICE:
      return try_splice(op, c);
    case UM_OP_OPENAT:
      return off_loop(op, c);
    default:
      c->result = perform(r, op, c);
  }
  bool asked_not_to = op->code < UM_OP_ACCEPT && (op->flags & MSG_DONTWAIT);
  return c->result == -EAGAIN && !asked_not_to ? waits(op, op->fd, events_of(op)) : UM_ENDED;
}

uint64_t um__epoll_supported(void) {
  static const uint8_t not[] = {UM_OP_SEND_ZC, UM_OP_FUTEX_WAIT, UM_OP_FUTEX_WAKE, UM_OP_WAITID,
                                UM_OP_MSG_RING};
  uint64_t supported = (UINT64_C(1) << UM_OP_COUNT) - 1;
  for (size_t i = 0; i < sizeof not / sizeof *not; i++) supported &= ~(UINT64_C(1) << not[i]);
  return supported;
}
