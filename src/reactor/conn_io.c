/* A connection's ends in the kernel: one receive armed, one send in flight. */
#include "alloc.h"
#include "conn.h"

#include <poll.h>
#include <sys/socket.h>

/* ---- receiving ---- */

static bool awaited(const um_conn *conn) {
  return (conn->reader || conn->readable) && !conn->closing;
}

static void readable(um_conn *conn) {
  if (conn->reader) um__task_wake(conn->reader, 0);
  else if (conn->readable) conn->readable(conn);
}

void um__conn_rearm(um_conn *conn) {
  if (um__conn_arm(conn) < 0) readable(conn);
}

static void starve(um_conn *conn) {
  um_reactor *r = conn->reactor;
  UM_COUNT(r, enobufs, 1);
  conn->is_starved = true;
  TAILQ_INSERT_TAIL(&r->starved, conn, starved_link);
}

static void receive_failed(um_conn *conn, int error) {
  if (error == -ENOBUFS) starve(conn);
  else if (error == -EAGAIN) conn->poll_receive = true;
  else if (error != -ECANCELED && error != -EINTR) conn->received_end = error;
}

/* The operation is over: forget it, and tell who waits for that. */
static void receive_over(um_conn *conn, um_op *op) {
  conn->receive = NULL;
  um__op_release(op);
  if (conn->closer) um__task_wake(conn->closer, 0);
}

/* Last, because the connection may be taken over by whoever is told. */
static void receive_settled(um_conn *conn) {
  if (conn->received || conn->received_end) readable(conn);
  else if (!conn->receive && awaited(conn)) um__conn_rearm(conn);
}

/* Counted once, when the limit is reached: more may have been under way. */
static void receive_limited(um_conn *conn, um_op *op, const um_completion *completion) {
  size_t limit = um__conn_receive_limit(conn);
  if (conn->received < limit) return;
  if (conn->received - (size_t)completion->result < limit)
    UM_COUNT(conn->reactor, receive_pauses, 1);
  if (completion->more) um__op_cancel(op);
}

static void receive_done(um_op *op, const um_completion *completion) {
  um_conn *conn = op->owner;
  um_reactor *r = conn->reactor;
  if (!completion->more) receive_over(conn, op);
  if (completion->result > 0 && conn->received_end) {
    r->backend->recycle(r, completion->buffer); /* what was before it is lost: a gap */
  } else if (completion->result > 0) {
    UM_COUNT(r, received_bytes, completion->result);
    um__conn_received(conn, completion);
    receive_limited(conn, op, completion);
  } else {
    if (completion->has_buffer) r->backend->recycle(r, completion->buffer);
    if (completion->result == 0) conn->received_end = 1;
    else receive_failed(conn, completion->result);
  }
  receive_settled(conn);
}

static void receive_polled(um_op *op, const um_completion *completion) {
  um_conn *conn = op->owner;
  (void)completion;
  receive_over(conn, op);
  receive_settled(conn);
}

/* Instead of a try of its own, which found nothing. */
static um_op *poll_op(um_conn *conn, bool *wanted, unsigned events,
                      void (*done)(um_op *op, const um_completion *completion)) {
  um_op *op = um__op_new(conn->reactor, UM_OP_POLL, conn->fd);
  if (!op) return NULL;
  *wanted = false;
  op->flags = events;
  op->done = done;
  return op;
}

static um_op *receive_op(um_conn *conn, size_t limit) {
  um_reactor *r = conn->reactor;
  if (conn->poll_receive) return poll_op(conn, &conn->poll_receive, POLLIN, receive_polled);
  bool multi = r->capabilities & UM_CAN_RECV_MULTI;
  um_op *op = um__op_new(r, multi ? UM_OP_RECV_MULTI : UM_OP_RECV, conn->fd);
  if (!op) return NULL;
  if (r->capabilities & UM_CAN_RECV_CAP)
    op->length = (uint32_t)(limit - conn->received);
  op->done = receive_done;
  return op;
}

int um__conn_arm(um_conn *conn) {
  if (conn->receive || conn->received_end || conn->is_starved) return 0;
  size_t limit = um__conn_receive_limit(conn);
  if (conn->received >= limit) return 0;
  um_op *op = receive_op(conn, limit);
  if (!op) return -ENOMEM;
  op->owner = conn;
  conn->receive = op;
  int result = um__op_submit(op);
  if (result < 0) conn->receive = NULL;
  return result;
}

