#include "backend_scripted.h"

#include "harness.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

#define MOST_ANSWERS 256
#define MOST_STREAMS 128
#define STUCK_MS 20000

typedef struct planned {
  enum um_op_code code;
  int fd; /* -1: any */
  answer what;
} planned;

typedef struct owned { /* an operation the kernel has */
  struct owned *next;
  um_op *op;
  uint64_t user_data;
  answer what;
  unsigned due;          /* the wait() it may complete in */
  unsigned cancel_due;
  bool has_plan, cancelled;
} owned;

typedef struct stream {
  int fd;
  char *in, *out;
  size_t in_length, in_taken, out_length;
  bool ended;
  int end;
  void (*sent)(script *, int, void *);
  void *argument;
} stream;

typedef struct loose { /* completions of no operation */
  uint64_t user_data;
  int result;
} loose;

struct script {
  um_reactor *reactor;
  script_options options;
  uint64_t random;
  planned plan[MOST_ANSWERS];
  unsigned plan_count;
  owned *first, **end;
  loose loose[64];
  unsigned loose_count;
  stream streams[MOST_STREAMS];
  unsigned stream_count;
  char *memory;          /* provided buffers; one allocation, so that overruns show */
  unsigned *free_buffers, free_count;
  bool *lent;
  int wake_fd;
  script_counts counts;
  unsigned refuse_cancels;
};

script_injected script_injected_all[SCRIPT_KINDS] = {
  {"short answers", 0}, {"late answers", 0}, {"completions of an operation long gone", 0},
  {"ENOBUFS", 0}, {"operations refused (queue full, no memory)", 0},
  {"cancelled, told before the operation", 0}, {"cancelled, told a wait later", 0},
  {"cancelled too late", 0}, {"cancelled and not found", 0}, {"cancellations refused", 0},
  {"EINTR", 0}, {"EAGAIN", 0}, {"ENOMEM", 0}, {"ECANCELED unasked", 0},
  {"ECONNRESET", 0}, {"ETIMEDOUT", 0}, {"EPIPE", 0}, {"EIO", 0}};

static void injected(int kind) { script_injected_all[kind].count++; }

static void injected_error(int error) {
  static const int errors[] = {-EINTR, -EAGAIN, -ENOMEM, -ECANCELED, -ECONNRESET, -ETIMEDOUT,
                               -EPIPE, -EIO};
  for (int i = 0; i < (int)(sizeof errors / sizeof *errors); i++)
    if (errors[i] == error) injected(SCRIPT_EINTR + i);
}

static script *of(const um_reactor *r) { return r->backend_state; }

/* xorshift: the same everywhere. */
static unsigned roll(script *s, unsigned sides) {
  s->random ^= s->random << 13;
  s->random ^= s->random >> 7;
  s->random ^= s->random << 17;
  return (unsigned)(s->random >> 33) % sides;
}

static bool chance(script *s, unsigned percent) {
  return s->options.seed && roll(s, 100) < percent;
}

/* ---- plans ---- */

void script_answer_fd(script *s, enum um_op_code code, int fd, answer a) {
  CHECK(s->plan_count < MOST_ANSWERS);
  s->plan[s->plan_count++] = (planned){code, fd, a};
}

void script_answer(script *s, enum um_op_code code, answer a) { script_answer_fd(s, code, -1, a); }

static bool take_plan(script *s, const um_op *op, int fd, answer *out) {
  for (unsigned i = 0; i < s->plan_count; i++) {
    if (s->plan[i].code != op->code || s->plan[i].fd != fd) continue;
    *out = s->plan[i].what;
    memmove(&s->plan[i], &s->plan[i + 1], (--s->plan_count - i) * sizeof *s->plan);
    return true;
  }
  return false;
}

static bool plan_more(script *s, owned *o) {
  o->has_plan = take_plan(s, o->op, o->op->fd, &o->what) || take_plan(s, o->op, -1, &o->what);
  if (o->has_plan) o->due = s->counts.waits + 1 + o->what.after;
  return o->has_plan;
}

