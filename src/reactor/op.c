#include "alloc.h"
#include "reactor.h"

#include <string.h>

#define CHUNK 128u
#define MAX_CHUNKS 65536u

static int add_chunk(um_reactor *r) {
  if (r->op_chunk_count == MAX_CHUNKS) return -ENOMEM;
  if (!(r->op_chunk_count & (r->op_chunk_count - 1))) {
    unsigned capacity = r->op_chunk_count ? r->op_chunk_count * 2 : 1;
    um_op **grown = um__alloc_raw(capacity * sizeof *grown);
    if (!grown) return -ENOMEM;
    if (r->op_chunks) memcpy(grown, r->op_chunks, r->op_chunk_count * sizeof *grown);
    um__free(r->op_chunks);
    r->op_chunks = grown;
  }
  um_op *chunk = um__alloc(CHUNK * sizeof *chunk);
  if (!chunk) return -ENOMEM;
  for (unsigned i = CHUNK; i-- > 0;) {
    chunk[i].slot = r->op_chunk_count * CHUNK + i;
    chunk[i].reactor = r;
    chunk[i].next = r->op_free;
    r->op_free = &chunk[i];
  }
  r->op_chunks[r->op_chunk_count++] = chunk;
  return 0;
}

int um__ops_reserve(um_reactor *r) { return r->op_free ? 0 : add_chunk(r); }

um_op *um__op_new(um_reactor *r, enum um_op_code code, int fd) {
  if (!r->op_free && add_chunk(r) < 0) return NULL;
  um_op *op = r->op_free;
  r->op_free = op->next;
  uint32_t slot = op->slot, generation = op->generation;
  *op = (um_op){.slot = slot, .generation = generation, .reactor = r};
  op->code = (uint8_t)code;
  op->fd = fd;
  op->fd2 = op->buffer_index = -1;
  return op;
}

uint64_t um__op_user_data(const um_op *op) {
  return (uint64_t)op->generation << 32 | (uint64_t)op->slot << 1;
}

static void reuse_if_through(um_op *op) {
  if (op->in_kernel || op->cancelling || !op->released) return;
  op->released = false;
  op->generation++;
  op->next = op->reactor->op_free;
  op->reactor->op_free = op;
}

void um__op_release(um_op *op) {
  op->released = true;
  reuse_if_through(op);
}

int um__op_submit(um_op *op) {
  um_reactor *r = op->reactor;
  int result = r->supported >> op->code & 1 ? r->backend->submit(r, op) : -EOPNOTSUPP;
  UM_PROBE3(op_submit, um__op_user_data(op), op->code, op->fd);
  if (unlikely(r->trace)) um__trace(r, UM_TRACE_SUBMIT, op, result, false);
  if (unlikely(result < 0)) {
    um__op_release(op);
    return result;
  }
  op->in_kernel = true;
  UM_COUNT(r, submissions, 1);
  UM_COUNT(r, pending, 1);
  return 0;
}

void um__op_cancel(um_op *op) {
  um_reactor *r = op->reactor;
  if (!op->in_kernel || op->cancelling || op->notifies) return;
  UM_COUNT(r, cancels, 1);
  op->cancel_refused = r->backend->cancel(r, op) < 0;
  r->cancel_refused |= op->cancel_refused;
  if (op->cancel_refused) return;
  if (unlikely(r->trace)) um__trace(r, UM_TRACE_CANCEL, op, 0, false);
  op->cancelling = true;
}

bool um__ops_cancel(um_reactor *r) {
  bool any = false;
  for (unsigned i = 0; i < r->op_chunk_count * CHUNK; i++) {
    um_op *op = &r->op_chunks[i / CHUNK][i % CHUNK];
    any |= op->in_kernel;
    um__op_cancel(op);
  }
  return any;
}

/* The queue was full, and could not be emptied. */
void um__ops_cancel_again(um_reactor *r) {
  r->cancel_refused = false;
  for (unsigned i = 0; i < r->op_chunk_count * CHUNK; i++) {
    um_op *op = &r->op_chunks[i / CHUNK][i % CHUNK];
    if (op->cancel_refused) um__op_cancel(op);
  }
}

static um_op *find(um_reactor *r, uint64_t user_data) {
  uint32_t slot = (uint32_t)user_data >> 1;
  if (slot / CHUNK >= r->op_chunk_count) return NULL;
  um_op *op = &r->op_chunks[slot / CHUNK][slot % CHUNK];
  return op->generation == (uint32_t)(user_data >> 32) ? op : NULL;
}

static void awaited_done(um_op *op, const um_completion *completion) {
  if (!completion->notification) op->result = completion->result;
  if (!completion->more && op->owner) um__task_wake(op->owner, 0);
}

void um__op_complete(um_reactor *r, uint64_t user_data, const um_completion *completion) {
  UM_COUNT(r, completions, 1);
  um_op *op = find(r, user_data & ~(uint64_t)UM_USER_DATA_CANCEL);
  if (unlikely(!op)) {
    if (user_data == UM_USER_DATA_NONE) UM_COUNT(r, wakes, 1); /* another ring's message */
    else UM_COUNT(r, stale, 1);
    if (completion->has_buffer) r->backend->recycle(r, completion->buffer);
    return;
  }
  if (user_data & UM_USER_DATA_CANCEL) {
    op->cancelling = false;
    /* Between two steps of it, as before a connect's next try, the kernel does not find it. */
    if (completion->result == -ENOENT) um__op_cancel(op);
  } else {
    UM_PROBE3(op_complete, user_data, completion->result, completion->more);
    if (unlikely(r->trace)) um__trace(r, UM_TRACE_COMPLETE, op, completion->result, completion->more);
    op->notifies = completion->more && op->code == UM_OP_SEND_ZC;
    if (!completion->more) {
      op->in_kernel = op->cancel_refused = false;
      UM_COUNT(r, pending, -1);
    }
    (op->done ? op->done : awaited_done)(op, completion);
  }
  reuse_if_through(op);
}

/* The result of an operation that was asked to end for the reason `why`. */
static int abandoned_result(um_task *task, int result, int why) {
  if (result == -ECANCELED || result == -EINTR) return why;
  if (why == -ECANCELED) task->cancel_pending = 1;
  return result;
}

int um__await(um_op *op, um_time deadline) {
  um_reactor *r = op->reactor;
  um_task *task = r->current;
  op->owner = task;
  int result = um__op_submit(op);
  if (result < 0) return result;
  int why = 0;
  while (op->in_kernel) {
    um__waits_for(r, um__op_name(op->code), op->fd);
    if (why) um__park_shielded(r);
    else if ((why = um__park(r, deadline)) < 0 && op->in_kernel) um__op_cancel(op);
  }
  result = why < 0 ? abandoned_result(task, op->result, why) : op->result;
  um__op_release(op);
  return result;
}

void um__ops_free(um_reactor *r) {
  for (unsigned i = 0; i < r->op_chunk_count; i++) um__free(r->op_chunks[i]);
  um__free(r->op_chunks);
}
