/* One operation, one call: prepare, await, and go on after short transfers. */
#include "alloc.h"
#include "reactor.h"

#include <bio_uring/io.h>

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* An operation for the current task; NULL with *error set. */
static um_op *prepare(enum um_op_code code, int fd, int *error) {
  um_task *task = um__task();
  um_op *op = task ? um__op_new(task->reactor, code, fd) : NULL;
  *error = op ? 0 : task ? -ENOMEM : UM_ENOTFIBER;
  return op;
}

static int transfer(enum um_op_code code, int fd, const void *address, size_t length, int flags,
                    um_time deadline) {
  int error;
  um_op *op = prepare(code, fd, &error);
  if (!op) return error;
  op->address = (void *)(uintptr_t)address;
  op->length = length > INT32_MAX ? INT32_MAX : (uint32_t)length;
  op->flags = (unsigned)flags;
  return um__await(op, deadline);
}

int um_poll(int fd, unsigned events, um_time deadline) {
  return transfer(UM_OP_POLL, fd, NULL, 0, (int)events, deadline);
}

/* EAGAIN comes from O_NONBLOCK descriptors: wait for `events`, then try again. */
static bool again(int *result, int fd, unsigned events, int flags, um_time deadline) {
  if (*result != -EAGAIN || (flags & MSG_DONTWAIT)) return false;
  int polled = um_poll(fd, events, deadline);
  if (polled < 0) *result = polled;
  return polled >= 0;
}

ssize_t um_recv(int fd, void *buffer, size_t length, int flags, um_time deadline) {
  if (!length) return 0;
  if (!buffer) return -EFAULT; /* the operation would take a provided buffer */
  int result;
  do result = transfer(UM_OP_RECV, fd, buffer, length, flags, deadline);
  while (again(&result, fd, POLLIN, flags, deadline));
  return result;
}

ssize_t um_send(int fd, const void *buffer, size_t length, int flags, um_time deadline) {
  size_t done = 0;
  int result = 0;
  do {
    result = transfer(UM_OP_SEND, fd, (const char *)buffer + done, length - done,
                      flags | MSG_NOSIGNAL | MSG_WAITALL, deadline);
    if (result > 0) done += (size_t)result;
  } while (again(&result, fd, POLLOUT, flags, deadline) || (result > 0 && done < length));
  return um__outcome(done, result);
}

/* Drops the first `done` bytes of a vector, in place. */
static void advance(struct iovec **iov, size_t *count, size_t done) {
  while (*count && done >= (*iov)->iov_len) {
    done -= (*iov)->iov_len;
    (*iov)++;
    (*count)--;
  }
  if (!done || !*count) return;
  (*iov)->iov_base = (char *)(*iov)->iov_base + done;
  (*iov)->iov_len -= done;
}

#define MOST_IOV 1024 /* IOV_MAX: the kernel takes no more */
#define FEW_IOV 16

static ssize_t send_vector(int fd, struct msghdr *rest, int flags, um_time deadline) {
  size_t done = 0, length = 0;
  for (size_t i = 0; i < rest->msg_iovlen; i++) length += rest->msg_iov[i].iov_len;
  int result;
  do {
    result = transfer(UM_OP_SENDMSG, fd, rest, 1, flags | MSG_NOSIGNAL | MSG_WAITALL, deadline);
    if (result <= 0) continue;
    done += (size_t)result;
    advance(&rest->msg_iov, &rest->msg_iovlen, (size_t)result);
    rest->msg_control = NULL; /* ancillary data goes with the first byte */
    rest->msg_controllen = 0;
  } while (again(&result, fd, POLLOUT, flags, deadline) || (result > 0 && done < length));
  return um__outcome(done, result);
}

/* The vector is copied: resuming after a short send changes it. */
ssize_t um_sendmsg(int fd, const struct msghdr *message, int flags, um_time deadline) {
  struct iovec few[FEW_IOV], *copy = few;
  size_t count = message->msg_iovlen;
  if (count > MOST_IOV) return -EMSGSIZE;
  if (count > FEW_IOV && !(copy = um__alloc_raw(count * sizeof *copy))) return -ENOMEM;
  if (count) memcpy(copy, message->msg_iov, count * sizeof *copy);
  struct msghdr rest = *message;
  rest.msg_iov = copy;
  ssize_t result = send_vector(fd, &rest, flags, deadline);
  if (copy != few) um__free(copy);
  return result;
}

ssize_t um_sendv(int fd, const struct iovec *iov, int count, um_time deadline) {
  if (count < 0) return -EINVAL;
  struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)count};
  return um_sendmsg(fd, &message, 0, deadline);
}

ssize_t um_recvmsg(int fd, struct msghdr *message, int flags, um_time deadline) {
  int result;
  do result = transfer(UM_OP_RECVMSG, fd, message, 1, flags, deadline);
  while (again(&result, fd, POLLIN, flags, deadline));
  return result;
}

/* ---- files ---- */

/* write(2) and splice(2) know no MSG_NOSIGNAL: a thread blocks SIGPIPE from its first
 * of them on. */