/* What a kernel may answer at any time. EINTR and EAGAIN ask for another try. */
static int some_fault(script *s, const um_op *op) {
  static const int faults[] = {-EINTR, -ENOMEM, -ECANCELED, -EAGAIN, -EINTR, -ECONNRESET,
                               -ETIMEDOUT, -EPIPE, -EIO};
  if (op->code == UM_OP_TIMEOUT) return ANSWER_ALL;
  bool knows_few = op->code == UM_OP_POLL;
  return faults[roll(s, knows_few ? 3 : sizeof faults / sizeof *faults)];
}

static void plan_next(script *s, owned *o) {
  if (plan_more(s, o)) return;
  o->what = (answer){.result = ANSWER_ALL};
  if (s->options.seed) {
    o->what.after = roll(s, 4) ? 0 : roll(s, 4);
    o->what.cancel = (enum answer_cancel)roll(s, 6);
    o->what.cancel_after = roll(s, 3);
    o->what.stale_before = roll(s, 16) == 0;
    if (chance(s, s->options.fault_percent)) o->what.result = some_fault(s, o->op);
  }
  o->due = s->counts.waits + 1 + o->what.after;
}

/* ---- streams ---- */

static stream *stream_of(script *s, int fd) {
  for (unsigned i = 0; i < s->stream_count; i++)
    if (s->streams[i].fd == fd) return &s->streams[i];
  CHECK(s->stream_count < MOST_STREAMS);
  s->streams[s->stream_count] = (stream){.fd = fd};
  return &s->streams[s->stream_count++];
}

static void extend(char **bytes, size_t *length, const void *more, size_t count) {
  char *grown = realloc(*bytes, *length + count + 1);
  CHECK(grown != NULL);
  if (count) memcpy(grown + *length, more, count);
  *bytes = grown;
  *length += count;
  grown[*length] = 0;
}

void script_feed(script *s, int fd, const void *bytes, size_t length) {
  stream *t = stream_of(s, fd);
  CHECK(!t->ended || s->options.fault_percent); /* broken meanwhile: nobody gets it */
  if (t->ended) return;
  extend(&t->in, &t->in_length, bytes, length);
}

void script_end(script *s, int fd, int result) {
  stream *t = stream_of(s, fd);
  if (t->ended && s->options.fault_percent) return;
  t->ended = true;
  t->end = result;
}

const char *script_fed(script *s, int fd, size_t *length) {
  stream *t = stream_of(s, fd);
  *length = t->in_length;
  return t->in ? t->in : "";
}

const char *script_sent(script *s, int fd, size_t *length) {
  stream *t = stream_of(s, fd);
  if (length) *length = t->out_length;
  return t->out ? t->out : "";
}

void script_on_send(script *s, int fd, void (*sent)(script *, int, void *), void *argument) {
  stream *t = stream_of(s, fd);
  t->sent = sent;
  t->argument = argument;
}

/* ---- what operations do ---- */

static bool is_receive(const um_op *op) {
  return op->code == UM_OP_RECV || op->code == UM_OP_RECV_MULTI || op->code == UM_OP_RECVMSG;
}

static bool is_multi(const um_op *op) {
  return op->code == UM_OP_RECV_MULTI || op->code == UM_OP_ACCEPT_MULTI;
}

/* Whether a receive has to wait for bytes. */
static bool has_input(script *s, const um_op *op) {
  stream *t = stream_of(s, op->fd);
  return t->in_taken < t->in_length || t->ended;
}

static bool starves(script *s, const um_op *op) { return is_receive(op) && !has_input(s, op); }

/* A poll for input tells of a stream's bytes only where things happen at random: elsewhere
 * tests complete it. */
static bool waits_by_nature(script *s, const um_op *op) {
  switch (op->code) {
    case UM_OP_TIMEOUT: case UM_OP_ACCEPT: case UM_OP_ACCEPT_MULTI: case UM_OP_FUTEX_WAIT:
      return true;
    case UM_OP_POLL:
      return !(op->flags & POLLOUT) && !(s->options.seed && has_input(s, op));
    default:
      return false;
  }
}

static int limit(script *s, const answer *a, size_t most) {
  if (a->result >= 0 && (size_t)a->result < most) most = (size_t)a->result;
  else if (a->result == ANSWER_ALL && most > 1 && chance(s, 30)) {
    size_t all = most;
    most = 1 + roll(s, (unsigned)most);
    if (most < all) injected(SCRIPT_SHORT);
  }
  return (int)most;
}

