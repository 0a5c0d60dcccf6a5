/* A TLS connection: the ciphertext between an SSLSocket's memory BIO and its socket.
 *
 * An SSL_* call is pure computation here. What it wants to read or wrote is moved by
 * fill and flush, outside of OpenSSL, by whatever way of waiting fits the caller:
 * the ring of its machine, the fiber scheduler's io_wait, or the thread's.
 *
 * One fills and one flushes at a time: two receives in flight could be delivered in
 * either order, two sends would send the same bytes. A second one waits for its
 * turn and then looks again. Readers never wait for a flush: both sides would
 * wait for each other for ever if both wrote and neither read.
 */
#include "um_ruby.h"

#include <bio_uring/tls.h>
#include <openssl/err.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define RECORD 16384             /* plaintext of the longest record */
#define HEADER 5
#define RECEIVE_SMALL 16384
#define RECEIVE_LARGE 65536
#define HIGH_WATER (256u << 10)  /* of ciphertext: about one large slab of the BIO */

typedef struct connection {
  BIO *bio;              /* our reference */
  SSL *ssl;              /* the SSLSocket's: valid while that calls us */
  VALUE self, io;
  VALUE writer;          /* the fiber whose write it is, or nil */
  um_turn writers, fills, flushes;
  bool filling, flushing;
  um_task *filler, *flusher; /* when on a ring: to be let go when the IO is closed */
  bool closing;
  bool watched;          /* its IO has our close */
  bool inside;           /* a Ruby callback may switch while SSL_* is on the stack */
  bool started;          /* connect or accept was called */
  bool ended;            /* the BIO knows how receiving ended */
  bool not_a_socket;
  bool bulk;             /* the last receive filled its buffer */
  signed char readahead; /* -1: only on a ring */
  int send_error;        /* latched: ciphertext was lost */
  size_t consumed;       /* bytes of the last write that were encrypted */
  size_t unreported;     /* encrypted by a *_nonblock write that answered :wait_writable */
  double deadline;       /* seconds each call may take; 0: none */
  /* Where in the stream of records the received bytes end. */
  uint8_t header[HEADER];
  unsigned header_length, record_left;
} connection;

static ID id_connection, id_callback_state, id_stock_read, id_stock_write, id_exception;
static VALUE connection_class, watched_module;
/* What changed with version 3.3 of the gem: read and write re-raise what callbacks
 * raised, and a read that fails leaves the caller's buffer alone. */
static bool gem_3_3;
static VALUE sym_wait_readable, sym_wait_writable;

static VALUE truth(bool value) { return value ? Qtrue : Qfalse; }

/* ---- the object ---- */

static void connection_mark(void *data) {
  connection *c = data;
  rb_gc_mark(c->self); /* we refer to it: it must not be moved */
  rb_gc_mark(c->io);
  rb_gc_mark(c->writer);
  um_turn_mark(&c->writers);
  um_turn_mark(&c->fills);
  um_turn_mark(&c->flushes);
}

static void connection_free(void *data) {
  connection *c = data;
  BIO_free(c->bio);
  xfree(c);
}

static size_t connection_size(const void *data) {
  const connection *c = data;
  return sizeof *c + (c->bio ? BIO_ctrl_pending(c->bio) + BIO_ctrl_wpending(c->bio) : 0);
}

static const rb_data_type_t connection_type = {
    "UM::TLS/connection",
    {connection_mark, connection_free, connection_size, NULL, {NULL}},
    NULL, NULL, RUBY_TYPED_FREE_IMMEDIATELY};

/* The SSL of an OpenSSL::SSL::SSLSocket; the gem publishes neither type nor getter. */
static SSL *ssl_of(VALUE socket) {
  if (RB_TYPE_P(socket, T_DATA) && RTYPEDDATA_P(socket) &&
      !strcmp(RTYPEDDATA_TYPE(socket)->wrap_struct_name, "OpenSSL/SSL") && DATA_PTR(socket))
    return DATA_PTR(socket);
  rb_raise(rb_eTypeError, "%" PRIsVALUE " is not an initialized OpenSSL::SSL::SSLSocket",
           rb_obj_class(socket));
}

/* UM::TLS.defaults(context): the library's own, on an SSLContext that is not in use yet. */
static VALUE tls_defaults(VALUE self, VALUE context) {
  (void)self;
  if (!RB_TYPE_P(context, T_DATA) || !RTYPEDDATA_P(context) ||
      strcmp(RTYPEDDATA_TYPE(context)->wrap_struct_name, "OpenSSL/SSL/CTX") || !DATA_PTR(context))
    rb_raise(rb_eTypeError, "wrong argument type %" PRIsVALUE " (expected OpenSSL::SSL::SSLContext)",
             rb_obj_class(context));
  rb_check_frozen(context);
  int result = um_tls_ctx_defaults(DATA_PTR(context));
  if (result < 0) um_raise(result);
  return context;
}

