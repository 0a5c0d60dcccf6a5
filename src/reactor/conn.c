#include "conn.h"

#include "../ablation.h"
#include "alloc.h"

#include <string.h>
#include <sys/socket.h>

#define COPY_LEAST 256u /* room of a copy: bytes that trickle in share it */

void um__conn_init(um_conn *conn, int fd) { *conn = (um_conn){.fd = fd}; }

/* ---- what all of a reactor's connections have queued ---- */

static void count_received(um_conn *conn, size_t more, size_t less) {
  conn->received += more - less;
  if (conn->reactor) UM_COUNT(conn->reactor, receive_queued, more - less);
}

static void count_slab(um_conn *conn, size_t more, size_t less) {
  if (conn->reactor) UM_COUNT(conn->reactor, send_held, more - less);
}

static size_t slabs_held(const um_conn *conn) {
  size_t sum = 0;
  for (const um_slab *slab = conn->output_first; slab; slab = slab->next) sum += slab->capacity;
  return sum;
}

void um__conn_attach(um_conn *conn, um_reactor *r) {
  conn->reactor = r;
  conn->slabs = r->slabs;
  UM_COUNT(r, receive_queued, conn->received);
  count_slab(conn, slabs_held(conn), 0);
  if (conn->output) um__conn_dirty(conn);
}

/* A connection that has nothing may always have a little: it gets on, if slowly, and the
 * sum stays bounded by the number of connections. */
size_t um__conn_receive_limit(const um_conn *conn) {
  um_reactor *r = conn->reactor;
  if (r->metrics.receive_queued < r->config.receive_total) return r->config.receive_limit;
  UM_COUNT(r, squeezed, 1);
  return UM_RECEIVE_LEAST;
}

static bool squeezed(const um_conn *conn) {
  const um_reactor *r = conn->reactor;
  return r && r->metrics.send_held >= r->config.send_total;
}

size_t um__conn_send_limit(const um_conn *conn) {
  um_reactor *r = conn->reactor;
  if (!squeezed(conn)) return r->config.send_limit;
  UM_COUNT(r, squeezed, 1);
  return UM_SEND_LEAST;
}

/* ---- received ---- */

static um_segment *segment_new(um_reactor *r) {
  um_segment *segment = r->segment_free;
  if (!segment) return um__alloc_raw(sizeof *segment);
  r->segment_free = segment->next;
  return segment;
}

static void segment_free(um_conn *conn, um_segment *segment) {
  if (segment->buffer < 0) {
    um__free(segment);
    return;
  }
  um_reactor *r = conn->reactor;
  r->backend->recycle(r, (unsigned)segment->buffer);
  segment->next = r->segment_free;
  r->segment_free = segment;
}

static void append(um_conn *conn, um_segment *segment) {
  segment->next = NULL;
  if (conn->received_last) conn->received_last->next = segment;
  else conn->received_first = segment;
  conn->received_last = segment;
  conn->arrived += segment->length;
  count_received(conn, segment->length, 0);
}

static void holds_none(um_conn *conn) {
  if (!conn->is_holding) return;
  conn->is_holding = false;
  TAILQ_REMOVE(&conn->reactor->holding, conn, holding_link);
}

static void drop_first(um_conn *conn) {
  um_segment *segment = conn->received_first;
  conn->received_first = segment->next;
  if (!conn->received_first) {
    conn->received_last = NULL;
    holds_none(conn);
  }
  segment_free(conn, segment);
}

size_t um__conn_take(um_conn *conn, void *buffer, size_t length) {
  size_t taken = 0;
  for (um_segment *segment; taken < length && (segment = conn->received_first);) {
    size_t part = length - taken < segment->length ? length - taken : segment->length;
    memcpy((char *)buffer + taken, segment->data, part);
    taken += part;
    segment->data += part;
    segment->length -= (uint32_t)part;
    if (!segment->length) drop_first(conn);
  }
  count_received(conn, 0, taken);
  return taken;
}