static int64_t copy_vector(const struct msghdr *message, char *bytes, size_t most, bool in) {
  size_t done = 0;
  for (size_t i = 0; i < message->msg_iovlen && done < most; i++) {
    const struct iovec *v = &message->msg_iov[i];
    size_t part = v->iov_len < most - done ? v->iov_len : most - done;
    if (part && in) memcpy(v->iov_base, bytes + done, part);
    else if (part) memcpy(bytes + done, v->iov_base, part);
    done += part;
  }
  return (int64_t)done;
}

static size_t vector_length(const struct msghdr *message) {
  size_t length = 0;
  for (size_t i = 0; i < message->msg_iovlen; i++) length += message->msg_iov[i].iov_len;
  return length;
}

static bool lend(script *s, um_completion *c) {
  if (!s->free_count || chance(s, 5)) {
    injected(SCRIPT_ENOBUFS);
    return false;
  }
  c->buffer = s->free_buffers[--s->free_count];
  s->lent[c->buffer] = c->has_buffer = true;
  s->counts.lent++;
  c->data = (uint8_t *)s->memory + (size_t)c->buffer * s->reactor->config.buffer_size;
  return true;
}

static void receive(script *s, um_op *op, const answer *a, um_completion *c) {
  stream *t = stream_of(s, op->fd);
  size_t there = t->in_length - t->in_taken, most;
  if (!there) {
    c->result = t->end;
    return;
  }
  bool provided = !op->address;
  if (provided && !lend(s, c)) {
    c->result = -ENOBUFS;
    return;
  }
  struct msghdr *message = op->code == UM_OP_RECVMSG ? op->address : NULL;
  most = provided ? s->reactor->config.buffer_size : message ? vector_length(message) : op->length;
  c->result = limit(s, a, there < most ? there : most);
  char *from = t->in + t->in_taken;
  if (message) copy_vector(message, from, (size_t)c->result, true);
  else memcpy(provided ? (void *)c->data : op->address, from, (size_t)c->result);
  t->in_taken += (size_t)c->result;
}

static void send_bytes(script *s, um_op *op, const answer *a, um_completion *c) {
  stream *t = stream_of(s, op->fd);
  struct msghdr *message = op->code == UM_OP_SENDMSG ? op->address : NULL;
  size_t length = message ? vector_length(message) : op->length;
  c->result = limit(s, a, length);
  char *copy = malloc((size_t)c->result + 1);
  CHECK(copy != NULL);
  if (message) copy_vector(message, copy, (size_t)c->result, false);
  else if (c->result) memcpy(copy, op->address, (size_t)c->result);
  extend(&t->out, &t->out_length, copy, (size_t)c->result);
  free(copy);
}

/* What breaks a connection for a send ends its input as well. */
static void break_stream(script *s, const um_op *op, int error) {
  bool sends = op->code == UM_OP_SEND || op->code == UM_OP_SENDMSG || op->code == UM_OP_SEND_ZC;
  bool breaks = error == -EPIPE || error == -ECONNRESET || error == -ETIMEDOUT;
  if (!sends || !breaks || stream_of(s, op->fd)->ended) return;
  script_end(s, op->fd, error == -EPIPE ? 0 : error);
}

static void perform(script *s, um_op *op, const answer *a, um_completion *c) {
  bool has_result = a->result != ANSWER_ALL && a->result != ANSWER_NEVER;
  if (has_result && a->result < 0) {
    c->result = a->result;
    injected_error(a->result);
    if (s->options.fault_percent) break_stream(s, op, a->result);
    return;
  }
  switch (op->code) {
    case UM_OP_RECV: case UM_OP_RECV_MULTI: case UM_OP_RECVMSG:
      receive(s, op, a, c);
      return;
    case UM_OP_SEND: case UM_OP_SEND_ZC: case UM_OP_SENDMSG: case UM_OP_WRITE:
      send_bytes(s, op, a, c);
      return;
    case UM_OP_POLL:
      c->result = has_result ? a->result : (int)op->flags;
      return;
    case UM_OP_TIMEOUT:
      c->result = has_result ? a->result : -ETIME;
      return;
    default:
      c->result = has_result ? a->result : 0;
  }
}

