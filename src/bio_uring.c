/* The BIO: copies ciphertext between OpenSSL and a connection's queues. In
 * suspending mode it parks the calling fiber when there is nothing to copy; in
 * memory mode it asks for a retry. */
#include "bio_uring.h"

#include "error_queue.h"
#include "reactor/alloc.h"

#include <openssl/err.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BIO_C_SET_URING_DEADLINE 0x554D01
#define BIO_C_GET_URING_ERROR 0x554D02
#define CLOSE_FLUSH (5 * UM_SECOND)
#define UNLIMITED UINT32_MAX

typedef struct um_bio {
  um_conn *conn;         /* own, or the stream's */
  um_conn *own;          /* NULL in a stream's */
  bool suspending;
  bool reading, writing; /* a fiber is in there */
  bool budget_spent;
  unsigned budget;
  int error;             /* of the last call */
  um_time deadline;
} um_bio;

static um_bio *state(BIO *bio) { return BIO_get_data(bio); }

/* ---- suspending ---- */

static bool busy(const um_conn *conn) { return conn->receive || conn->send || conn->is_holding; }

/* Where this call waits: in a fiber (1), blocking the thread (0), or nowhere. */
static int place(um_conn *conn) {
  um_reactor *here = um__reactor();
  if (here && !um__task()) return UM_ENOTFIBER;
  if (conn->reactor == here) return here != NULL;
  if (conn->reactor && um__reactor_check(conn->reactor) < 0)
    return um__reactor_check(conn->reactor);
  if (here && conn->reactor && busy(conn)) return UM_EWRONGTHREAD;
  int result = um__conn_detach(conn);
  if (result == 0 && here) um__conn_attach(conn, here);
  return result < 0 ? result : here != NULL;
}

/* ---- blocking, outside fibers ---- */

static int poll_until(int fd, short events, um_time deadline) {
  struct pollfd poller = {.fd = fd, .events = events};
  if (fd < 0) return -EBADF; /* which poll(2) would ignore */
  for (;;) {
    um_time left = deadline == UM_FOREVER ? -1 : deadline - um_now();
    if (deadline != UM_FOREVER && left < 0) left = 0;
    int timeout = left < 0 ? -1 : left / UM_MS >= INT32_MAX ? INT32_MAX : (int)((left + UM_MS - 1) / UM_MS);
    int result = poll(&poller, 1, timeout);
    if (result > 0) return 0;
    if (result == 0) return -ETIMEDOUT;
    if (errno != EINTR) return -errno;
  }
}

