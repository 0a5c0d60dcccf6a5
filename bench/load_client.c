#define _GNU_SOURCE
#include "load_client.h"

#include <errno.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUFFERS 512
#define BUFFER_SIZE 16384
#define OUT_SIZE (128 << 10)
#define OUT_FULL (64 << 10) /* leaves room for a record and for what a handshake adds */

typedef struct out_buffer {
  struct out_buffer *next;
  size_t start, end;
  char data[OUT_SIZE];
} out_buffer;

enum { RECEIVE, SEND, CONNECT, RAW, KINDS }; /* in the low bits of a client's address */

transport transport_setup;
static struct io_uring ring;
static struct io_uring_buf_ring *buffer_ring;
static char *buffers;
static unsigned offsets[BUFFERS];
static out_buffer *spare;
static BIO_METHOD *method;
static struct sockaddr_storage server;
static socklen_t server_length;

/* ---- the ring ---- */

static struct io_uring_sqe *next_sqe(client *c, unsigned kind) {
  struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
  if (!sqe) {
    io_uring_submit(&ring);
    if (!(sqe = io_uring_get_sqe(&ring))) fail("the submission queue stays full");
  }
  io_uring_sqe_set_data64(sqe, (uintptr_t)c | kind);
  return sqe;
}

/* liburing's prep functions leave user_data alone. */
static void arm_receive(client *c) {
  struct io_uring_sqe *sqe = next_sqe(c, RECEIVE);
  io_uring_prep_recv_multishot(sqe, c->fd, NULL, 0, 0);
  sqe->flags |= IOSQE_BUFFER_SELECT;
  c->receiving = true;
}

static char *buffer_start(unsigned id) { return buffers + (size_t)id * BUFFER_SIZE; }

static void lend(unsigned id) {
  offsets[id] = 0;
  io_uring_buf_ring_add(buffer_ring, buffer_start(id), BUFFER_SIZE, (unsigned short)id,
                        io_uring_buf_ring_mask(BUFFERS), 0);
  io_uring_buf_ring_advance(buffer_ring, 1);
}

static void make_ring(unsigned connections) {
  unsigned entries = 256;
  while (entries < 4096 && entries < connections * 2) entries *= 2;
  struct io_uring_params parameters = {
    .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL |
             IORING_SETUP_CQSIZE,
    .cq_entries = entries * 8,
  };
  int result = io_uring_queue_init_params(entries, &ring, &parameters);
  if (result < 0) fail("the load needs io_uring (kernel 6.1): %s", strerror(-result));
  buffer_ring = io_uring_setup_buf_ring(&ring, BUFFERS, 0, IOU_PBUF_RING_INC, &result);
  if (!buffer_ring)
    fail("the load needs incremental provided buffers (kernel 6.12): %s", strerror(-result));
  buffers = aligned_alloc(4096, (size_t)BUFFERS * BUFFER_SIZE);
  if (!buffers) fail("no memory for buffers");
  for (unsigned id = 0; id < BUFFERS; id++) lend(id);
}

/* ---- OpenSSL over memory ---- */

static out_buffer *take_out(void) {
  out_buffer *out = spare;
  if (out) spare = out->next;
  else if (!(out = malloc(sizeof *out))) fail("no memory for a send");
  out->start = out->end = 0;
  return out;
}

static void put(client *c, const char *data, size_t length) {
  if (!c->out) c->out = take_out();
  if (c->out->end + length > OUT_SIZE) fail("a send outgrew its buffer");
  memcpy(c->out->data + c->out->end, data, length);
  c->out->end += length;
}

static void put_flood(client *c, const char *data, size_t length) {
  if (c->flood_length + length > c->flood_room) fail("a flood outgrew its buffer");
  memcpy(c->flood + c->flood_length, data, length);
  c->flood_length += length;
}

static int bio_write(BIO *bio, const char *data, size_t length, size_t *written) {
  client *c = BIO_get_data(bio);
  if (c->flood) put_flood(c, data, length);
  else put(c, data, length);
  *written = length;
  return 1;
}

static int bio_read(BIO *bio, char *data, size_t length, size_t *done) {
  client *c = BIO_get_data(bio);
  BIO_clear_retry_flags(bio);
  *done = length < c->in_left ? length : c->in_left;
  memcpy(data, c->in, *done);
  c->in += *done;
  c->in_left -= *done;
  if (*done) return 1;
  BIO_set_retry_read(bio);
  return -1;
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer) {
  (void)bio, (void)number, (void)pointer;
  return command == BIO_CTRL_FLUSH;
}