/* ---- delivery ---- */

/* The slot must still be the operation's: its owner waits for the last completion. */
static void check_ownership(const owned *o) {
  CHECK_EQ(um__op_user_data(o->op), o->user_data);
  CHECK(o->op->in_kernel);
}

static void unlink_owned(script *s, owned *o) {
  for (owned **link = &s->first; *link; link = &(*link)->next) {
    if (*link != o) continue;
    *link = o->next;
    if (s->end == &o->next) s->end = link;
    return;
  }
}

static void deliver(script *s, owned *o, um_completion *c) {
  check_ownership(o);
  um_op *op = o->op;
  uint64_t user_data = o->user_data;
  int fd = op->fd;
  bool sends = op->code == UM_OP_SEND || op->code == UM_OP_SENDMSG || op->code == UM_OP_SEND_ZC;
  if (o->what.stale_before && op->generation) {
    um_completion stale = {.result = -EIO};
    injected(SCRIPT_STALE);
    um__op_complete(s->reactor, user_data - ((uint64_t)1 << 32), &stale);
  }
  c->more = is_multi(op) && !o->what.ends && c->result > 0 && !o->cancelled && !chance(s, 20);
  s->counts.completed++;
  if (o->what.after && !o->cancelled) injected(SCRIPT_LATE);
  if (c->more) plan_next(s, o);
  else unlink_owned(s, o), free(o);
  um__op_complete(s->reactor, user_data, c);
  stream *t = sends ? stream_of(s, fd) : NULL;
  if (t && t->sent && c->result > 0) t->sent(s, fd, t->argument);
}

static void answer_cancel(script *s, uint64_t user_data, int result) {
  um__op_complete(s->reactor, user_data | UM_USER_DATA_CANCEL, &(um_completion){.result = result});
}

static void deliver_cancelled(script *s, owned *o) {
  uint64_t user_data = o->user_data;
  enum answer_cancel how = o->what.cancel;
  answer what = o->what;
  um_completion c = {.result = -ECANCELED};
  bool possible = !starves(s, o->op);
  if (how == CANCEL_MISSES) {
    injected(SCRIPT_CANCEL_MISSED);
    o->cancelled = false;
    o->what.cancel = CANCEL_ENDS;
    answer_cancel(s, user_data, -ENOENT);
    return;
  }
  if (how == CANCEL_LOSES || how == CANCEL_PARTLY) {
    if (possible) perform(s, o->op, &what, &c);
    else how = CANCEL_ENDS;
  }
  if (how == CANCEL_FIRST) answer_cancel(s, user_data, 0);
  if (how == CANCEL_FIRST) injected(SCRIPT_CANCEL_FIRST);
  else if (how == CANCEL_SPLIT) injected(SCRIPT_CANCEL_SPLIT);
  else if (how == CANCEL_LOSES) injected(SCRIPT_CANCEL_LOST);
  deliver(s, o, &c);
  if (how == CANCEL_SPLIT) script_deliver(s, user_data | UM_USER_DATA_CANCEL, 0);
  else if (how != CANCEL_FIRST) answer_cancel(s, user_data, how == CANCEL_LOSES ? -EALREADY : 0);
}

static bool is_due(script *s, const owned *o) {
  if (o->cancelled) return s->counts.waits >= o->cancel_due;
  if (s->counts.waits < o->due || o->what.result == ANSWER_NEVER) return false;
  bool fails = o->what.result < 0 && o->what.result != ANSWER_ALL;
  if (!fails && starves(s, o->op)) return false;
  return o->has_plan || !waits_by_nature(s, o->op);
}

static owned *next_due(script *s) {
  owned *found = NULL;
  unsigned seen = 0;
  for (owned *o = s->first; o; o = o->next) {
    if (!is_due(s, o)) continue;
    if (!found || (s->options.seed && roll(s, ++seen + 1) == 0)) found = o; /* reordered */
  }
  return found;
}