static connection *find(VALUE socket) {
  VALUE object = rb_attr_get(socket, id_connection);
  return NIL_P(object) ? NULL : rb_check_typeddata(object, &connection_type);
}

static connection *get(VALUE socket) {
  connection *c = find(socket);
  if (!c) rb_raise(rb_eArgError, "not a socket of UM::TLS: use UM::TLS.wrap or UM::TLS.attach");
  return c;
}

/* Raises what the stock socket raises when its IO is closed. */
static int descriptor(const connection *c) {
#ifdef HAVE_RB_IO_DESCRIPTOR
  return rb_io_descriptor(c->io);
#else
  rb_io_t *file;
  GetOpenFile(c->io, file);
  return file->fd;
#endif
}

static void feed_end(connection *c, int reason) {
  BIO_uring_feed_end(c->bio, reason);
  c->ended = true;
}

/* ---- deadlines ---- */

static um_time call_deadline(const connection *c) {
  return c->deadline > 0 ? um_now() + (um_time)(c->deadline * UM_SECOND) : UM_FOREVER;
}

static VALUE closed_error(void) {
  return rb_exc_new_cstr(rb_eIOError, "stream closed in another thread");
}

static void closed_meanwhile(const connection *c) {
  descriptor(c); /* raises, once it is closed */
  rb_exc_raise(closed_error());
}

static void timed_out(void) { rb_raise(um_eTimeout, "the TLS connection's deadline passed"); }

/* Nil, or the seconds that are left; IO#timeout counts anew for each wait. */
static VALUE wait_timeout(const connection *c, um_time deadline) {
  VALUE timeout = Qnil;
#ifdef HAVE_RB_IO_TIMEOUT
  timeout = rb_io_timeout(c->io);
#endif
  if (deadline == UM_FOREVER) return timeout;
  um_time left = deadline - um_now();
  double seconds = left < 0 ? 0 : (double)left / UM_SECOND;
  return !NIL_P(timeout) && NUM2DBL(timeout) < seconds ? timeout : DBL2NUM(seconds);
}

static um_time ring_deadline(const connection *c, um_time deadline) {
#ifdef HAVE_RB_IO_TIMEOUT
  um_time own = um_deadline_of(rb_io_timeout(c->io));
  if (own < deadline) deadline = own;
#endif
  return um_deadline(deadline);
}

/* ---- waiting for the socket ---- */

/* Waits for any of `events`; false means it is a timeout of the IO or the call. */
static unsigned wait_for(connection *c, unsigned events, um_time deadline) {
  if (um_on_ring()) {
    unsigned polled = (events & RUBY_IO_READABLE ? POLLIN : 0) | (events & RUBY_IO_WRITABLE ? POLLOUT : 0);
    int result = um_poll(descriptor(c), polled, ring_deadline(c, deadline));
    um_after_wait(result);
    if (result == -ETIMEDOUT) timed_out();
    if (result < 0) return events; /* the transfer that follows says what is wrong */
    return (result & ~POLLOUT ? RUBY_IO_READABLE : 0) | (result & ~POLLIN ? RUBY_IO_WRITABLE : 0);
  }
  descriptor(c);
  VALUE ready = rb_io_wait(c->io, UINT2NUM(events), wait_timeout(c, deadline));
  if (!RTEST(ready)) timed_out();
  return NUM2UINT(ready);
}

/* ---- records ---- */

/* How many bytes may be received without taking more than the record SSL waits for:
 * what other code selects on must stay in the socket. */
static size_t wanted(const connection *c, size_t room) {
  bool ahead = c->readahead < 0 ? um_on_ring() : c->readahead;
  if (ahead) return room;
  size_t want = c->record_left ? c->record_left : HEADER - c->header_length;
  return want < room ? want : room;
}

static void follow_records(connection *c, const uint8_t *data, size_t length) {
  while (length) {
    if (c->record_left) {
      unsigned part = length < c->record_left ? (unsigned)length : c->record_left;
      c->record_left -= part;
      data += part;
      length -= part;
      continue;
    }
    c->header[c->header_length++] = *data++;
    length--;
    if (c->header_length < HEADER) continue;
    c->header_length = 0;
    c->record_left = (unsigned)c->header[3] << 8 | c->header[4];
  }
}

static void feed(connection *c, const void *data, size_t length) {
  if (BIO_uring_feed(c->bio, data, length) < 0) {
    feed_end(c, -ENOMEM); /* the bytes are lost, so is the connection */
    return;
  }
  follow_records(c, data, length);
}

/* ---- moving bytes, without waiting ---- */