size_t um__conn_peek(const um_conn *conn, size_t offset, void *buffer, size_t length) {
  size_t copied = 0;
  for (const um_segment *s = conn->received_first; s && copied < length; s = s->next) {
    size_t part = offset < s->length ? s->length - offset : 0;
    if (part > length - copied) part = length - copied;
    memcpy((char *)buffer + copied, s->data + offset, part);
    copied += part;
    offset = part || offset < s->length ? 0 : offset - s->length;
  }
  return copied;
}

static um_segment *own_segment(size_t length) {
  size_t capacity = length < COPY_LEAST ? COPY_LEAST : length;
  um_segment *segment = um__alloc_raw(sizeof *segment + capacity);
  if (!segment) return NULL;
  *segment = (um_segment){.data = segment->own, .room = (uint32_t)capacity, .buffer = -1};
  return segment;
}

static void fill(um_segment *segment, const void *data, size_t length) {
  memcpy(segment->data + segment->length, data, length);
  segment->length += (uint32_t)length;
  segment->room -= (uint32_t)length;
}

int um__conn_feed(um_conn *conn, const void *data, size_t length) {
  if (!length) return 0;
  um_segment *segment = own_segment(length);
  if (!segment) return -ENOMEM;
  fill(segment, data, length);
  append(conn, segment);
  return 0;
}

/* Without memory for the segment the bytes are lost, and so is the connection. */
void um__conn_received(um_conn *conn, const um_completion *completion) {
  um_reactor *r = conn->reactor;
  um_segment *segment = segment_new(r);
  if (!segment) {
    r->backend->recycle(r, completion->buffer);
    conn->received_end = -ENOMEM;
    return;
  }
  segment->data = completion->data;
  segment->length = (uint32_t)completion->result;
  segment->room = 0;
  segment->buffer = (int32_t)completion->buffer;
  append(conn, segment);
  if (!conn->is_holding) {
    conn->is_holding = true;
    TAILQ_INSERT_TAIL(&r->holding, conn, holding_link);
  }
}

void um__conn_discard_received(um_conn *conn) {
  count_received(conn, 0, conn->received);
  while (conn->received_first) drop_first(conn);
}

/* Replaces segments in provided buffers by copies, so that a few unread bytes do
 * not pin a whole buffer. Without memory the rest stays where it is. */
bool um__conn_copy_out(um_conn *conn) {
  um_segment *last = NULL; /* the copy before */
  for (um_segment **link = &conn->received_first, *segment; (segment = *link);) {
    if (segment->buffer < 0) {
      last = segment;
      link = &segment->next;
      continue;
    }
    if (!last || last->room < segment->length) {
      if (!(last = own_segment(segment->length))) return false;
      last->next = segment;
      *link = last;
      link = &last->next;
    }
    fill(last, segment->data, segment->length);
    UM_COUNT(conn->reactor, copied_bytes, segment->length);
    *link = segment->next;
    segment_free(conn, segment);
  }
  conn->received_last = last;
  holds_none(conn);
  return true;
}

/* A reader that only gave way reads on in the next tick: its bytes may stay, as
 * long as the kernel has plenty of buffers. */
void um__conns_release_buffers(um_reactor *r) {
  bool plenty = r->metrics.buffers_used * 2 < r->config.buffer_count;
  um_conn *conn, *next;
  for (conn = TAILQ_FIRST(&r->holding); conn; conn = next) {
    next = TAILQ_NEXT(conn, holding_link);
    bool soon = conn->reader && conn->reader->state == UM_TASK_READY;
    if (!(soon && plenty) && !um__conn_copy_out(conn)) break;
  }
  if (r->metrics.buffers_used >= r->config.buffer_count) return;
  while ((conn = TAILQ_FIRST(&r->starved))) {
    TAILQ_REMOVE(&r->starved, conn, starved_link);
    conn->is_starved = false;
    if (conn->reader || conn->readable) um__conn_rearm(conn);
  }
}

/* ---- output ---- */

static um_slab *output_slab(um_conn *conn, size_t length) {
  um_slab *last = conn->output_last;
  if (last && last->capacity - last->end >= length) return last;
  bool large = conn->bulk || conn->output + length > UM_SLAB_SMALL;
  if (squeezed(conn)) large = length > UM_SLAB_SMALL;
  um_slab *slab = um__slab_take(conn->slabs, large);
  if (!slab) return NULL;
  count_slab(conn, slab->capacity, 0);
  if (last) last->next = slab;
  else conn->output_first = slab;
  conn->output_last = slab;
  return slab;
}

