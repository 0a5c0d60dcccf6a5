/* System calls that suspend the fiber instead of blocking the thread.
 *
 * Each is its man-page namesake but for: the result is a negative code instead
 * of -1 and errno; an absolute deadline comes last; SIGPIPE is never raised (a
 * thread that uses um_write() or um_splice() blocks the signal from then on: it
 * has no flag for them).
 * All need a fiber (UM_ENOTFIBER otherwise) and may return -ETIMEDOUT and
 * -ECANCELED besides what the man page lists. Buffers must stay valid until the
 * call returns, and never longer: an abandoned operation is cancelled and
 * drained before the call returns.
 * What io_uring leaves to threads of its own may answer a passed deadline with
 * -ETIMEDOUT though it could have been done at once; nothing is done or lost then. These
 * are um_splice(), um_write() to files, and on Linux 6.1 whatever concerns pipes.
 *
 * Whole transfers. um_send(), um_sendv(), um_sendmsg() and um_write() go on
 * until everything is out. A short count (less than asked for, more than 0)
 * means the deadline, a cancellation or an error struck after that many bytes;
 * calling again reports it.
 *
 * Descriptors should be blocking ones: on an O_NONBLOCK descriptor the library
 * polls and tries again.
 */
#ifndef BIO_URING_IO_H
#define BIO_URING_IO_H

#include <bio_uring/base.h>
#include <bio_uring/reactor.h>

#include <signal.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

#ifdef __cplusplus
extern "C" {
#endif

/* recv(2). 0 at end of file. */
UM_API ssize_t um_recv(int fd, void *buffer, size_t length, int flags, um_time deadline);
/* send(2), whole. */
UM_API ssize_t um_send(int fd, const void *buffer, size_t length, int flags, um_time deadline);
/* The same from several buffers; at most 1,024 (IOV_MAX), else -EMSGSIZE. */
UM_API ssize_t um_sendv(int fd, const struct iovec *iov, int count, um_time deadline);
/* Datagrams and ancillary data; stream sockets complete whole. */
UM_API ssize_t um_sendmsg(int fd, const struct msghdr *message, int flags, um_time deadline);
/* recvmsg(2). */
UM_API ssize_t um_recvmsg(int fd, struct msghdr *message, int flags, um_time deadline);

/* pread(2); offset -1 is read(2), which uses and moves the file position. */
UM_API ssize_t um_read(int fd, void *buffer, size_t length, int64_t offset, um_time deadline);
/* pwrite(2) or, with offset -1, write(2); whole. */
UM_API ssize_t um_write(int fd, const void *buffer, size_t length, int64_t offset,
                        um_time deadline);
/* openat(2). The descriptor; add O_CLOEXEC to `flags`. */
UM_API int um_openat(int directory, const char *path, int flags, mode_t mode, um_time deadline);
/* splice(2); offset -1 uses the file position, and is what pipes need. */
UM_API ssize_t um_splice(int from, int64_t from_offset, int to, int64_t to_offset, size_t length,
                         unsigned flags, um_time deadline);

/* connect(2). After a failure or an interruption the socket is good for close only. */
UM_API int um_connect(int fd, const struct sockaddr *address, socklen_t length, um_time deadline);
/* accept4(2). For more than a few connections see um_acceptor_create(). */
UM_API int um_accept(int fd, struct sockaddr *address, socklen_t *length, int flags,
                     um_time deadline);
/* shutdown(2). */
UM_API int um_shutdown(int fd, int how, um_time deadline);
/* The descriptor is gone whatever is returned. Nothing may be waiting on it. */
UM_API int um_close(int fd);

/* poll(2) events on one descriptor. Returns the events that are there, > 0. */
UM_API int um_poll(int fd, unsigned events, um_time deadline);

/* waitid(2). Kernels before 6.7 and the epoll backend: P_PID only, else -EOPNOTSUPP. */
UM_API int um_waitid(idtype_t type, id_t id, siginfo_t *info, int options, um_time deadline);

/* futex(2) on a private 32-bit word: io_uring futex operations (kernel 6.7).
 * Waits while *word == expected. -EAGAIN when it is not, -EOPNOTSUPP where the
 * kernel or the backend has them not. The objects of sync.h work everywhere. */
UM_API int um_futex_wait(uint32_t *word, uint32_t expected, um_time deadline);
/* Wakes at most `count` waiters, futex(2) ones included; returns how many. */
UM_API int um_futex_wake(uint32_t *word, int count);

/* ---- listening ---- */

/* Accepts connections with one multishot operation (kernel 5.19; one at a time
 * before). Belongs to the reactor it was created on. While the process is out of
 * descriptors or memory (EMFILE, ENFILE, ENOBUFS, ENOMEM) it waits, from 10 ms
 * doubling to 1 s, and tries again; metrics.accept_backoffs counts. */
typedef struct um_acceptor um_acceptor;

/* The listening descriptor stays the caller's. -ENOMEM, UM_ENOTFIBER. */
UM_API int um_acceptor_create(um_acceptor **out, int fd);
/* The next connection's descriptor (close-on-exec), or an error. One caller at a
 * time (UM_EREENTRANT). */
UM_API int um_acceptor_next(um_acceptor *acceptor, um_time deadline);
/* Leaves further connections in the kernel's queue until the next call of
 * um_acceptor_next(). Those already on their way may still be accepted and kept: at most what
 * the listening socket's queue holds. */
UM_API void um_acceptor_pause(um_acceptor *acceptor);
/* Stops accepting and closes what was accepted and not taken. From a fiber.
 * Then the kernel's queue is the caller's again. */
UM_API void um_acceptor_destroy(um_acceptor *acceptor);

#ifdef __cplusplus
}
#endif
#endif
