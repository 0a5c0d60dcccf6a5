/* The machine's operations: system calls that suspend the fiber. */
#include "machine.h"

#include <ruby/io/buffer.h>

#include <string.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

int um_fd_of(VALUE io) {
  if (FIXNUM_P(io)) return FIX2INT(io);
#ifdef HAVE_RB_IO_DESCRIPTOR
  return rb_io_descriptor(rb_io_get_io(io));
#else
  rb_io_t *file;
  GetOpenFile(rb_io_get_io(io), file);
  return file->fd;
#endif
}

/* ---- buffers: strings and IO::Buffer ---- */

typedef struct transfer {
  ssize_t (*run)(struct transfer *t);
  VALUE object;
  char *base;
  size_t length;
  int64_t offset;
  int fd, flags;
  um_time deadline;
  ssize_t result;
  bool string;
} transfer;

static bool is_io_buffer(VALUE object) { return RTEST(rb_obj_is_kind_of(object, rb_cIOBuffer)); }

/* So that closing the descriptor finds the fiber; see machine_closing(). */
static void waits_on(int fd) { ((task *)um_here())->fd = fd + 1; }

static void waited(void) { ((task *)um_here())->fd = 0; }

/* Locked against changes by others while the kernel may look at it. */
static VALUE run_transfer(VALUE argument) {
  transfer *t = (transfer *)argument;
  waits_on(t->fd);
  t->result = t->run(t);
  waited();
  return Qnil;
}

static VALUE unlock_string(VALUE string) { return rb_str_unlocktmp(string); }

static ssize_t locked(transfer *t) {
  if (t->string) {
    rb_str_locktmp(t->object);
    um_ensure(run_transfer, (VALUE)t, unlock_string, t->object);
  } else if (RTEST(rb_funcall(t->object, rb_intern("locked?"), 0))) {
    run_transfer((VALUE)t); /* by the caller, as Ruby's io_read does */
  } else {
    rb_io_buffer_lock(t->object);
    um_ensure(run_transfer, (VALUE)t, rb_io_buffer_unlock, t->object);
  }
  RB_GC_GUARD(t->object);
  return t->result;
}

/* NUM2SIZET() takes -1 for a very large number. */
static size_t length_of(VALUE number) {
  long length = NUM2LONG(number);
  if (length < 0) rb_raise(rb_eArgError, "negative length %ld given", length);
  return (size_t)length;
}

/* What is read goes to `at` of the buffer: 0 the start, negative the end of a string. */
static size_t make_room(transfer *t, VALUE object, size_t length, long at) {
  t->object = object;
  t->string = !is_io_buffer(object);
  t->length = length;
  if (!t->string) {
    void *base;
    size_t size;
    rb_io_buffer_get_bytes_for_writing(object, &base, &size);
    size_t start = at < 0 ? 0 : (size_t)at;
    if (start > size) rb_raise(rb_eArgError, "the offset lies behind the buffer's end");
    if (length > size - start) t->length = size - start;
    t->base = (char *)base + start;
    return start;
  }
  StringValue(t->object);
  long start = at < 0 ? RSTRING_LEN(t->object) : at;
  if (start > RSTRING_LEN(t->object)) rb_raise(rb_eArgError, "the offset lies behind the string's end");
  long more = start + (long)length - RSTRING_LEN(t->object);
  if (more > 0) rb_str_modify_expand(t->object, more);
  else rb_str_modify(t->object);
  t->base = RSTRING_PTR(t->object) + start;
  return (size_t)start;
}

static void take_bytes(transfer *t, VALUE object, VALUE length) {
  t->object = object;
  t->string = !is_io_buffer(object);
  size_t size;
  if (t->string) {
    StringValue(t->object);
    t->object = rb_str_new_frozen(t->object);
    t->base = RSTRING_PTR(t->object);
    size = (size_t)RSTRING_LEN(t->object);
  } else {
    const void *base;
    rb_io_buffer_get_bytes_for_reading(object, &base, &size);
    t->base = (char *)(uintptr_t)base;
  }
  t->length = NIL_P(length) || NUM2LL(length) < 0 ? size : NUM2SIZET(length);
  if (t->length > size) rb_raise(rb_eArgError, "the length exceeds the buffer's");
}