/* A multishot that goes on takes what was planned after its last completion. */
static void plan_waiting(script *s) {
  for (owned *o = s->first; o; o = o->next)
    if (!o->has_plan && !o->cancelled && is_multi(o->op)) plan_more(s, o);
}

static unsigned deliver_due(script *s) {
  unsigned count = 0;
  for (unsigned i = 0; i < s->loose_count; i++, count++) {
    um_completion c = {.result = s->loose[i].result};
    um__op_complete(s->reactor, s->loose[i].user_data, &c);
  }
  s->loose_count = 0;
  /* What is submitted or goes on in this round is for the next one. */
  for (owned *o; (o = next_due(s)); count++) {
    if (o->cancelled) {
      deliver_cancelled(s, o);
      continue;
    }
    um_completion c = {0};
    answer what = o->what;
    perform(s, o->op, &what, &c);
    deliver(s, o, &c);
  }
  return count;
}

/* ---- the seam ---- */

static int scripted_submit(um_reactor *r, um_op *op) {
  script *s = of(r);
  if (chance(s, s->options.refuse_percent)) {
    injected(SCRIPT_REFUSED);
    return roll(s, 2) ? -EAGAIN : -ENOMEM;
  }
  owned *o = calloc(1, sizeof *o);
  CHECK(o != NULL);
  for (owned *other = s->first; other; other = other->next) CHECK(other->op != op);
  o->op = op;
  o->user_data = um__op_user_data(op);
  plan_next(s, o);
  *s->end = o;
  s->end = &o->next;
  s->counts.submitted[op->code]++;
  return 0;
}

static int scripted_cancel(um_reactor *r, um_op *op) {
  script *s = of(r);
  owned *o = s->first;
  while (o && o->op != op) o = o->next;
  CHECK(o != NULL);
  CHECK(!o->cancelled);
  if (s->refuse_cancels || chance(s, s->options.refuse_percent)) {
    s->refuse_cancels -= s->refuse_cancels > 0;
    injected(SCRIPT_CANCEL_REFUSED);
    return -EBUSY;
  }
  o->cancelled = true;
  o->cancel_due = s->counts.waits + 1 + o->what.cancel_after;
  if (o->due > o->cancel_due) o->due = o->cancel_due;
  s->counts.cancelled++;
  return 0;
}

/* Anything that will be due later without help from outside. */
static bool has_scheduled(script *s) {
  if (s->loose_count) return true;
  for (owned *o = s->first; o; o = o->next) {
    if (o->cancelled) return true;
    if (o->what.result == ANSWER_NEVER) continue;
    bool fails = o->what.result < 0 && o->what.result != ANSWER_ALL;
    if (!fails && starves(s, o->op)) continue;
    if (o->has_plan || !waits_by_nature(s, o->op)) return true;
  }
  return false;
}

static void take_wake(script *s, int timeout) {
  struct pollfd p = {.fd = s->wake_fd, .events = POLLIN};
  uint64_t count;
  if (poll(&p, 1, timeout) <= 0) return;
  CHECK_EQ(read(s->wake_fd, &count, sizeof count), sizeof count);
  UM_COUNT(s->reactor, wakes, 1);
}

/* Sleeps only when nothing is to come by itself. */
static int idle(script *s, um_time until) {
  um_time left = until == UM_FOREVER ? STUCK_MS * UM_MS : until > 0 ? until - um_now() : 0;
  if (left <= 0) {
    take_wake(s, 0);
    return 0;
  }
  uint64_t before = s->reactor->metrics.wakes;
  UM_COUNT(s->reactor, waits, 1);
  take_wake(s, (int)(left / UM_MS) + 1);
  bool stuck = until == UM_FOREVER && s->reactor->metrics.wakes == before;
  if (stuck) fprintf(stderr, "scripted backend: nothing will ever happen\n");
  return stuck ? -EDEADLK : 0;
}

static int scripted_wait(um_reactor *r, um_time until) {
  script *s = of(r);
  plan_waiting(s);
  s->counts.waits++;
  UM_COUNT(r, enters, 1);
  if (deliver_due(s) || has_scheduled(s)) {
    take_wake(s, 0);
    return 0;
  }
  return idle(s, until);
}