int um__conn_wait_readable(um_conn *conn, um_time deadline) {
  while (!conn->received && !conn->received_end) {
    if (conn->closing) return UM_ECLOSED;
    int result = um__conn_arm(conn);
    if (result < 0) return result;
    um_task *task = conn->reader = um__task();
    um__waits_for(conn->reactor, "recv", conn->fd);
    result = um__park(conn->reactor, deadline);
    conn->reader = NULL;
    if (result == 0) continue;
    if (!conn->received && !conn->received_end) return result;
    if (result == -ECANCELED) task->cancel_pending = 1;
  }
  return 0;
}

/* ---- sending ---- */

static void send_failed(um_conn *conn, int error) {
  if (error == -EAGAIN) conn->poll_send = true;
  if (error == -EAGAIN || error == -EINTR || error == -ECANCELED) return;
  conn->output_error = error;
  um__conn_discard_output(conn);
}

/* A broken connection ends its input by itself, after what the peer had sent before. When
 * sending failed for another reason (no memory), the peer waits for us, and who reads
 * would wait for the peer. */
static void end_input(um_conn *conn) {
  int error = conn->output_error;
  if (!error || error == -EPIPE || error == -ECONNRESET || error == -ETIMEDOUT) return;
  if (conn->received_end) return;
  conn->received_end = error;
  if (conn->receive) um__op_cancel(conn->receive);
  readable(conn);
}

static void sent(um_conn *conn, int result) {
  um_reactor *r = conn->reactor;
  conn->send = NULL;
  if (result > 0) {
    if (conn->output_first->start + (uint32_t)result < conn->sending_end)
      UM_COUNT(r, short_sends, 1);
    UM_COUNT(r, sent_bytes, result);
    um__conn_output_sent(conn, (size_t)result);
  } else {
    send_failed(conn, result ? result : -EPIPE);
  }
  if (conn->output) um__conn_dirty(conn);
  um__waitq_wake_all(&conn->drained);
  if (conn->closer) um__task_wake(conn->closer, 0);
  end_input(conn);
}

static void send_done(um_op *op, const um_completion *completion) {
  um_conn *conn = op->owner;
  um__op_release(op);
  sent(conn, completion->result);
}

static void send_polled(um_op *op, const um_completion *completion) {
  um_conn *conn = op->owner;
  um__op_release(op);
  sent(conn, completion->result < 0 ? completion->result : -EINTR);
}

/* SEND_ZC: the kernel reads the slab until the notification, which may come long
 * after the result: the next send does not wait for it. */
static void zerocopy_done(um_op *op, const um_completion *completion) {
  um_conn *conn = op->owner;
  um_slab *slab = op->address2;
  if (!completion->notification) sent(conn, completion->result);
  if (completion->more) return;
  um__slab_give(slab);
  um__op_release(op);
}

static um_op *send_op(um_conn *conn) {
  um_reactor *r = conn->reactor;
  um_slab *slab = conn->output_first;
  uint32_t length = slab->end - slab->start;
  bool zerocopy = r->config.zerocopy_threshold && length >= r->config.zerocopy_threshold &&
                  (r->supported >> UM_OP_SEND_ZC & 1);
  um_op *op = um__op_new(r, zerocopy ? UM_OP_SEND_ZC : UM_OP_SEND, conn->fd);
  if (!op) return NULL;
  op->address = slab->data + slab->start;
  op->length = length;
  op->flags = MSG_NOSIGNAL | MSG_WAITALL;
  op->done = send_done;
  conn->sending_end = slab->end;
  if (zerocopy) {
    op->done = zerocopy_done;
    op->buffer_index = slab->registered;
    op->address2 = slab;
    slab->references++;
  }
  return op;
}

static void start_send(um_conn *conn) {
  if (conn->send || !conn->output) return;
  um_op *op = conn->poll_send ? poll_op(conn, &conn->poll_send, POLLOUT, send_polled) : send_op(conn);
  if (!op) {
    sent(conn, -ENOMEM);
    return;
  }
  op->owner = conn;
  conn->send = op;
  um_slab *read_by_kernel = op->done == zerocopy_done ? op->address2 : NULL;
  int result = um__op_submit(op);
  if (result == 0) return;
  if (read_by_kernel) um__slab_give(read_by_kernel);
  sent(conn, result);
}