static ssize_t finish_reading(transfer *t, size_t start) {
  if (t->result >= 0 && t->string) rb_str_set_len(t->object, (long)start + t->result);
  return um_finish(t->result);
}

static ssize_t run_read(transfer *t) { return um_read(t->fd, t->base, t->length, t->offset, t->deadline); }
static ssize_t run_write(transfer *t) { return um_write(t->fd, t->base, t->length, t->offset, t->deadline); }
static ssize_t run_recv(transfer *t) { return um_recv(t->fd, t->base, t->length, t->flags, t->deadline); }
static ssize_t run_send(transfer *t) { return um_send(t->fd, t->base, t->length, t->flags, t->deadline); }

static transfer prepare(VALUE self, VALUE io, ssize_t (*run)(transfer *t)) {
  um_enter(um_machine_get(self));
  return (transfer){.run = run, .fd = um_fd_of(io), .offset = -1, .deadline = um_deadline(UM_FOREVER)};
}

/* read(fd, buffer, maxlen = 65536, buffer_offset = 0, file_offset = nil): how many bytes came, 0 at
 * the end. A string is cut or extended to what came; a negative offset appends to it. */
static VALUE machine_read(int argc, VALUE *argv, VALUE self) {
  VALUE io, buffer, most, at, offset;
  rb_scan_args(argc, argv, "23", &io, &buffer, &most, &at, &offset);
  transfer t = prepare(self, io, run_read);
  if (!NIL_P(offset)) t.offset = NUM2LL(offset);
  size_t start = make_room(&t, buffer, NIL_P(most) ? 65536 : length_of(most), NIL_P(at) ? 0 : NUM2LONG(at));
  locked(&t);
  return SSIZET2NUM(finish_reading(&t, start));
}

/* write(fd, buffer, length = nil, file_offset = nil): how many bytes were written. */
static VALUE machine_write(int argc, VALUE *argv, VALUE self) {
  VALUE io, buffer, length, offset;
  rb_scan_args(argc, argv, "22", &io, &buffer, &length, &offset);
  transfer t = prepare(self, io, run_write);
  if (!NIL_P(offset)) t.offset = NUM2LL(offset);
  take_bytes(&t, buffer, length);
  run_transfer((VALUE)&t);
  RB_GC_GUARD(t.object);
  return SSIZET2NUM(um_finish(t.result));
}

/* recv(fd, buffer, maxlen, flags): as #read, from a socket. */
static VALUE machine_recv(VALUE self, VALUE io, VALUE buffer, VALUE most, VALUE flags) {
  transfer t = prepare(self, io, run_recv);
  t.flags = NIL_P(flags) ? 0 : NUM2INT(flags);
  size_t start = make_room(&t, buffer, length_of(most), 0);
  locked(&t);
  return SSIZET2NUM(finish_reading(&t, start));
}

/* send(fd, buffer, length, flags): all of it, or an exception. */
static VALUE machine_send(VALUE self, VALUE io, VALUE buffer, VALUE length, VALUE flags) {
  transfer t = prepare(self, io, run_send);
  t.flags = NIL_P(flags) ? 0 : NUM2INT(flags);
  take_bytes(&t, buffer, length);
  run_transfer((VALUE)&t);
  RB_GC_GUARD(t.object);
  return SSIZET2NUM(um_finish(t.result));
}