static int bio_create(BIO *bio) {
  BIO_set_init(bio, 1);
  return 1;
}

static void make_method(void) {
  method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "load");
  if (!method || !BIO_meth_set_write_ex(method, bio_write) ||
      !BIO_meth_set_read_ex(method, bio_read) || !BIO_meth_set_ctrl(method, bio_ctrl) ||
      !BIO_meth_set_create(method, bio_create))
    fail("no memory for a BIO method");
}

static void make_ssl(client *c) {
  BIO *bio = BIO_new(method);
  c->ssl = SSL_new(transport_setup.context);
  if (!bio || !c->ssl) fail("no memory for connection %u", c->id);
  BIO_set_data(bio, c);
  SSL_set_bio(c->ssl, bio, bio);
  SSL_set_app_data(c->ssl, c);
  SSL_set_connect_state(c->ssl);
  if (transport_setup.resume && c->session) SSL_set_session(c->ssl, c->session);
}

static int keep_session(SSL *ssl, SSL_SESSION *session) {
  client *c = SSL_get_app_data(ssl);
  SSL_SESSION_free(c->session);
  c->session = session;
  return 1;
}

_Noreturn static void lose(const client *c, const char *reason) {
  if (c->connected || c->shaken)
    fail("connection %u lost after %u messages: %s", c->id, c->turn, reason);
  fail("cannot connect to %s: %s", transport_setup.address, reason);
}

/* True: done. */
static bool check(client *c, int result) {
  if (result > 0) return true;
  int error = SSL_get_error(c->ssl, result);
  if (error == SSL_ERROR_ZERO_RETURN) lose(c, "closed by the server");
  if (error != SSL_ERROR_WANT_READ) lose(c, "TLS failure");
  return false;
}

/* ---- reading and writing ---- */

size_t client_read(client *c, char *buffer, size_t length) {
  if (!c->ssl) {
    size_t part = length < c->in_left ? length : c->in_left;
    memcpy(buffer, c->in, part);
    c->in += part;
    c->in_left -= part;
    return part;
  }
  if (!c->in_left && !SSL_has_pending(c->ssl)) return 0;
  int result = SSL_read(c->ssl, buffer, (int)length);
  return check(c, result) ? (size_t)result : 0;
}

size_t client_write(client *c, const char *data, size_t length) {
  size_t taken = 0;
  while (taken < length && (!c->out || c->out->end < OUT_FULL)) {
    size_t left = length - taken;
    size_t part = left < SSL3_RT_MAX_PLAIN_LENGTH ? left : SSL3_RT_MAX_PLAIN_LENGTH;
    if (!c->ssl) put(c, data + taken, part);
    else if (!check(c, SSL_write(c->ssl, data + taken, (int)part))) return taken;
    taken += part;
  }
  return taken;
}

void client_flush(client *c) {
  if (c->sending || !c->out) return;
  struct io_uring_sqe *sqe = next_sqe(c, SEND);
  io_uring_prep_send(sqe, c->fd, c->out->data + c->out->start, c->out->end - c->out->start,
                     MSG_NOSIGNAL | MSG_WAITALL);
  c->sending = true;
}

void client_send_raw(client *c, const char *data, size_t length) {
  io_uring_prep_send(next_sqe(c, RAW), c->fd, data, length, MSG_NOSIGNAL | MSG_WAITALL);
  c->sending = true;
}

/* ---- life ---- */

/* One source address runs out of ports under handshake loops. */
static void spread_sources(client *c) {
  struct sockaddr_in from = { .sin_family = AF_INET };
  const int on = 1;
  from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + (c->id * 7 + c->turn) % 64);
  setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
  if (bind(c->fd, (struct sockaddr *)&from, sizeof from)) fail("bind: %s", strerror(errno));
}