static ssize_t try_receive(connection *c, int fd, void *buffer, size_t length) {
  ssize_t count;
  do count = c->not_a_socket ? read(fd, buffer, length) : recv(fd, buffer, length, MSG_DONTWAIT);
  while (count < 0 && errno == EINTR);
  if (count >= 0) return count;
  if (errno != ENOTSOCK) return -errno;
  c->not_a_socket = true; /* a pipe: the gem has made it non-blocking */
  return try_receive(c, fd, buffer, length);
}

static ssize_t try_send(connection *c, int fd, const void *data, size_t length) {
  ssize_t count;
  do count = c->not_a_socket ? write(fd, data, length)
                             : send(fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL);
  while (count < 0 && errno == EINTR);
  if (count >= 0) return count;
  if (errno != ENOTSOCK) return -errno;
  c->not_a_socket = true;
  return try_send(c, fd, data, length);
}

/* Of a handshake that the peer reset, the send got the error and the receive finds an end. */
static int why_ended(const connection *c) {
  return c->ssl && SSL_in_init(c->ssl) ? c->send_error : 0;
}

static void received(connection *c, const void *data, ssize_t count) {
  if (count > 0) feed(c, data, (size_t)count);
  else if (count == 0) feed_end(c, why_ended(c));
  else if (count != -EAGAIN) feed_end(c, (int)count);
}

/* Ciphertext that cannot be sent is dropped: the stream has a hole from here on. */
static void send_failed(connection *c, int error) {
  const void *data;
  c->send_error = error;
  for (size_t length; (length = BIO_uring_output(c->bio, &data)) > 0;)
    BIO_uring_sent(c->bio, length);
}

/* True when nothing is left, also after an error. */
static bool try_flush(connection *c) {
  const void *data;
  if (c->flushing) return !BIO_ctrl_wpending(c->bio);
  for (size_t length; (length = BIO_uring_output(c->bio, &data)) > 0;) {
    ssize_t sent = try_send(c, descriptor(c), data, length);
    if (sent == -EAGAIN) return false;
    if (sent < 0) send_failed(c, (int)sent);
    else BIO_uring_sent(c->bio, (size_t)sent);
  }
  return true;
}

/* True when bytes, or the end of them, came. */
static bool try_fill(connection *c) {
  uint8_t buffer[RECEIVE_SMALL + HEADER];
  if (c->ended) return true;
  if (c->filling) return false;
  ssize_t count = try_receive(c, descriptor(c), buffer, wanted(c, sizeof buffer));
  received(c, buffer, count);
  return count != -EAGAIN;
}

/* Ruby does not know of a fiber that waits in a ring, and closing does not end what the
 * kernel has been given: so IO#close of a connection that ever waited there lets go first. */
static void watch_io(connection *c) {
  if (c->watched || OBJ_FROZEN(c->io)) return;
  rb_ivar_set(c->io, id_connection, c->self);
  rb_extend_object(c->io, watched_module);
  c->watched = true;
}

/* ---- filling ---- */

typedef struct transfer {
  connection *c;
  um_time deadline;
  void *buffer;
} transfer;

/* On a ring the receive itself waits; the buffer is heap, because the fiber's stack
 * is scanned by the garbage collector. */
static void ring_receive(transfer *t) {
  connection *c = t->c;
  size_t room = c->bulk ? RECEIVE_LARGE : RECEIVE_SMALL, length = wanted(c, room);
  t->buffer = xrealloc(t->buffer, length);
  ssize_t count = um_recv(descriptor(c), t->buffer, length, 0, ring_deadline(c, t->deadline));
  if (count >= 0 || (count != -EINTR && count != -ETIMEDOUT && count != -ECANCELED))
    received(c, t->buffer, count);
  c->bulk = count == (ssize_t)length && length >= RECEIVE_SMALL;
  um_after_wait((int)(count < 0 ? count : 0));
  if (count == -ETIMEDOUT) timed_out();
}

/* Unsent output (an answer to a KeyUpdate, the rest of an interrupted write) leaves
 * while we wait, but is not waited for. */
static VALUE fill_once(VALUE argument) {
  transfer *t = (transfer *)argument;
  connection *c = t->c;
  for (;;) {
    bool output = !try_flush(c) && !c->flushing;
    if (um_on_ring() && !output && !c->not_a_socket) {
      ring_receive(t);
      return Qnil;
    }
    unsigned events = RUBY_IO_READABLE | (output ? RUBY_IO_WRITABLE : 0);
    uint8_t buffer[RECEIVE_SMALL + HEADER];
    ssize_t count = try_receive(c, descriptor(c), buffer, wanted(c, sizeof buffer));
    received(c, buffer, count);
    if (count != -EAGAIN) return Qnil;
    wait_for(c, events, t->deadline);
  }
}

static VALUE fill_done(VALUE argument) {
  transfer *t = (transfer *)argument;
  xfree(t->buffer);
  t->c->filling = false;
  t->c->filler = NULL;
  um_turn_wake_all(&t->c->fills);
  return Qnil;
}

