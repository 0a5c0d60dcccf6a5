/* Ending TLS streams: for writing, wholly, at once, or giving the socket back. */
#include "tls_internal.h"

#include "reactor/alloc.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static int notify_and_flush(um_tls *tls, um_time deadline) {
  int result = um__tls_lock_write(tls, deadline);
  if (result < 0) return result;
  if (!tls->notified && !tls->failed) result = um__tls_settle(tls, deadline);
  if (result == 0) result = um__tls_notify(tls);
  um__tls_unlock_write(tls);
  return result < 0 ? result : um__conn_wait_output(&tls->conn, 0, deadline);
}

int um_tls_shutdown(um_tls *tls, um_time deadline) {
  int result = um__tls_enter(tls);
  if (result < 0) return result;
  result = um__tls_handshake(tls, deadline);
  if (result == 0) result = notify_and_flush(tls, deadline);
  if (result == 0 && shutdown(tls->conn.fd, SHUT_WR) < 0 && errno != ENOTCONN) result = -errno;
  um__tls_leave(tls);
  return result;
}

/* Everyone inside learns that it is over and leaves. */
static void evict(um_tls *tls) {
  um__conn_close_soon(&tls->conn);
  um__waitq_wake_all(&tls->shakers);
  um__waitq_wake_all(&tls->input);
  um__waitq_wake_all(&tls->writers);
  tls->closer = um__task();
  while (tls->users) um__park_shielded(tls->reactor);
  tls->closer = NULL;
}

/* Bytes of the peer that are unread at close(2), or arrive after it (tickets, an upload
 * that was refused), make the kernel send a reset, which destroys what the peer has
 * not read and what we have not sent yet (RFC 2525 section 2.17): let it finish first,
 * within bounds. */
#define LINGER_BYTES (256u << 10)
#define LINGER_UNREAD UM_SECOND
#define LINGER_UNSENT (5 * UM_SECOND)
#define LINGER_LOOK (5 * UM_MS)

static int queued_in_kernel(int fd, unsigned long which) {
  int bytes = 0;
  return ioctl(fd, which, &bytes) < 0 ? 0 : bytes;
}

static int receive_scrap(um_tls *tls, um_time until) {
  char scrap[4096];
  um_op *op = um__op_new(tls->reactor, UM_OP_RECV, tls->conn.fd);
  if (!op) return -ENOMEM;
  op->address = scrap;
  op->length = sizeof scrap;
  return um__await(op, until);
}

/* After its end the peer sends no more. With nothing unread it is enough that its kernel has
 * it all; nothing tells us when, so look again and again. A cancellation is the caller's to
 * hear of. */
static int linger(um_tls *tls, um_time deadline) {
  int fd = tls->conn.fd;
  if (tls->conn.received_end == 1) return 0;
  bool unread = tls->conn.received || queued_in_kernel(fd, FIONREAD);
  if (!unread && !queued_in_kernel(fd, SIOCOUTQNSD)) return 0;
  shutdown(fd, SHUT_WR);
  um_time until = um_now() + (unread ? LINGER_UNREAD : LINGER_UNSENT), now;
  if (deadline < until) until = deadline;
  for (size_t total = 0; total < LINGER_BYTES && (now = um_now()) < until;) {
    if (!unread && !queued_in_kernel(fd, SIOCOUTQ)) return 0;
    um_time look = now + LINGER_LOOK;
    int result = receive_scrap(tls, unread || until < look ? until : look);
    if (result == -ECANCELED) return result;
    if (result == 0 || (result < 0 && result != -ETIMEDOUT)) return 0;
    if (result > 0) total += (size_t)result;
  }
  return 0;
}

static void give_up_fd(um_tls *tls) {
  if (!(tls->flags & UM_TLS_KEEP_FD)) close(tls->conn.fd);
}

/* In a fork's child: socket and ring are the parent's, who goes on with both. */
static void forget(um_tls *tls) {
  give_up_fd(tls);
  um__tls_free(tls);
}

int um_tls_close(um_tls *tls, um_time deadline) {
  if (!tls) return 0;
  int result = um__tls_check_caller(tls);
  if (result == UM_EFORKED) forget(tls);
  if (result < 0) return result;
  evict(tls);
  (void)um__tls_notify(tls);
  bool unread = tls->conn.received != 0;
  result = um__conn_close(&tls->conn, deadline);
  tls->conn.received = unread;
  if (result == 0 && !(tls->flags & UM_TLS_KEEP_FD)) result = linger(tls, deadline);
  tls->conn.received = 0;
  give_up_fd(tls);
  um__tls_free(tls);
  return result;
}

void um_tls_abort(um_tls *tls) {
  if (!tls) return;
  if (um__reactor_forked(tls->reactor)) {
    forget(tls);
    return;
  }
  struct linger reset = {.l_onoff = 1, .l_linger = 0};
  if (um__task()) evict(tls);
  um__conn_close(&tls->conn, 0);
  if (!(tls->flags & UM_TLS_KEEP_FD))
    setsockopt(tls->conn.fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  give_up_fd(tls);
  um__tls_free(tls);
}

/* Reads and drops application data until the peer's close_notify. */
static int await_notify(um_tls *tls, um_time deadline) {
  char scrap[1024];
  ssize_t result;
  do result = um_tls_read(tls, scrap, sizeof scrap, deadline);
  while (result > 0);
  return (int)result;
}

int um_tls_unwrap(um_tls *tls, void **leftover, size_t *leftover_length, um_time deadline) {
  int result = um__tls_enter(tls);
  if (result < 0) return result;
  result = um__tls_handshake(tls, deadline);
  if (result == 0) result = notify_and_flush(tls, deadline);
  if (result == 0) result = await_notify(tls, deadline);
  if (result == 0) um__conn_disarm(&tls->conn);
  size_t length = tls->conn.received;
  char *bytes = result == 0 && length ? um__alloc_raw(length) : NULL;
  if (result == 0 && length && !bytes) result = -ENOMEM;
  um__tls_leave(tls);
  if (result < 0) return result;
  *leftover_length = um__conn_take(&tls->conn, bytes, length);
  *leftover = bytes;
  int fd = tls->conn.fd;
  evict(tls);
  um__conn_close(&tls->conn, deadline);
  um__tls_free(tls);
  return fd;
}