/* sendv(fd, *buffers): in one operation where possible; how many bytes were sent. */
static VALUE machine_sendv(int argc, VALUE *argv, VALUE self) {
  rb_check_arity(argc, 1, UNLIMITED_ARGUMENTS);
  transfer t = prepare(self, argv[0], NULL);
  VALUE holder, keep = rb_ary_new_capa(argc);
  struct iovec *vector = ALLOCV_N(struct iovec, holder, argc);
  for (int i = 1; i < argc; i++) {
    transfer part = {0};
    take_bytes(&part, argv[i], Qnil);
    rb_ary_push(keep, part.object);
    vector[i - 1] = (struct iovec){part.base, part.length};
  }
  ssize_t result = um_sendv(t.fd, vector, argc - 1, t.deadline);
  RB_GC_GUARD(keep);
  ALLOCV_END(holder);
  return SSIZET2NUM(um_finish(result));
}

/* ---- descriptors ---- */

/* open(path, flags): the new descriptor. */
static VALUE machine_open(VALUE self, VALUE path, VALUE flags) {
  um_enter(um_machine_get(self));
  const char *name = StringValueCStr(path);
  int result = um_openat(AT_FDCWD, name, NUM2INT(flags) | O_CLOEXEC, 0666, um_deadline(UM_FOREVER));
  RB_GC_GUARD(path);
  return INT2NUM((int)um_finish(result));
}

/* close(fd) */
static VALUE machine_close(VALUE self, VALUE io) {
  um_enter(um_machine_get(self));
  return INT2NUM((int)um_finish(um_close(um_fd_of(io))));
}

static bool end_wait(task *t, int fd) {
  if (!t->is_parked || t->fd != fd + 1) return false;
  um_interrupt(t, rb_exc_new_cstr(rb_eIOError, "stream closed in another thread"));
  return true;
}

/* closing(fd): fibers that wait on it raise IOError, as threads do when an IO is closed. */
static VALUE machine_closing(VALUE self, VALUE io) {
  machine *m = um_machine_get(self);
  um_enter(m);
  int fd = um_fd_of(io);
  bool any = end_wait(m->visitor, fd);
  for (task *t = m->tasks; t; t = t->next) any |= end_wait(t, fd);
  if (any) um_after_wait(um_fiber_yield()); /* they take back what the kernel has first */
  return self;
}

/* shutdown(fd, how): how as in shutdown(2), Socket::SHUT_WR and so on. */
static VALUE machine_shutdown(VALUE self, VALUE io, VALUE how) {
  um_enter(um_machine_get(self));
  return INT2NUM((int)um_finish(um_shutdown(um_fd_of(io), NUM2INT(how), um_deadline(UM_FOREVER))));
}

/* poll(fd, events): waits until one of the events of poll(2) is there; which are. */
static VALUE machine_poll(VALUE self, VALUE io, VALUE events) {
  um_enter(um_machine_get(self));
  return INT2NUM((int)um_finish(um_poll(um_fd_of(io), NUM2UINT(events), um_deadline(UM_FOREVER))));
}

/* poll_for(fd, events, seconds): the events, or nil when the time is up. */
static VALUE machine_poll_for(VALUE self, VALUE io, VALUE events, VALUE seconds) {
  um_enter(um_machine_get(self));
  int fd = um_fd_of(io);
  unsigned wanted = NUM2UINT(events);
  um_time deadline = um_deadline(um_deadline_of(seconds));
  waits_on(fd);
  int result = um_poll(fd, wanted, deadline);
  waited();
  um_after_wait(result);
  if (result == -ETIMEDOUT) return Qnil;
  return INT2NUM((int)um_finish(result));
}

/* accept(fd): the descriptor of the next connection. */
static VALUE machine_accept(VALUE self, VALUE io) {
  um_enter(um_machine_get(self));
  return INT2NUM((int)um_finish(um_accept(um_fd_of(io), NULL, NULL, SOCK_CLOEXEC, um_deadline(UM_FOREVER))));
}