/* Waits for ciphertext; on return SSL is worth another try. */
static void fill(connection *c, um_time deadline) {
  if (c->ended) return;
  if (c->closing) closed_meanwhile(c);
  if (c->filling) {
    if (!um_turn_wait(&c->fills, deadline)) timed_out();
    return;
  }
  transfer t = {.c = c, .deadline = deadline};
  if (um_on_ring()) watch_io(c);
  c->filling = true;
  c->filler = um_here();
  um_ensure(fill_once, (VALUE)&t, fill_done, (VALUE)&t);
}

/* ---- flushing ---- */

/* A short send on a ring means the deadline or an exception struck in between. */
static void wait_and_send(transfer *t, const void *data, size_t length) {
  connection *c = t->c;
  if (!um_on_ring() || c->not_a_socket) {
    wait_for(c, RUBY_IO_WRITABLE, t->deadline);
    return;
  }
  ssize_t sent = um_send(descriptor(c), data, length, 0, ring_deadline(c, t->deadline));
  if (sent > 0) BIO_uring_sent(c->bio, (size_t)sent);
  else if (sent < 0 && sent != -EINTR && sent != -ETIMEDOUT && sent != -ECANCELED)
    send_failed(c, (int)sent);
  bool late = sent == -ETIMEDOUT || (sent >= 0 && (size_t)sent < length);
  um_after_wait(late ? -ETIMEDOUT : (int)(sent < 0 ? sent : 0));
  if (sent == -ETIMEDOUT) timed_out();
}

static VALUE flush_all(VALUE argument) {
  transfer *t = (transfer *)argument;
  connection *c = t->c;
  const void *data;
  for (size_t length; (length = BIO_uring_output(c->bio, &data)) > 0;) {
    ssize_t sent = try_send(c, descriptor(c), data, length);
    if (sent == -EAGAIN) wait_and_send(t, data, length);
    else if (sent < 0) send_failed(c, (int)sent);
    else BIO_uring_sent(c->bio, (size_t)sent);
  }
  return Qnil;
}

static VALUE flush_done(VALUE argument) {
  transfer *t = (transfer *)argument;
  t->c->flushing = false;
  t->c->flusher = NULL;
  um_turn_wake_all(&t->c->flushes);
  return Qnil;
}

/* Waits until the kernel has all that was encrypted. */
static void flush(connection *c, um_time deadline) {
  while (BIO_ctrl_wpending(c->bio)) {
    if (c->flushing) {
      if (!um_turn_wait(&c->flushes, deadline)) timed_out();
      continue;
    }
    transfer t = {.c = c, .deadline = deadline};
    if (c->closing) closed_meanwhile(c);
    if (um_on_ring()) watch_io(c);
    c->flushing = true;
    c->flusher = um_here();
    um_ensure(flush_all, (VALUE)&t, flush_done, (VALUE)&t);
  }
  if (c->send_error) rb_syserr_fail(-c->send_error, NULL);
}

/* ---- entering OpenSSL ---- */

/* A callback in Ruby (verify, servername, session) may let another fiber or thread
 * run, which then finds the SSL busy. */
static void enter_ssl(connection *c) {
  if (c->inside)
    rb_raise(rb_path2class("OpenSSL::SSL::SSLError"),
             "another fiber or thread is inside a callback of this TLS connection");
  if (ERR_peek_error()) ERR_clear_error();
  c->inside = true;
}

static void leave_ssl(connection *c, VALUE socket) {
  c->inside = false;
  if (!gem_3_3) return;
  VALUE state = rb_attr_get(socket, id_callback_state);
  if (NIL_P(state)) return;
  rb_ivar_set(socket, id_callback_state, Qnil);
  ERR_clear_error();
  rb_jump_tag(NUM2INT(state));
}

static int ssl_read(connection *c, VALUE socket, void *buffer, int length, int *error) {
  enter_ssl(c);
  int count = SSL_read(c->ssl, buffer, length);
  *error = count > 0 ? SSL_ERROR_NONE : SSL_get_error(c->ssl, count);
  leave_ssl(c, socket);
  return count;
}

static int ssl_write(connection *c, VALUE socket, const void *data, size_t length, int *error) {
  enter_ssl(c);
  int count = SSL_write(c->ssl, data, length > INT_MAX ? INT_MAX : (int)length);
  *error = count > 0 ? SSL_ERROR_NONE : SSL_get_error(c->ssl, count);
  leave_ssl(c, socket);
  return count;
}

static VALUE no_exception(void) {
  VALUE options = rb_hash_new();
  rb_hash_aset(options, ID2SYM(id_exception), Qfalse);
  return options;
}

/* After an error that is not about waiting: the gem's own method finds the same one
 * (libssl repeats it, and its error queue was left alone), and raises as it does. */