static void scripted_recycle(um_reactor *r, unsigned buffer) {
  script *s = of(r);
  CHECK(buffer < r->config.buffer_count);
  CHECK(s->lent[buffer]); /* recycled twice otherwise */
  s->lent[buffer] = false;
  memset(s->memory + (size_t)buffer * r->config.buffer_size, 0xdb, 64); /* no more to be read */
  s->free_buffers[s->free_count++] = buffer;
}

static int scripted_start(um_reactor *r) {
  (void)r;
  return 0;
}

static int scripted_pollable(um_reactor *r) { return of(r)->wake_fd; }

static void scripted_wake(um_reactor *r, um_reactor *from) {
  (void)from;
  um__wake_fd(of(r)->wake_fd);
}

static unsigned scripted_unsubmitted(const um_reactor *r) {
  (void)r;
  return 0;
}

static void free_script(script *s) {
  for (owned *o = s->first, *next; o; o = next) {
    next = o->next;
    free(o);
  }
  for (unsigned i = 0; i < s->stream_count; i++) {
    free(s->streams[i].in);
    free(s->streams[i].out);
  }
  if (s->wake_fd >= 0) close(s->wake_fd);
  free(s->memory);
  free(s->free_buffers);
  free(s->lent);
  free(s);
}

static void scripted_close(um_reactor *r) {
  script *s = of(r);
  if (!s) return;
  CHECK_EQ(s->free_count, r->config.buffer_count); /* a buffer was never recycled otherwise */
  free_script(s);
  r->backend_state = NULL;
}

static const um_backend scripted_backend = {
    .name = "scripted",
    .submit = scripted_submit,
    .cancel = scripted_cancel,
    .wait = scripted_wait,
    .recycle = scripted_recycle,
    .start = scripted_start,
    .pollable = scripted_pollable,
    .wake = scripted_wake,
    .unsubmitted = scripted_unsubmitted,
    .close = scripted_close,
};

/* ---- life ---- */

static _Thread_local const script_options *opening;

static int scripted_open(um_reactor *r, um_error *error) {
  (void)error;
  unsigned count = r->config.buffer_count;
  script *s = calloc(1, sizeof *s);
  CHECK(s != NULL);
  s->reactor = r;
  if (opening) s->options = *opening;
  s->random = s->options.seed * 0x9e3779b97f4a7c15u + 1;
  s->end = &s->first;
  s->memory = malloc((size_t)count * r->config.buffer_size);
  s->free_buffers = malloc(count * sizeof *s->free_buffers);
  s->lent = calloc(count, sizeof *s->lent);
  s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  CHECK(s->memory && s->free_buffers && s->lent && s->wake_fd >= 0);
  for (unsigned i = count; i-- > 0;) s->free_buffers[s->free_count++] = i;
  r->backend = &scripted_backend;
  r->backend_state = s;
  r->supported = ~(s->options.unsupported | UINT64_C(1) << UM_OP_MSG_RING);
  r->capabilities = s->options.single_receives ? 0 : UM_CAN_RECV_MULTI;
  return 0;
}

um_reactor *scripted_reactor(script **out, const um_reactor_config *config,
                             const script_options *options) {
  um_reactor_config with = config ? *config : (um_reactor_config){0};
  with.backend = "scripted";
  um__scripted_open = scripted_open;
  opening = options;
  um_reactor *r = reactor_new(&with);
  opening = NULL;
  *out = of(r);
  return r;
}

bool script_complete(script *s, enum um_op_code code, int result) {
  for (owned *o = s->first; o; o = o->next) {
    if (o->op->code != code || o->cancelled) continue;
    o->has_plan = true;
    o->what.result = result;
    o->due = s->counts.waits + 1;
    return true;
  }
  return false;
}

void script_refuse_cancels(script *s, unsigned count) { s->refuse_cancels = count; }

void script_deliver(script *s, uint64_t user_data, int result) {
  CHECK(s->loose_count < sizeof s->loose / sizeof *s->loose);
  s->loose[s->loose_count++] = (loose){user_data, result};
}

script_counts script_count(const script *s) { return s->counts; }

unsigned script_owned(const script *s) {
  unsigned count = 0;
  for (owned *o = s->first; o; o = o->next) count++;
  return count;
}