static VALUE accept_loop(VALUE argument) {
  um_acceptor *acceptor = (um_acceptor *)argument;
  for (;;) rb_yield(INT2NUM((int)um_finish(um_acceptor_next(acceptor, um_deadline(UM_FOREVER)))));
  return Qnil;
}

static VALUE accept_end(VALUE argument) {
  um_acceptor_destroy((um_acceptor *)argument);
  return Qnil;
}

/* accept_each(fd) { |fd| }: one operation in the kernel for all of them. */
static VALUE machine_accept_each(VALUE self, VALUE io) {
  um_enter(um_machine_get(self));
  um_acceptor *acceptor;
  um_finish(um_acceptor_create(&acceptor, um_fd_of(io)));
  return rb_ensure(accept_loop, (VALUE)acceptor, accept_end, (VALUE)acceptor);
}

/* connect_to(fd, sockaddr): to an address that is packed as Socket.sockaddr_in packs it. */
static VALUE machine_connect_to(VALUE self, VALUE io, VALUE address) {
  um_enter(um_machine_get(self));
  StringValue(address);
  int result = um_connect(um_fd_of(io), (struct sockaddr *)RSTRING_PTR(address),
                          (socklen_t)RSTRING_LEN(address), um_deadline(UM_FOREVER));
  RB_GC_GUARD(address);
  return INT2NUM((int)um_finish(result));
}

/* splice(from, to, length): moves bytes between descriptors, one of them a pipe; how many. */
static VALUE machine_splice(VALUE self, VALUE from, VALUE to, VALUE length) {
  um_enter(um_machine_get(self));
  return SSIZET2NUM(um_finish(um_splice(um_fd_of(from), -1, um_fd_of(to), -1, length_of(length), 0,
                                        um_deadline(UM_FOREVER))));
}

/* waitid(idtype, id, options): as waitid(2); [pid, status, code]. */
static VALUE machine_waitid(VALUE self, VALUE type, VALUE id, VALUE options) {
  um_enter(um_machine_get(self));
  siginfo_t info;
  memset(&info, 0, sizeof info);
  um_finish(um_waitid((idtype_t)NUM2INT(type), (id_t)NUM2UINT(id), &info, NUM2INT(options),
                      um_deadline(UM_FOREVER)));
  return rb_ary_new_from_args(3, INT2NUM(info.si_pid), INT2NUM(info.si_status), INT2NUM(info.si_code));
}

/* ---- select ---- */

/* An epoll set is one descriptor to poll for any number of them. */
typedef struct selection {
  int epoll, fd_count;
  VALUE lists[3], results[3];
  bool any; /* a file, which is always ready and which epoll refuses */
  um_time deadline;
} selection;

static const uint32_t wanted_events[] = {EPOLLIN, EPOLLOUT, EPOLLPRI};

static void add_descriptor(selection *s, int fd, uint32_t events) {
  struct epoll_event event = {.events = events, .data.fd = fd};
  if (epoll_ctl(s->epoll, EPOLL_CTL_ADD, fd, &event) == 0) {
    s->fd_count++;
  } else if (errno == EPERM) {
    s->any = true;
  } else if (errno == EEXIST) { /* in more than one list: wait for all three */
    event.events = EPOLLIN | EPOLLOUT | EPOLLPRI;
    epoll_ctl(s->epoll, EPOLL_CTL_MOD, fd, &event);
  } else {
    rb_sys_fail("select");
  }
}

static bool is_ready(int fd, uint32_t events) {
  struct pollfd poller = {.fd = fd, .events = events == EPOLLIN ? POLLIN : events == EPOLLOUT ? POLLOUT : POLLPRI};
  return poll(&poller, 1, 0) > 0;
}

/* What Ruby, or a TLS connection, has received already is in no descriptor. */
static bool is_ahead(VALUE io) {
  if (FIXNUM_P(io)) return false;
  rb_io_t *file;
  GetOpenFile(rb_io_get_io(io), file);
  return rb_io_read_pending(file) || um_tls_ahead(io);
}