void um__conn_dirty(um_conn *conn) {
  if (conn->is_dirty || conn->send || !conn->reactor) return;
  conn->is_dirty = true;
  TAILQ_INSERT_TAIL(&conn->reactor->dirty, conn, dirty_link);
}

int um__conn_put(um_conn *conn, const void *data, size_t length) {
  if (conn->output_error) return conn->output_error;
  if (conn->output_over) return 0;
  if (UM_ABLATED(COALESCING) && !conn->output) {
    ssize_t sent = send(conn->fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) data = (const char *)data + sent, length -= (size_t)sent;
  }
  while (length) {
    size_t part = length < UM_SLAB_LARGE ? length : UM_SLAB_LARGE;
    um_slab *slab = output_slab(conn, part);
    if (!slab) return conn->output_error = -ENOMEM;
    memcpy(slab->data + slab->end, data, part);
    slab->end += (uint32_t)part;
    conn->output += part;
    conn->queued += part;
    data = (const char *)data + part;
    length -= part;
  }
  if (conn->output > conn->output_peak) conn->output_peak = conn->output;
  um__conn_dirty(conn);
  return 0;
}

size_t um__conn_output(const um_conn *conn, const void **data) {
  const um_slab *slab = conn->output_first;
  if (!slab) return 0;
  *data = slab->data + slab->start;
  return slab->end - slab->start;
}

static void drop_slab(um_conn *conn) {
  um_slab *slab = conn->output_first;
  conn->output_first = slab->next;
  if (!conn->output_first) conn->output_last = NULL;
  count_slab(conn, 0, slab->capacity);
  um__slab_give(slab);
}

void um__conn_output_sent(um_conn *conn, size_t length) {
  um_slab *slab = conn->output_first;
  if (!length) return;
  slab->start += (uint32_t)length;
  conn->output -= length;
  if (slab->start == slab->end) drop_slab(conn);
  if (conn->output) return;
  conn->bulk = conn->output_peak > UM_SLAB_SMALL;
  conn->output_peak = 0;
}

void um__conn_discard_output(um_conn *conn) {
  while (conn->output_first) drop_slab(conn);
  conn->output = 0;
}

/* Out of a pool that may go away before the connection. */
static void rehouse_output(um_conn *conn) {
  um_slab *old = conn->output_first;
  conn->output_first = conn->output_last = NULL;
  conn->queued -= conn->output;
  conn->output = 0;
  for (um_slab *next; old; old = next) {
    next = old->next;
    um__conn_put(conn, old->data + old->start, old->end - old->start);
    um__slab_give(old);
  }
}

void um__conn_leave(um_conn *conn) {
  UM_COUNT(conn->reactor, receive_queued, -conn->received);
  count_slab(conn, 0, slabs_held(conn));
  conn->reactor = NULL;
  conn->slabs = NULL;
  rehouse_output(conn);
}

/* ---- lending ---- */

bool um__conn_lend(um_conn *conn, um_conn *to) {
  if (!um__conn_copy_out(conn)) return false;
  to->received_first = conn->received_first;
  to->received_last = conn->received_last;
  to->received = conn->received;
  to->received_end = conn->received_end;
  conn->received_first = conn->received_last = NULL;
  count_received(conn, 0, conn->received);
  return true;
}

static void prepend(um_conn *conn, um_conn *from) {
  if (!from->received_first) return;
  from->received_last->next = conn->received_first;
  conn->received_first = from->received_first;
  if (!conn->received_last) conn->received_last = from->received_last;
  count_received(conn, from->received, 0);
}

void um__conn_return(um_conn *conn, um_conn *from) {
  prepend(conn, from);
  for (um_slab *slab = from->output_first; slab; slab = slab->next)
    if (um__conn_put(conn, slab->data + slab->start, slab->end - slab->start) < 0 && !conn->received_end)
      conn->received_end = conn->output_error; /* the peer would wait for it, and we for the peer */
  if (from->output_error && !conn->output_error) conn->output_error = from->output_error;
  um__conn_discard_output(from);
}