static VALUE stock_failure(VALUE socket, ID method, VALUE argument, bool exception) {
  VALUE arguments[] = {argument, no_exception()};
  if (exception) return rb_funcallv(socket, method, 1, arguments);
  return rb_funcallv_kw(socket, method, 2, arguments, RB_PASS_KEYWORDS);
}

static VALUE would_block(const char *name, VALUE symbol, bool exception) {
  if (!exception) return symbol;
  VALUE error = rb_path2class(name);
  rb_raise(error, symbol == sym_wait_readable ? "read would block" : "write would block");
}

static VALUE would_block_reading(bool exception) {
  return would_block("OpenSSL::SSL::SSLErrorWaitReadable", sym_wait_readable, exception);
}

static VALUE would_block_writing(bool exception) {
  return would_block("OpenSSL::SSL::SSLErrorWaitWritable", sym_wait_writable, exception);
}

static void must_be_started(const connection *c) {
  if (!c->started)
    rb_raise(rb_path2class("OpenSSL::SSL::SSLError"), "SSL session is not started yet");
}

/* ---- reading ---- */

/* At most a record: what one SSL_read gives. The string is as long as what came. */
static VALUE store(VALUE string, const char *data, int count) {
  if (NIL_P(string)) return rb_str_new(data, count);
  rb_str_modify(string);
  rb_str_resize(string, count);
  memcpy(RSTRING_PTR(string), data, (size_t)count);
  return string;
}

static VALUE read_ended(VALUE socket, int error, VALUE length, VALUE string, bool exception) {
  if (error != SSL_ERROR_ZERO_RETURN) return stock_failure(socket, id_stock_read, length, exception);
  if (exception) rb_eof_error();
  return Qnil;
}

static VALUE read_record(VALUE socket, VALUE length, VALUE string, bool wait, bool exception) {
  connection *c = get(socket);
  c->ssl = ssl_of(socket);
  must_be_started(c);
  int most = NUM2INT(length);
  if (!NIL_P(string)) {
    StringValue(string);
    rb_str_modify(string);
    if (!gem_3_3) rb_str_set_len(string, 0);
  }
  if (most < 0) rb_raise(rb_eArgError, "negative string size (or size too big)");
  if (most == 0) return NIL_P(string) ? rb_str_new(NULL, 0) : rb_str_resize(string, 0);
  descriptor(c);
  um_time deadline = wait ? call_deadline(c) : 0;
  for (;;) {
    char buffer[RECORD];
    int error, count = ssl_read(c, socket, buffer, most < RECORD ? most : RECORD, &error);
    if (count > 0) {
      if (BIO_ctrl_wpending(c->bio)) try_flush(c);
      return store(string, buffer, count);
    }
    if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) {
      try_flush(c); /* an alert */
      return read_ended(socket, error, length, string, exception);
    }
    if (wait) {
      fill(c, deadline);
      continue;
    }
    try_flush(c);
    if (!try_fill(c)) return would_block_reading(exception);
  }
}

/* sysread(length, buffer = nil): what one record brings, at most length bytes. */
static VALUE tls_sysread(int argc, VALUE *argv, VALUE self) {
  VALUE length, string;
  if (!find(self)) return rb_call_super(argc, argv);
  rb_scan_args(argc, argv, "11", &length, &string);
  return read_record(self, length, string, true, true);
}

static bool exception_option(VALUE options) {
  return NIL_P(options) || rb_hash_lookup2(options, ID2SYM(id_exception), Qtrue) != Qfalse;
}

static VALUE tls_sysread_nonblock(int argc, VALUE *argv, VALUE self) {
  VALUE length, string, options;
  if (!find(self)) return rb_call_super_kw(argc, argv, RB_PASS_CALLED_KEYWORDS);
  rb_scan_args(argc, argv, "11:", &length, &string, &options);
  return read_record(self, length, string, false, exception_option(options));
}

/* ---- writing ---- */

/* False when this fiber has it already (do_write holds it around syswrite). */
static bool lock_writer(connection *c, um_time deadline) {
  if (c->writer == rb_fiber_current()) return false;
  while (!NIL_P(c->writer)) {
    if (!um_turn_wait(&c->writers, deadline)) timed_out();
  }
  c->writer = rb_fiber_current();
  return true;
}

static VALUE unlock_writer(VALUE argument) {
  connection *c = (connection *)argument;
  c->writer = Qnil;
  um_turn_wake_one(&c->writers);
  return Qnil;
}

typedef struct write_call {
  connection *c;
  VALUE socket, string;
  um_time deadline;
  bool wait, exception;
} write_call;

static void begin_write(write_call *call) {
  connection *c = call->c;
  size_t length = (size_t)RSTRING_LEN(call->string);
  c->consumed = c->unreported;
  c->unreported = 0;
  if (c->consumed > length)
    rb_raise(rb_path2class("OpenSSL::SSL::SSLError"),
             "SSL_write: bad length: a write that would have blocked must be repeated first");
  if (c->send_error) rb_syserr_fail(-c->send_error, NULL);
}