void um__conns_flush(um_reactor *r) {
  for (um_conn *conn; (conn = TAILQ_FIRST(&r->dirty));) {
    TAILQ_REMOVE(&r->dirty, conn, dirty_link);
    conn->is_dirty = false;
    start_send(conn);
  }
}

/* Nothing is left of the output's first `end` bytes; after an error nothing at all. */
static bool has_left(const um_conn *conn, uint64_t end) {
  return conn->queued - conn->output >= end || conn->output_error;
}

static int wait_drained(um_conn *conn, size_t limit, um_time deadline, bool closer) {
  uint64_t end = conn->queued < limit ? 0 : conn->queued - limit;
  while (!has_left(conn, end)) {
    if (conn->closing && !closer) return UM_ECLOSED;
    um__waits_for(conn->reactor, "send", conn->fd);
    int result = um__waitq_wait(&conn->drained, deadline);
    if (result < 0 && !has_left(conn, end)) return result;
    if (result == -ECANCELED) um__task()->cancel_pending = 1;
  }
  return conn->output_error;
}

int um__conn_wait_output(um_conn *conn, size_t limit, um_time deadline) {
  if (limit) UM_COUNT(conn->reactor, send_waits, 1);
  return wait_drained(conn, limit, deadline, false);
}

/* ---- ending ---- */

static void wait_for_kernel(um_conn *conn) {
  conn->closer = um__task();
  if (conn->closer) um__park_shielded(conn->reactor);
  else um__reactor_pump(conn->reactor);
  conn->closer = NULL;
}

void um__conn_disarm(um_conn *conn) {
  bool closing = conn->closing;
  conn->closing = true; /* nothing re-arms meanwhile */
  if (conn->receive) um__op_cancel(conn->receive);
  while (conn->receive) wait_for_kernel(conn);
  conn->closing = closing;
  if (!conn->is_starved) return;
  conn->is_starved = false;
  TAILQ_REMOVE(&conn->reactor->starved, conn, starved_link);
}

void um__conn_close_soon(um_conn *conn) {
  conn->closing = true;
  conn->readable = NULL;
  if (conn->reader) um__task_wake(conn->reader, 0);
  um__waitq_wake_all(&conn->drained);
}

static void stop_sending(um_conn *conn) {
  if (conn->is_dirty) TAILQ_REMOVE(&conn->reactor->dirty, conn, dirty_link);
  conn->is_dirty = true; /* no send starts any more */
  while (conn->send) wait_for_kernel(conn);
  conn->is_dirty = false;
}

int um__conn_detach(um_conn *conn) {
  if (!conn->reactor) return 0;
  um__conn_disarm(conn);
  if (conn->send) um__op_cancel(conn->send); /* the peer may never take the rest */
  stop_sending(conn);
  if (!um__conn_copy_out(conn)) {
    if (conn->output) um__conn_dirty(conn);
    return -ENOMEM;
  }
  um__conn_leave(conn);
  return 0;
}

static int flush_output(um_conn *conn, um_time deadline) {
  if (um__task()) return wait_drained(conn, 0, deadline, true);
  while (conn->output && !conn->output_error) {
    if (um_now() >= deadline) return -ETIMEDOUT;
    um__reactor_pump(conn->reactor);
  }
  return conn->output_error;
}

int um__conn_close(um_conn *conn, um_time deadline) {
  if (!conn->reactor) {
    um__conn_discard_received(conn);
    um__conn_discard_output(conn);
    return 0;
  }
  conn->readable = NULL;
  int result = flush_output(conn, deadline);
  conn->closing = true;
  if (conn->send) um__op_cancel(conn->send);
  stop_sending(conn);
  um__conn_disarm(conn);
  um__conn_discard_output(conn);
  um__conn_discard_received(conn);
  return result;
}

void um__conns_free(um_reactor *r) {
  while (r->segment_free) {
    um_segment *segment = r->segment_free;
    r->segment_free = segment->next;
    um__free(segment);
  }
}