static void block_sigpipe(void) {
  static _Thread_local bool blocked;
  if (likely(blocked)) return;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGPIPE);
  blocked = pthread_sigmask(SIG_BLOCK, &set, NULL) == 0;
}

static int at_offset(enum um_op_code code, int fd, const void *address, size_t length,
                     int64_t offset, um_time deadline) {
  int error;
  um_op *op = prepare(code, fd, &error);
  if (!op) return error;
  op->address = (void *)(uintptr_t)address;
  op->length = length > INT32_MAX ? INT32_MAX : (uint32_t)length;
  op->offset = (uint64_t)offset;
  return um__await(op, deadline);
}

ssize_t um_read(int fd, void *buffer, size_t length, int64_t offset, um_time deadline) {
  int result;
  do result = at_offset(UM_OP_READ, fd, buffer, length, offset, deadline);
  while (again(&result, fd, POLLIN, 0, deadline));
  return result;
}

ssize_t um_write(int fd, const void *buffer, size_t length, int64_t offset, um_time deadline) {
  size_t done = 0;
  int result;
  if (um__task()) block_sigpipe();
  do {
    result = at_offset(UM_OP_WRITE, fd, (const char *)buffer + done, length - done,
                       offset < 0 ? -1 : offset + (int64_t)done, deadline);
    if (result > 0) done += (size_t)result;
  } while (again(&result, fd, POLLOUT, 0, deadline) || (result > 0 && done < length));
  return um__outcome(done, result);
}

int um_openat(int directory, const char *path, int flags, mode_t mode, um_time deadline) {
  return transfer(UM_OP_OPENAT, directory, path, mode, flags, deadline);
}

ssize_t um_splice(int from, int64_t from_offset, int to, int64_t to_offset, size_t length,
                  unsigned flags, um_time deadline) {
  int error;
  um_op *op = prepare(UM_OP_SPLICE, to, &error);
  if (!op) return error;
  block_sigpipe();
  op->fd2 = from;
  op->offset2 = (uint64_t)from_offset;
  op->offset = (uint64_t)to_offset;
  op->length = length > INT32_MAX ? INT32_MAX : (uint32_t)length;
  op->flags = flags;
  return um__await(op, deadline);
}

/* ---- sockets ---- */

int um_connect(int fd, const struct sockaddr *address, socklen_t length, um_time deadline) {
  return transfer(UM_OP_CONNECT, fd, address, length, 0, deadline);
}

int um_accept(int fd, struct sockaddr *address, socklen_t *length, int flags, um_time deadline) {
  int error;
  do {
    um_op *op = prepare(UM_OP_ACCEPT, fd, &error);
    if (!op) return error;
    op->address = address;
    op->address2 = length;
    op->flags = (unsigned)flags;
    error = um__await(op, deadline);
  } while (again(&error, fd, POLLIN, 0, deadline));
  return error;
}

int um_shutdown(int fd, int how, um_time deadline) {
  return transfer(UM_OP_SHUTDOWN, fd, NULL, 0, how, deadline);
}

/* Shielded: a cancelled close would leak the descriptor. */
int um_close(int fd) {
  um_task *task = um__task();
  if (!task) return UM_ENOTFIBER;
  task->shield++;
  int result = transfer(UM_OP_CLOSE, fd, NULL, 0, 0, UM_FOREVER);
  task->shield--;
  if (result == -ENOMEM || result == -EBUSY || result == -EOPNOTSUPP)
    result = close(fd) < 0 ? -errno : 0; /* the operation was never accepted */
  return result;
}

/* ---- processes and futexes, whose values go where offsets do ---- */

/* Kernels before 6.7, or no io_uring: a pidfd becomes readable when the process ends. */
static int waitid_by_pidfd(id_t id, siginfo_t *info, int options, um_time deadline) {
  int pidfd = (int)syscall(SYS_pidfd_open, (pid_t)id, 0);
  if (pidfd < 0) return errno == ESRCH ? -ECHILD : -errno;
  int result = options & WNOHANG ? 0 : um_poll(pidfd, POLLIN, deadline);
  close(pidfd);
  if (result < 0) return result;
  return waitid(P_PID, id, info, options | WNOHANG) < 0 ? -errno : 0;
}

int um_waitid(idtype_t type, id_t id, siginfo_t *info, int options, um_time deadline) {
  int error;
  um_op *op = prepare(UM_OP_WAITID, (int)type, &error);
  if (!op) return error;
  op->length = id;
  op->address = info;
  op->flags = (unsigned)options;
  int result = um__await(op, deadline);
  if (result == -EOPNOTSUPP && type == P_PID) return waitid_by_pidfd(id, info, options, deadline);
  return result;
}

int um_futex_wait(uint32_t *word, uint32_t expected, um_time deadline) {
  return at_offset(UM_OP_FUTEX_WAIT, -1, word, 0, expected, deadline);
}

int um_futex_wake(uint32_t *word, int count) {
  return at_offset(UM_OP_FUTEX_WAKE, -1, word, 0, count, UM_FOREVER);
}