/* Encrypts all of it, and sends whenever a good deal has come together. */
static VALUE write_waiting(VALUE argument) {
  write_call *call = (write_call *)argument;
  connection *c = call->c;
  begin_write(call);
  size_t length = (size_t)RSTRING_LEN(call->string);
  while (c->consumed < length) {
    if (BIO_ctrl_wpending(c->bio) >= HIGH_WATER) flush(c, call->deadline);
    int error, count = ssl_write(c, call->socket, RSTRING_PTR(call->string) + c->consumed,
                                 length - c->consumed, &error);
    if (count > 0) {
      c->consumed += (size_t)count;
    } else if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) {
      flush(c, call->deadline);
      fill(c, call->deadline);
    } else {
      try_flush(c);
      return stock_failure(call->socket, id_stock_write, call->string, true);
    }
  }
  flush(c, call->deadline);
  return SIZET2NUM(length);
}

/* One record. Like the stock method it answers :wait_writable until the kernel has
 * all of it, and must then be called again with the same bytes. */
static VALUE write_trying(VALUE argument) {
  write_call *call = (write_call *)argument;
  connection *c = call->c;
  if (!try_flush(c)) return would_block_writing(call->exception);
  begin_write(call);
  size_t length = (size_t)RSTRING_LEN(call->string);
  while (c->consumed == 0 && length) {
    int error, count = ssl_write(c, call->socket, RSTRING_PTR(call->string), length, &error);
    if (count > 0) {
      c->consumed = (size_t)count;
    } else if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) {
      if (!try_flush(c)) return would_block_writing(call->exception);
      if (!try_fill(c)) return would_block_reading(call->exception);
    } else {
      try_flush(c);
      return stock_failure(call->socket, id_stock_write, call->string, call->exception);
    }
  }
  if (try_flush(c)) {
    if (c->send_error) rb_syserr_fail(-c->send_error, NULL);
    return SIZET2NUM(c->consumed);
  }
  c->unreported = c->consumed;
  return would_block_writing(call->exception);
}

static VALUE locked_write(write_call *call) {
  connection *c = call->c;
  must_be_started(c);
  descriptor(c);
  if (!RSTRING_LEN(call->string)) return INT2FIX(0);
  VALUE (*body)(VALUE) = call->wait ? write_waiting : write_trying;
  bool busy = !NIL_P(c->writer) && c->writer != rb_fiber_current();
  if (busy && !call->wait) return would_block_writing(call->exception);
  if (!lock_writer(c, call->deadline)) return body((VALUE)call);
  return um_ensure(body, (VALUE)call, unlock_writer, (VALUE)c);
}

static VALUE write_string(VALUE self, VALUE string, bool wait, bool exception) {
  write_call call = {.c = get(self), .socket = self, .wait = wait, .exception = exception};
  call.c->ssl = ssl_of(self);
  call.string = rb_str_new_frozen(StringValue(string));
  call.deadline = wait ? call_deadline(call.c) : 0;
  VALUE result = locked_write(&call);
  RB_GC_GUARD(call.string);
  return result;
}

/* syswrite(string): all of it; returns its length. #consumed tells how far an interrupted one came. */
static VALUE tls_syswrite(VALUE self, VALUE string) {
  if (!find(self)) return rb_call_super(1, &string);
  return write_string(self, string, true, true);
}

static VALUE tls_syswrite_nonblock(int argc, VALUE *argv, VALUE self) {
  VALUE string, options;
  if (!find(self)) return rb_call_super_kw(argc, argv, RB_PASS_CALLED_KEYWORDS);
  rb_scan_args(argc, argv, "1:", &string, &options);
  return write_string(self, string, false, exception_option(options));
}

static VALUE tls_writing(VALUE self) {
  connection *c = get(self);
  if (!lock_writer(c, call_deadline(c))) return rb_yield(Qnil);
  c->consumed = 0; /* also if the write fails before it begins */
  return um_ensure(rb_yield, Qnil, unlock_writer, (VALUE)c);
}

/* ---- what lib/um/tls/socket.rb is built from ---- */

static bool installed; /* for all threads and Ractors */

/* installed?: whether new SSLSockets of whomever are ours. */
static VALUE installed_p(VALUE self) { return installed ? Qtrue : Qfalse; }

static VALUE set_installed(VALUE self, VALUE value) {
  installed = RTEST(value);
  return value;
}