static void send_some(um_conn *conn) {
  const void *data;
  size_t length = um__conn_output(conn, &data);
  ssize_t count = length ? send(conn->fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
  if (count > 0) um__conn_output_sent(conn, (size_t)count);
  if (count >= 0 || errno == EAGAIN || errno == EINTR) return;
  conn->output_error = -errno;
  um__conn_discard_output(conn);
}

/* The answer may wait for what is still queued: by a write that ran out of time, by a
 * fiber before. */
static int blocking_fill(um_conn *conn, um_time deadline) {
  char buffer[16384];
  while (!conn->received && !conn->received_end) {
    int result = poll_until(conn->fd, conn->output ? POLLIN | POLLOUT : POLLIN, deadline);
    if (result < 0) return result;
    send_some(conn);
    ssize_t count = recv(conn->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (count > 0 && (result = um__conn_feed(conn, buffer, (size_t)count)) < 0)
      conn->received_end = result; /* the bytes are lost: so is the connection */
    else if (count == 0) conn->received_end = 1;
    else if (count < 0 && errno != EAGAIN && errno != EINTR) conn->received_end = -errno;
  }
  return 0;
}

static int blocking_drain(um_conn *conn, um_time deadline) {
  while (conn->output) {
    int result = poll_until(conn->fd, POLLOUT, deadline);
    if (result < 0) return result;
    send_some(conn);
  }
  return conn->output_error;
}

/* ---- read and write ---- */

/* Nothing went wrong that asking again would not cure. */
static int retry(BIO *bio, um_bio *b, int error, int flags) {
  b->error = error;
  BIO_set_flags(bio, flags | BIO_FLAGS_SHOULD_RETRY);
  errno = EAGAIN;
  return -1;
}

static int failed(um_bio *b, int error) {
  b->error = error;
  if (error <= -20000) {
    ERR_raise_data(ERR_LIB_BIO, ERR_R_SHOULD_NOT_HAVE_BEEN_CALLED, "%s", um_strerror(error));
    errno = EPROTO;
  } else {
    errno = -error; /* what code written for a socket BIO looks at, right after */
  }
  return -1;
}

static int wait_failed(BIO *bio, um_bio *b, int error, int flags) {
  bool passing = error == -ETIMEDOUT || error == -ECANCELED || error == -ENOMEM;
  return passing ? retry(bio, b, error, flags) : failed(b, error);
}

/* Another fiber runs while this one waits: errors in OpenSSL's per-thread queue must stay this
 * fiber's. */
static int wait_for_bytes(um_bio *b) {
  int where = place(b->conn);
  if (where < 0) return where;
  if (!where) return blocking_fill(b->conn, b->deadline);
  um_saved_errors *errors = um__errors_save();
  int result = um__conn_wait_readable(b->conn, b->deadline);
  um__errors_restore(errors);
  return result;
}

static int wait_for_room(um_bio *b) {
  size_t limit = um__conn_send_limit(b->conn);
  if (b->conn->output < limit) return 0;
  um_saved_errors *errors = um__errors_save(); /* as above */
  int result = um__conn_wait_output(b->conn, limit / 2, b->deadline);
  um__errors_restore(errors);
  return result;
}

static int take(BIO *bio, um_bio *b, char *out, int length) {
  um_conn *conn = b->conn;
  if (conn->received) return (int)um__conn_take(conn, out, (size_t)length);
  if (conn->received_end == 1) return 0;
  if (conn->received_end < 0) return failed(b, conn->received_end);
  return retry(bio, b, 0, BIO_FLAGS_READ);
}

static int bio_read(BIO *bio, char *out, int length) {
  um_bio *b = state(bio);
  BIO_clear_retry_flags(bio);
  b->error = 0;
  if (!out || length <= 0) return 0;
  if (!b->suspending) {
    if (b->budget != UNLIMITED && b->budget-- == 0) {
      b->budget = 0;
      b->budget_spent = b->conn->received != 0;
      return retry(bio, b, 0, BIO_FLAGS_READ);
    }
    return take(bio, b, out, length);
  }
  if (b->reading) return failed(b, UM_EREENTRANT);
  b->reading = true;
  int result = b->conn->received ? 0 : wait_for_bytes(b);
  b->reading = false;
  return result < 0 ? wait_failed(bio, b, result, BIO_FLAGS_READ) : take(bio, b, out, length);
}

/* Room first, then all of it: half a record cannot be taken back. */
static int suspending_put(um_bio *b, const char *data, size_t length) {
  um_conn *conn = b->conn;
  int where = place(conn), result = 0;
  if (where < 0) return where;
  if (where) result = wait_for_room(b);
  else if (conn->output) result = blocking_drain(conn, b->deadline);
  if (result == 0) result = um__conn_put(conn, data, length);
  if (result < 0 || where) return result;
  result = blocking_drain(conn, b->deadline);
  return result == -ETIMEDOUT ? 0 : result; /* queued: the next write goes on */
}

static int bio_write(BIO *bio, const char *data, int length) {
  um_bio *b = state(bio);
  BIO_clear_retry_flags(bio);
  b->error = 0;
  if (!data || length <= 0) return 0;
  if (b->writing) return failed(b, UM_EREENTRANT);
  b->writing = true;
  int result = b->suspending ? suspending_put(b, data, (size_t)length)
                             : um__conn_put(b->conn, data, (size_t)length);
  b->writing = false;
  if (result == 0) return length;
  return b->conn->output_error ? failed(b, result) : wait_failed(bio, b, result, BIO_FLAGS_WRITE);
}

static int bio_puts(BIO *bio, const char *text) {
  size_t length = strlen(text);
  return length > INT32_MAX ? -1 : bio_write(bio, text, (int)length);
}

/* ---- ctrl ---- */

static long get_fd(um_bio *b, int *out) {
  if (b->conn->fd < 0) return -1;
  if (out) *out = b->conn->fd;
  return b->conn->fd;
}

static long rare_ctrl(BIO *bio, um_bio *b, int command, long number, void *pointer) {
  switch (command) {
    case BIO_CTRL_GET_CLOSE:
      return BIO_get_shutdown(bio);
    case BIO_CTRL_SET_CLOSE:
      BIO_set_shutdown(bio, (int)number);
      return 1;
    case BIO_CTRL_DUP:
      return 1;
    case BIO_C_GET_FD:
      return get_fd(b, pointer);
    case BIO_C_SET_FD:
      if (!b->suspending || busy(b->conn)) return 0;
      b->conn->fd = *(int *)pointer;
      BIO_set_shutdown(bio, (int)number);
      BIO_set_init(bio, 1);
      return 1;
    case BIO_C_SET_URING_DEADLINE:
      b->deadline = *(um_time *)pointer;
      return 1;
    case BIO_C_GET_URING_ERROR:
      return b->error;
    default:
      return 0;
  }
}

/* In a fiber, output leaves when it next waits; outside, only a write that ran out of
 * time has left some. */
static long flush(BIO *bio, um_bio *b) {
  BIO_clear_retry_flags(bio);
  b->error = b->conn->output_error;
  if (b->error) return 0;
  if (!b->conn->output || !b->suspending || um__reactor()) return 1;
  int result = place(b->conn);
  if (result == 0) result = blocking_drain(b->conn, b->deadline);
  return result == 0 ? 1 : wait_failed(bio, b, result, BIO_FLAGS_WRITE);
}

/* libssl asks about kTLS several times a record: those first. */
static long bio_ctrl(BIO *bio, int command, long number, void *pointer) {
  um_bio *b = state(bio);
  switch (command) {
#ifdef BIO_CTRL_GET_KTLS_SEND
    case BIO_CTRL_GET_KTLS_SEND:
    case BIO_CTRL_GET_KTLS_RECV:
      return 0;
#endif
    case BIO_CTRL_FLUSH:
      return flush(bio, b);
    case BIO_CTRL_EOF:
      return b->conn->received_end == 1 && !b->conn->received;
    case BIO_CTRL_PENDING:
      return (long)b->conn->received;
    case BIO_CTRL_WPENDING:
      return (long)b->conn->output;
    case BIO_CTRL_PUSH:
    case BIO_CTRL_POP:
      return 0;
    default:
      return rare_ctrl(bio, b, command, number, pointer);
  }
}

/* ---- life ---- */

static int bio_create(BIO *bio) {
  um_bio *b = um__alloc(sizeof *b);
  if (b) b->conn = b->own = um__alloc(sizeof *b->own);
  if (!b || !b->own) {
    um__free(b);
    return 0;
  }
  b->own->fd = -1;
  b->deadline = UM_FOREVER;
  b->suspending = true;
  BIO_set_data(bio, b);
  return 1;
}

/* Freeing cannot report a cancellation: it goes on, and the next wait reports it. A second
 * one is meant. False when there was one. */
static bool flush_before_close(um_conn *conn, um_time until) {
  if (!conn->reactor || !um__task() || um__conn_wait_output(conn, 0, until) != -ECANCELED) return true;
  um__conn_wait_output(conn, 0, until);
  return false;
}

/* On another thread than its reactor's nothing can be drained: what is armed keeps
 * its memory. The header forbids it. */
static bool close_conn(um_bio *b) {
  um_conn *conn = b->conn;
  if (conn->reactor && um__reactor_check(conn->reactor) < 0) return false;
  um_time until = um_now() + CLOSE_FLUSH;
  if (!conn->reactor && b->suspending && conn->output) blocking_drain(conn, until);
  um_saved_errors *errors = um__errors_save();
  bool cancelled = !flush_before_close(conn, until);
  um__conn_close(conn, until);
  if (cancelled) um__task()->cancel_pending = 1;
  um__errors_restore(errors);
  return true;
}

static int bio_destroy(BIO *bio) {
  um_bio *b = state(bio);
  if (!b) return 0;
  BIO_set_data(bio, NULL);
  int fd = b->own ? b->own->fd : -1;
  if (b->own && !close_conn(b)) return 1;
  if (BIO_get_shutdown(bio) && b->suspending && fd >= 0) close(fd);
  um__free(b->own);
  um__free(b);
  return 1;
}

static BIO_METHOD *method;

static void make_method(void) {
  int type = BIO_get_new_index();
  if (type < 0) return;
  BIO_METHOD *made = BIO_meth_new(type | BIO_TYPE_SOURCE_SINK | BIO_TYPE_DESCRIPTOR, "io_uring");
  if (!made) return;
  BIO_meth_set_read(made, bio_read);
  BIO_meth_set_write(made, bio_write);
  BIO_meth_set_puts(made, bio_puts);
  BIO_meth_set_ctrl(made, bio_ctrl);
  BIO_meth_set_create(made, bio_create);
  BIO_meth_set_destroy(made, bio_destroy);
  method = made;
}

const BIO_METHOD *BIO_s_uring(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, make_method);
  return method;
}

/* A BIO on the connection it is given, or with queues of its own. */
static BIO *new_bio(um_conn *conn, int fd, bool suspending) {
  const BIO_METHOD *type = BIO_s_uring();
  BIO *bio = type ? BIO_new(type) : NULL;
  if (!bio) return NULL;
  um_bio *b = state(bio);
  BIO_set_shutdown(bio, BIO_NOCLOSE);
  b->suspending = suspending;
  b->budget = UNLIMITED;
  if (!conn) {
    um__conn_init(b->own, fd);
  } else {
    um__free(b->own);
    b->own = NULL;
    b->conn = conn;
  }
  BIO_set_init(bio, 1);
  return bio;
}

BIO *um__bio_new(um_conn *conn) { return new_bio(conn, -1, false); }

BIO *BIO_new_uring(int fd, int close_flag) {
  BIO *bio = new_bio(NULL, fd, true);
  if (bio) BIO_set_shutdown(bio, close_flag);
  return bio;
}

BIO *BIO_new_uring_memory(int fd) { return new_bio(NULL, fd, false); }

int SSL_set_uring_fd(SSL *ssl, int fd) {
  BIO *bio = BIO_new_uring(fd, BIO_NOCLOSE);
  if (!bio) return 0;
  SSL_set_bio(ssl, bio, bio);
  return 1;
}

int BIO_set_uring_deadline(BIO *bio, um_time deadline) {
  return (int)BIO_ctrl(bio, BIO_C_SET_URING_DEADLINE, 0, &deadline);
}

int BIO_get_uring_error(BIO *bio) { return (int)BIO_ctrl(bio, BIO_C_GET_URING_ERROR, 0, NULL); }

/* ---- memory mode ---- */

void um__bio_budget(BIO *bio, unsigned reads) {
  um_bio *b = state(bio);
  b->budget = reads;
  b->budget_spent = false;
}

void um__bio_use(BIO *bio, um_conn *conn) { state(bio)->conn = conn; }

bool um__bio_budget_spent(BIO *bio) { return state(bio)->budget_spent; }

int BIO_uring_feed(BIO *bio, const void *data, size_t length) {
  return um__conn_feed(state(bio)->conn, data, length);
}

void BIO_uring_feed_end(BIO *bio, int reason) { state(bio)->conn->received_end = reason ? reason : 1; }

size_t BIO_uring_output(BIO *bio, const void **data) {
  return um__conn_output(state(bio)->conn, data);
}

void BIO_uring_sent(BIO *bio, size_t length) { um__conn_output_sent(state(bio)->conn, length); }