static long collect(selection *s) {
  long found = 0;
  for (int i = 0; i < 3; i++) {
    s->results[i] = rb_ary_new();
    for (long j = 0; !NIL_P(s->lists[i]) && j < RARRAY_LEN(s->lists[i]); j++) {
      VALUE io = rb_ary_entry(s->lists[i], j);
      bool ready = (i == 0 && is_ahead(io)) || is_ready(um_fd_of(io), wanted_events[i]);
      if (ready) rb_ary_push(s->results[i], io);
    }
    found += RARRAY_LEN(s->results[i]);
  }
  return found;
}

static VALUE run_select(VALUE argument) {
  selection *s = (selection *)argument;
  for (int i = 0; i < 3; i++)
    for (long j = 0; !NIL_P(s->lists[i]) && j < RARRAY_LEN(s->lists[i]); j++)
      add_descriptor(s, um_fd_of(rb_ary_entry(s->lists[i], j)), wanted_events[i]);
  while (!collect(s)) {
    int result = um_poll(s->epoll, POLLIN, um_deadline(s->deadline));
    um_after_wait(result);
    if (result == -ETIMEDOUT) return Qnil;
    um_finish(result);
    struct epoll_event event; /* consumed, or the set stays ready */
    while (epoll_wait(s->epoll, &event, 1, 0) < 0 && errno == EINTR);
  }
  return rb_ary_new_from_values(3, s->results);
}

static VALUE end_select(VALUE argument) {
  close(((selection *)argument)->epoll);
  return Qnil;
}

/* select(reads, writes, excepts, seconds = nil): as IO.select; nil when the time is up. What Ruby or
 * a TLS connection has received counts as readable. */
static VALUE machine_select(int argc, VALUE *argv, VALUE self) {
  selection s = {0};
  VALUE seconds;
  rb_scan_args(argc, argv, "31", &s.lists[0], &s.lists[1], &s.lists[2], &seconds);
  for (int i = 0; i < 3; i++)
    if (!NIL_P(s.lists[i])) Check_Type(s.lists[i], T_ARRAY);
  um_enter(um_machine_get(self));
  s.deadline = um_deadline_of(seconds);
  s.epoll = epoll_create1(EPOLL_CLOEXEC);
  if (s.epoll < 0) rb_sys_fail("epoll_create1");
  return um_ensure(run_select, (VALUE)&s, end_select, (VALUE)&s);
}

void um_init_machine_io(void) {
#if 0 /* for RDoc, which looks at one file at a time */
  um_cUM = rb_define_class("UM", rb_cObject);
#endif
  rb_define_method(um_cUM, "read", machine_read, -1);
  rb_define_method(um_cUM, "write", machine_write, -1);
  rb_define_method(um_cUM, "recv", machine_recv, 4);
  rb_define_method(um_cUM, "send", machine_send, 4);
  rb_define_method(um_cUM, "sendv", machine_sendv, -1);
  rb_define_method(um_cUM, "open", machine_open, 2);
  rb_define_method(um_cUM, "close", machine_close, 1);
  rb_define_method(um_cUM, "closing", machine_closing, 1);
  rb_define_method(um_cUM, "shutdown", machine_shutdown, 2);
  rb_define_method(um_cUM, "poll", machine_poll, 2);
  rb_define_method(um_cUM, "poll_for", machine_poll_for, 3);
  rb_define_method(um_cUM, "accept", machine_accept, 1);
  rb_define_method(um_cUM, "accept_each", machine_accept_each, 1);
  rb_define_method(um_cUM, "connect_to", machine_connect_to, 2);
  rb_define_method(um_cUM, "splice", machine_splice, 3);
  rb_define_method(um_cUM, "waitid", machine_waitid, 3);
  rb_define_method(um_cUM, "select", machine_select, -1);
}
