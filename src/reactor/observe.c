/* Trace, histograms and metrics; the log is src/log.c, the list of fibers is in fiber.c. */
#include "observe.h"

#include "reactor.h"

const char *um__op_name(unsigned code) {
  static const char *const names[UM_OP_COUNT] = {
      [UM_OP_RECV] = "recv",         [UM_OP_RECV_MULTI] = "recv",   [UM_OP_SEND] = "send",
      [UM_OP_SEND_ZC] = "send",      [UM_OP_SENDMSG] = "sendmsg",   [UM_OP_RECVMSG] = "recvmsg",
      [UM_OP_ACCEPT] = "accept",     [UM_OP_ACCEPT_MULTI] = "accept", [UM_OP_CONNECT] = "connect",
      [UM_OP_SHUTDOWN] = "shutdown", [UM_OP_CLOSE] = "close",       [UM_OP_POLL] = "poll",
      [UM_OP_READ] = "read",         [UM_OP_WRITE] = "write",       [UM_OP_OPENAT] = "open",
      [UM_OP_SPLICE] = "splice",     [UM_OP_TIMEOUT] = "timeout",   [UM_OP_FUTEX_WAIT] = "futex wait",
      [UM_OP_FUTEX_WAKE] = "futex wake", [UM_OP_WAITID] = "waitid", [UM_OP_MSG_RING] = "message",
  };
  return names[code];
}

int um_reactor_trace(um_reactor *r, um_trace_fn fn, void *arg) {
  int result = um__reactor_check(r);
  if (result < 0) return result;
  r->trace = fn;
  r->trace_arg = arg;
  return 0;
}

/* It is called where nothing may wait: inside a submission or the delivery of completions. */
void um__trace(um_reactor *r, int kind, const um_op *op, int result, bool more) {
  if (r->tracing) return;
  um_trace_event event = {.id = um__op_user_data(op), .operation = um__op_name(op->code),
                          .kind = kind, .fd = op->fd, .result = result, .more = more};
  bool must_not_wait = r->must_not_wait;
  r->tracing = r->must_not_wait = true;
  r->trace(&event, r->trace_arg);
  r->tracing = false;
  r->must_not_wait = must_not_wait;
}

static void count(uint64_t *counter, uint64_t n) {
  __atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

void um__histogram_add(um_histogram *histogram, um_time duration) {
  uint64_t us = duration > 0 ? (uint64_t)duration / 1000 : 0;
  unsigned bucket = us ? 64u - (unsigned)__builtin_clzll(us) : 0;
  if (bucket >= UM_HISTOGRAM_BUCKETS) bucket = UM_HISTOGRAM_BUCKETS - 1;
  count(&histogram->buckets[bucket], 1);
  count(&histogram->count, 1);
  count(&histogram->sum, duration > 0 ? (uint64_t)duration : 0);
}

static void copy_counters(void *out, const void *counters, size_t size) {
  const uint64_t *from = counters;
  uint64_t *to = out;
  for (size_t i = 0; i < size / sizeof *to; i++) to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}

void um_reactor_histograms(const um_reactor *r, um_histograms *out) {
  copy_counters(out, &r->histograms, sizeof *out);
}

void um_reactor_metrics(const um_reactor *r, um_metrics *out) {
  copy_counters(out, &r->metrics, sizeof *out);
  if (!um__reactor_forked(r)) out->unsubmitted = r->backend->unsubmitted(r);
}