static VALUE tls_attach(VALUE self, VALUE readahead, VALUE deadline) {
  SSL *ssl = ssl_of(self);
  if (SSL_get_rbio(ssl)) rb_raise(rb_eArgError, "the TLS connection has been started already");
  double seconds = NIL_P(deadline) ? 0 : NUM2DBL(deadline);
  connection *c;
  VALUE object = TypedData_Make_Struct(connection_class, connection, &connection_type, c);
  c->self = object;
  c->io = rb_attr_get(self, rb_intern("@io"));
  c->writer = Qnil;
  c->readahead = NIL_P(readahead) ? -1 : RTEST(readahead);
  c->deadline = seconds;
  c->bio = BIO_new_uring_memory(descriptor(c));
  if (!c->bio) rb_memerror();
  BIO_up_ref(c->bio);
  SSL_set_bio(ssl, c->bio, c->bio);
  rb_ivar_set(self, id_connection, object);
  return self;
}

static VALUE attached_p(VALUE self) { return truth(find(self)); }

static VALUE started_p(VALUE self) { return truth(get(self)->started); }

typedef struct step_call {
  connection *c;
  VALUE socket;
  ID method;
} step_call;

static VALUE call_step(VALUE argument) {
  step_call *call = (step_call *)argument;
  VALUE options = no_exception();
  return rb_funcallv_kw(call->socket, call->method, 1, &options, RB_PASS_KEYWORDS);
}

static VALUE step_done(VALUE argument) {
  step_call *call = (step_call *)argument;
  call->c->inside = false;
  return Qnil;
}

/* One SSL_connect or SSL_accept, with the gem's own bookkeeping and errors. */
static VALUE tls_step(VALUE self, VALUE method) {
  step_call call = {.c = get(self), .socket = self, .method = SYM2ID(method)};
  call.c->ssl = ssl_of(self);
  call.c->started = true;
  enter_ssl(call.c);
  return rb_ensure(call_step, (VALUE)&call, step_done, (VALUE)&call);
}

static VALUE tls_fill(VALUE self, VALUE deadline) {
  connection *c = get(self);
  fill(c, NUM2LL(deadline));
  return Qnil;
}

static VALUE tls_try_fill(VALUE self) { return truth(try_fill(get(self))); }

static VALUE tls_flush(VALUE self, VALUE deadline) {
  flush(get(self), NUM2LL(deadline));
  return Qnil;
}

static VALUE tls_try_flush(VALUE self) { return truth(try_flush(get(self))); }

/* wait_socket(events, seconds): self, or nil when the time is up. */
static VALUE wait_socket(VALUE argument) {
  VALUE *arguments = (VALUE *)argument;
  connection *c = get(arguments[0]);
  wait_for(c, NUM2UINT(arguments[1]), um_deadline_of(arguments[2]));
  return arguments[0];
}

static VALUE wait_expired(VALUE unused, VALUE error) { return Qnil; }

static VALUE tls_wait_socket(VALUE self, VALUE events, VALUE seconds) {
  VALUE arguments[] = {self, events, seconds};
  return rb_rescue2(wait_socket, (VALUE)arguments, wait_expired, Qnil, um_eTimeout, (VALUE)0);
}

static VALUE tls_deadline(VALUE self) { return LL2NUM(call_deadline(get(self))); }

static VALUE tls_consumed(VALUE self) { return SIZET2NUM(get(self)->consumed); }

/* Bytes received and not yet looked at by OpenSSL. */
static VALUE tls_buffered(VALUE self) { return SIZET2NUM(BIO_ctrl_pending(get(self)->bio)); }

bool um_tls_ahead(VALUE socket) {
  connection *c = find(socket);
  VALUE decrypted = c ? rb_attr_get(socket, rb_intern("@rbuffer")) : Qnil;
  if (!c) return false;
  if (RB_TYPE_P(decrypted, T_STRING) && RSTRING_LEN(decrypted)) return true;
  return SSL_pending(ssl_of(socket)) || BIO_ctrl_pending(c->bio);
}

static VALUE tls_ahead_p(VALUE self) { return truth(um_tls_ahead(self)); }

/* session: as stock; whose Session.new takes an SSLSocket, but none of a class that inherits from it. */
static VALUE tls_session(VALUE self) {
  if (!find(self)) return rb_call_super(0, NULL);
  SSL *ssl = ssl_of(self);
  if (!SSL_get_session(ssl)) return Qnil;
  VALUE session = rb_obj_alloc(rb_path2class("OpenSSL::SSL::Session"));
  if (!RTYPEDDATA_P(session) ||
      strcmp(RTYPEDDATA_TYPE(session)->wrap_struct_name, "OpenSSL/SSL/Session"))
    return rb_call_super(0, NULL);
  DATA_PTR(session) = SSL_get1_session(ssl);
  return session;
}

/* Sends close_notify as far as that goes without waiting, like the stock method. */
static VALUE tls_stop(VALUE self) {
  connection *c = find(self);
  if (!c) return rb_call_super(0, NULL);
  if (!c->started || c->inside) return Qnil;
  ERR_clear_error();
  SSL_shutdown(ssl_of(self));
  ERR_clear_error();
  try_flush(c);
  return Qnil;
}

