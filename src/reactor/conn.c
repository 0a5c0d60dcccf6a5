#include "conn.h"

#include "../ablation.h"
#include "alloc.h"

#include <string.h>
#include <sys/socket.h>

void um__conn_init(um_conn *conn, int fd) { *conn = (um_conn){.fd = fd}; }

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
  conn->received += segment->length;
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
  conn->received -= taken;
  return taken;
}

int um__conn_feed(um_conn *conn, const void *data, size_t length) {
  if (!length) return 0;
  um_segment *segment = um__alloc_raw(sizeof *segment + length);
  if (!segment) return -ENOMEM;
  segment->buffer = -1;
  segment->data = memcpy(segment->own, data, length);
  segment->length = (uint32_t)length;
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
  segment->buffer = (int32_t)completion->buffer;
  append(conn, segment);
  if (!conn->is_holding) {
    conn->is_holding = true;
    TAILQ_INSERT_TAIL(&r->holding, conn, holding_link);
  }
}

void um__conn_discard_received(um_conn *conn) {
  while (conn->received_first) drop_first(conn);
  conn->received = 0;
}

/* Replaces segments in provided buffers by copies, so that a few unread bytes do
 * not pin a whole buffer. Without memory the rest stays where it is. */
bool um__conn_copy_out(um_conn *conn) {
  um_reactor *r = conn->reactor;
  for (um_segment **link = &conn->received_first; *link; link = &(*link)->next) {
    um_segment *segment = *link, *copy;
    if (segment->buffer < 0) continue;
    if (!(copy = um__alloc_raw(sizeof *copy + segment->length))) return false;
    *copy = (um_segment){.next = segment->next, .length = segment->length, .buffer = -1};
    copy->data = memcpy(copy->own, segment->data, segment->length);
    UM_COUNT(r, copied_bytes, segment->length);
    if (conn->received_last == segment) conn->received_last = copy;
    *link = copy;
    segment_free(conn, segment);
  }
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
  um_slab *slab = um__slab_take(conn->slabs, large);
  if (!slab) return NULL;
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

void um__conn_rehouse_output(um_conn *conn) {
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