void client_connect(client *c) {
  const int on = 1;
  c->fd = socket(server.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (c->fd < 0) fail("socket for connection %u: %s", c->id, strerror(errno));
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (transport_setup.cubic) use_cubic(c->fd);
  if (transport_setup.many_sources && server.ss_family == AF_INET) spread_sources(c);
  c->shaken = c->closing = c->sending = c->receiving = false;
  c->started = now_ns();
  io_uring_prep_connect(next_sqe(c, CONNECT), c->fd, (struct sockaddr *)&server, server_length);
}

static void release_out(client *c) {
  if (!c->out) return;
  c->out->next = spare;
  spare = c->out;
  c->out = NULL;
}

/* close(2) under a pending receive would send no FIN: it must have ended before. */
static void close_if_idle(client *c) {
  if (!c->closing || c->receiving || c->sending) return;
  close(c->fd);
  SSL_free(c->ssl);
  c->ssl = NULL;
  release_out(c);
  transport_setup.closed(c);
}

void client_close(client *c) {
  c->closing = true;
  if (c->ssl && c->shaken && !transport_setup.abrupt) SSL_shutdown(c->ssl);
  ERR_clear_error();
  client_flush(c);
  if (!c->sending) shutdown(c->fd, SHUT_WR);
  close_if_idle(c);
}

static void shake_hands(client *c) {
  if (!check(c, SSL_do_handshake(c->ssl))) return;
  c->shaken = true;
  transport_setup.connected(c);
}

static void on_connected(client *c, int result) {
  if (result < 0) lose(c, strerror(-result));
  arm_receive(c);
  if (transport_setup.plain) {
    c->shaken = true;
    transport_setup.connected(c);
  } else {
    make_ssl(c);
    shake_hands(c);
  }
  client_flush(c);
}

static void on_sent(client *c, int result) {
  c->sending = false;
  if (result <= 0 && !c->closing) lose(c, result ? strerror(-result) : "closed by the server");
  if (result > 0) c->out->start += (size_t)result;
  bool empty = result <= 0 || c->out->start == c->out->end;
  if (empty) release_out(c);
  if (empty && c->closing) shutdown(c->fd, SHUT_WR);
  else if (empty && c->shaken) transport_setup.room(c);
  client_flush(c);
  close_if_idle(c);
}

static void take(client *c, const char *data, size_t length) {
  if (c->closing) return; /* its close_notify */
  c->in = data;
  c->in_left = length;
  if (!c->shaken) shake_hands(c);
  if (c->shaken && !c->closing) transport_setup.readable(c);
  c->in_left = 0;
  client_flush(c);
}

static void on_received(client *c, const struct io_uring_cqe *cqe) {
  if (!(cqe->flags & IORING_CQE_F_MORE)) c->receiving = false;
  if (cqe->flags & IORING_CQE_F_BUFFER) {
    unsigned id = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
    char *data = buffer_start(id) + offsets[id];
    if (cqe->res > 0) take(c, data, (size_t)cqe->res);
    offsets[id] += cqe->res > 0 ? (unsigned)cqe->res : 0;
    if (!(cqe->flags & IORING_CQE_F_BUF_MORE)) lend(id);
  }
  bool over = cqe->res <= 0 && cqe->res != -ENOBUFS;
  if (over && !c->closing) lose(c, cqe->res ? strerror(-cqe->res) : "closed by the server");
  if (!over && !c->receiving) arm_receive(c);
  close_if_idle(c);
}

static void on_raw_sent(client *c, int result) {
  c->sending = false;
  if (result <= 0) lose(c, result ? strerror(-result) : "closed by the server");
  c->sent += (size_t)result;
  transport_setup.room(c);
}

static void handle(const struct io_uring_cqe *cqe) {
  client *c = (client *)(uintptr_t)(cqe->user_data & ~(uint64_t)(KINDS - 1));
  switch (cqe->user_data & (KINDS - 1)) {
    case RECEIVE: on_received(c, cqe); break;
    case SEND: on_sent(c, cqe->res); break;
    case CONNECT: on_connected(c, cqe->res); break;
    default: on_raw_sent(c, cqe->res);
  }
}

void transport_turn(int64_t nanoseconds) {
  struct __kernel_timespec timeout = { nanoseconds / 1000000000, nanoseconds % 1000000000 };
  struct io_uring_cqe *cqe;
  unsigned head, seen = 0;
  int result = io_uring_submit_and_wait_timeout(&ring, &cqe, 1, &timeout, NULL);
  if (result < 0 && result != -ETIME && result != -EINTR && result != -EBUSY && result != -EAGAIN)
    fail("io_uring: %s", strerror(-result));
  io_uring_for_each_cqe(&ring, head, cqe) {
    handle(cqe);
    seen++;
  }
  io_uring_cq_advance(&ring, seen);
}

void transport_start(unsigned connections) {
  resolve(transport_setup.address, 0, &server, &server_length);
  make_method();
  make_ring(connections);
  if (transport_setup.resume) {
    SSL_CTX_set_session_cache_mode(transport_setup.context,
                                   SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(transport_setup.context, keep_session);
  }
}