static VALUE tls_writing_elsewhere_p(VALUE self) {
  connection *c = get(self);
  return truth(!NIL_P(c->writer) && c->writer != rb_fiber_current());
}

/* Lets those go who wait in a ring for the descriptor that is about to be closed, and
 * waits until the kernel is through with it: its number may be reused at once. Those
 * who wait elsewhere are Ruby's own business. */
static void release(connection *c) {
  um_task *here = um_here();
  c->closing = true;
  if (c->filler && c->filler != here) um_interrupt_anywhere(c->filler, closed_error());
  if (c->flusher && c->flusher != here) um_interrupt_anywhere(c->flusher, closed_error());
  while (c->filler && c->filler != here) um_turn_wait(&c->fills, UM_FOREVER);
  while (c->flusher && c->flusher != here) um_turn_wait(&c->flushes, UM_FOREVER);
}

static VALUE tls_release(VALUE self) {
  release(get(self));
  return Qnil;
}

/* close: the same when not the SSLSocket but its IO is closed. */
static VALUE watched_io_close(VALUE io) {
  VALUE object = rb_attr_get(io, id_connection);
  if (!NIL_P(object)) release(rb_check_typeddata(object, &connection_type));
  return rb_call_super(0, NULL);
}

void um_init_connection(VALUE tls) {
  id_connection = rb_intern("um_tls_connection"); /* no @: invisible to Ruby */
  id_callback_state = rb_intern("callback_state");
  id_stock_read = rb_intern("um_stock_sysread_nonblock");
  id_stock_write = rb_intern("um_stock_syswrite_nonblock");
  id_exception = rb_intern("exception");
  sym_wait_readable = ID2SYM(rb_intern("wait_readable"));
  sym_wait_writable = ID2SYM(rb_intern("wait_writable"));
  VALUE version = rb_const_get(rb_path2class("OpenSSL"), rb_intern("VERSION"));
  int major = 0, minor = 0;
  sscanf(StringValueCStr(version), "%d.%d", &major, &minor);
  gem_3_3 = major > 3 || (major == 3 && minor >= 3);
  /* Document-class: UM::TLS::Connection
   * The library's side of a socket; private. */
  connection_class = rb_define_class_under(tls, "Connection", rb_cObject);
  rb_undef_alloc_func(connection_class);
  /* Document-module: UM::TLS::WatchedIO
   * The close of an IO whose connection waits in a ring; private. */
  watched_module = rb_define_module_under(tls, "WatchedIO");
  rb_define_method(watched_module, "close", watched_io_close, 0);
#if 0 /* for RDoc, which looks at one file at a time */
  um_cUM = rb_define_class("UM", rb_cObject);
  tls = rb_define_module_under(um_cUM, "TLS");
#endif
  VALUE methods = rb_define_module_under(tls, "Methods");
  rb_define_method(methods, "sysread", tls_sysread, -1);
  rb_define_method(methods, "syswrite", tls_syswrite, 1);
  rb_define_private_method(methods, "sysread_nonblock", tls_sysread_nonblock, -1);
  rb_define_private_method(methods, "syswrite_nonblock", tls_syswrite_nonblock, -1);
  rb_define_private_method(methods, "stop", tls_stop, 0);
  rb_define_method(methods, "session", tls_session, 0);
  rb_define_singleton_method(tls, "defaults", tls_defaults, 1);
  rb_define_singleton_method(tls, "installed?", installed_p, 0);
  rb_define_private_method(rb_singleton_class(tls), "installed=", set_installed, 1);
  rb_define_private_method(methods, "um_writing", tls_writing, 0);
  rb_define_private_method(methods, "um_attach", tls_attach, 2);
  rb_define_private_method(methods, "um_attached?", attached_p, 0);
  rb_define_private_method(methods, "um_started?", started_p, 0);
  rb_define_private_method(methods, "um_step", tls_step, 1);
  rb_define_private_method(methods, "um_fill", tls_fill, 1);
  rb_define_private_method(methods, "um_try_fill", tls_try_fill, 0);
  rb_define_private_method(methods, "um_flush", tls_flush, 1);
  rb_define_private_method(methods, "um_try_flush", tls_try_flush, 0);
  rb_define_private_method(methods, "um_wait", tls_wait_socket, 2);
  rb_define_private_method(methods, "um_deadline", tls_deadline, 0);
  rb_define_private_method(methods, "um_consumed", tls_consumed, 0);
  rb_define_private_method(methods, "um_buffered", tls_buffered, 0);
  rb_define_private_method(methods, "um_ahead?", tls_ahead_p, 0);
  rb_define_private_method(methods, "um_writing_elsewhere?", tls_writing_elsewhere_p, 0);
  rb_define_private_method(methods, "um_release", tls_release, 0);
}
