/* The life of an operation, over a kernel that does what the test says. */
#include "backend_scripted.h"
#include "harness.h"

#include <bio_uring/io.h>

SUITE(ops);

#define FD 7

typedef struct scene {
  script *s;
  um_reactor *r;
  um_fiber *fiber;
  void *more;
} scene;

/* Runs main(scene) in a fiber over a fresh script. */
static void play_with(um_fiber_fn main, const um_reactor_config *config, const script_options *options) {
  scene c = {0};
  c.r = scripted_reactor(&c.s, config, options);
  CHECK_EQ(um_fiber_spawn(c.r, NULL, main, &c, NULL), 0);
  CHECK_EQ(um_reactor_run(c.r), 0);
  CHECK_EQ(script_owned(c.s), 0);
  CHECK_EQ(metrics_of(c.r).pending, 0);
  reactor_finish(c.r);
}

static void play(um_fiber_fn main) { play_with(main, NULL, NULL); }

/* ---- cancellation and completion, in every order ---- */

static int recv_once(void *argument) {
  scene *c = argument;
  char bytes[8];
  ssize_t result = um_recv(FD, bytes, sizeof bytes, 0, UM_FOREVER);
  CHECK(result < 0 || !memcmp(bytes, "abcdefgh", (size_t)result));
  c->more = (void *)(intptr_t)um_fiber_yield(); /* was the cancellation used up? */
  return (int)result;
}

/* The result of a receive that is cancelled while the kernel has it. */
static int cancelled_receive(scene *c, answer a, const char *fed, int *then) {
  script_answer(c->s, UM_OP_RECV, a);
  if (fed) script_feed(c->s, FD, fed, strlen(fed));
  um_fiber *fiber = spawn(recv_once, c);
  yield_times(1);
  um_fiber_cancel(fiber);
  int result = join(fiber);
  *then = (int)(intptr_t)c->more;
  return result;
}

static int cancel_orders(void *argument) {
  scene *c = argument;
  int then;
  for (unsigned late = 0; late < 4; late++) {
    answer a = {.result = ANSWER_NEVER, .cancel_after = late};
    for (a.cancel = CANCEL_ENDS; a.cancel <= CANCEL_MISSES; a.cancel++) {
      CHECK_EQ(cancelled_receive(c, a, NULL, &then), -ECANCELED);
      CHECK_EQ(then, 0);
    }
    for (a.cancel = CANCEL_LOSES; a.cancel <= CANCEL_PARTLY; a.cancel++) {
      CHECK_EQ(cancelled_receive(c, a, "abcdefgh", &then), 8); /* what came is not lost */
      CHECK_EQ(then, -ECANCELED);                              /* nor is the cancellation */
    }
  }
  CHECK_EQ(script_count(c->s).cancelled, 28); /* four were asked for again */
  CHECK_EQ(metrics_of(c->r).cancels, 28);
  CHECK_EQ(metrics_of(c->r).stale, 0); /* slots were kept for the second completion */
  return 0;
}

TEST(ops, cancelled_in_every_order) { play(cancel_orders); }

static int refused_cancels(void *argument) {
  scene *c = argument;
  char bytes[8];
  int then;
  script_refuse_cancels(c->s, 2);
  CHECK_EQ(cancelled_receive(c, (answer){.result = ANSWER_NEVER}, NULL, &then), -ECANCELED);
  script_refuse_cancels(c->s, 2);
  script_answer(c->s, UM_OP_RECV, (answer){.result = ANSWER_NEVER});
  CHECK_EQ(um_recv(FD, bytes, sizeof bytes, 0, um_after(1)), -ETIMEDOUT);
  CHECK_EQ(metrics_of(c->r).cancels, 6);
  /* It may also end by itself first. */
  script_refuse_cancels(c->s, 1000000);
  script_answer(c->s, UM_OP_RECV, (answer){.result = ANSWER_ALL, .after = 5});
  script_feed(c->s, FD, "12345", 5);
  CHECK_EQ(um_recv(FD, bytes, sizeof bytes, 0, um_now() - 1), 5);
  return 0;
}

/* The submission queue is full, and cannot be emptied now. */
TEST(ops, a_refused_cancellation_is_asked_for_again) { play(refused_cancels); }

static int deadline_orders(void *argument) {
  scene *c = argument;
  char bytes[8];
  for (unsigned late = 0; late < 4; late++) {
    answer a = {.result = ANSWER_NEVER, .cancel_after = late, .cancel = CANCEL_ENDS};
    script_answer(c->s, UM_OP_RECV, a);
    CHECK_EQ(um_recv(FD, bytes, sizeof bytes, 0, um_after(1)), -ETIMEDOUT);
    a.cancel = CANCEL_FIRST;
    script_answer(c->s, UM_OP_RECV, a);
    CHECK_EQ(um_recv(FD, bytes, sizeof bytes, 0, um_now() - 1), -ETIMEDOUT);
    a.cancel = CANCEL_LOSES;
    script_answer(c->s, UM_OP_RECV, a);
    script_feed(c->s, FD, "12345", 5);
    CHECK_EQ(um_recv(FD, bytes, sizeof bytes, 0, um_after(1)), 5);
    CHECK_EQ(um_fiber_yield(), 0); /* a deadline leaves nothing pending */
  }
  return 0;
}

TEST(ops, deadlines_in_every_order) { play(deadline_orders); }

/* The buffer is on a stack frame that is gone after the call: the scripted kernel
 * writes to it at the latest possible moment, and checks that the slot is still owned. */
static int drains(void *argument) {
  scene *c = argument;
  for (unsigned late = 0; late < 6; late++) {
    unsigned before = script_count(c->s).waits;
    char bytes[64];
    script_answer(c->s, UM_OP_RECV, (answer){.result = ANSWER_NEVER, .cancel = CANCEL_LOSES,
                                             .cancel_after = late});
    script_feed(c->s, FD, "0123456789", 10);
    CHECK_EQ(um_recv(FD, bytes, sizeof bytes, 0, um_now() - 1), 10);
    CHECK(script_count(c->s).waits >= before + late); /* it waited for the kernel */
    CHECK_EQ(script_owned(c->s), 0);
  }
  return 0;
}

TEST(ops, an_abandoned_operation_is_drained_before_the_call_returns) { play(drains); }

static int recv_by(void *argument) {
  char bytes[8];
  return (int)um_recv(FD, bytes, sizeof bytes, 0, *(um_time *)argument);
}

static int cancel_while_draining(void *argument) {
  scene *c = argument;
  script_answer(c->s, UM_OP_RECV, (answer){.result = ANSWER_NEVER, .cancel_after = 200});
  um_time deadline = um_after(2);
  um_fiber *fiber = spawn(recv_by, &deadline);
  yield_times(1);
  while (script_count(c->s).cancelled == 0) CHECK_EQ(um_fiber_sleep(um_after(1)), 0);
  um_fiber_cancel(fiber); /* it is being drained for its deadline: the shield holds */
  um_fiber_cancel(fiber);
  CHECK_EQ(join(fiber), -ETIMEDOUT);
  CHECK_EQ(script_count(c->s).cancelled, 1);
  return 0;
}

TEST(ops, cancelled_while_being_drained) { play(cancel_while_draining); }

static int two_completions_late(void *argument) {
  scene *c = argument;
  char bytes[8];
  /* The cancellation's completion precedes; the slot must not be reused before the
   * operation's own. */
  script_answer(c->s, UM_OP_RECV, (answer){.result = ANSWER_NEVER, .cancel = CANCEL_FIRST, .cancel_after = 3});
  um_time deadline = UM_FOREVER;
  um_fiber *fiber = spawn(recv_by, &deadline);
  yield_times(1);
  um_fiber_cancel(fiber);
  script_feed(c->s, FD + 1, "xyz", 3);
  for (int i = 0; i < 10; i++) {
    script_answer_fd(c->s, UM_OP_RECV, FD + 1, (answer){.result = 1});
    if (i < 3) CHECK_EQ(um_recv(FD + 1, bytes, 1, 0, UM_FOREVER), 1);
  }
  CHECK_EQ(join(fiber), -ECANCELED);
  return 0;
}

TEST(ops, other_operations_go_on_meanwhile) { play(two_completions_late); }

/* ---- slots and generations ---- */

static int stale_ones(void *argument) {
  scene *c = argument;
  char bytes[4];
  script_feed(c->s, FD, "abcdefghijkl", 12);
  for (int i = 0; i < 3; i++) {
    script_answer(c->s, UM_OP_RECV, (answer){.result = 4, .stale_before = true});
    CHECK_EQ(um_recv(FD, bytes, sizeof bytes, 0, UM_FOREVER), 4);
    CHECK(!memcmp(bytes, &"abcdefghijkl"[4 * i], 4));
  }
  CHECK_EQ(metrics_of(c->r).stale, 2); /* the first use of a slot has no previous one */
  script_deliver(c->s, (uint64_t)77 << 32 | 2, 5);             /* generation never used */
  script_deliver(c->s, (uint64_t)1 << 31, 5);                  /* slot never used */
  script_deliver(c->s, (uint64_t)77 << 32 | 2 | UM_USER_DATA_CANCEL, 0);
  uint64_t wakes = metrics_of(c->r).wakes;
  script_deliver(c->s, UM_USER_DATA_NONE, 0);                  /* another ring's message */
  yield_times(2);
  CHECK_EQ(metrics_of(c->r).stale, 5);
  CHECK_EQ(metrics_of(c->r).wakes, wakes + 1);
  return 0;
}

TEST(ops, stale_completions_are_dropped_and_counted) { play(stale_ones); }

static int generations(void *argument) {
  scene *c = argument;
  um_op *first = um__op_new(c->r, UM_OP_RECV, FD);
  uint64_t before = um__op_user_data(first);
  um__op_release(first);
  um_op *second = um__op_new(c->r, UM_OP_RECV, FD);
  CHECK(second == first); /* last in, first out */
  CHECK(um__op_user_data(second) != before);
  CHECK_EQ(second->generation, (before >> 32) + 1);
  um__op_release(second);
  return 0;
}

TEST(ops, a_reused_slot_has_a_new_generation) { play(generations); }

static void no_completion(um_op *op, const um_completion *completion) {
  int *count = op->owner;
  (void)completion;
  ++*count;
  um__op_release(op);
}

static int many_slots(void *argument) {
  scene *c = argument;
  enum { N = 1000 };
  um_op *ops[N];
  int count = 0;
  for (int i = 0; i < N; i++) {
    ops[i] = um__op_new(c->r, UM_OP_TIMEOUT, -1);
    ops[i]->owner = &count;
    ops[i]->done = no_completion;
    CHECK_EQ(um__op_submit(ops[i]), 0);
  }
  CHECK_EQ(metrics_of(c->r).pending, N);
  for (int i = 0; i < N; i += 2) um__op_cancel(ops[i]);
  for (int i = 0; i < N; i += 2) um__op_cancel(ops[i]); /* twice is once */
  yield_times(3);
  CHECK_EQ(count, N / 2);
  while (script_complete(c->s, UM_OP_TIMEOUT, -ETIME)) yield_times(1);
  CHECK_EQ(count, N);
  CHECK_EQ(script_count(c->s).cancelled, N / 2);
  return 0;
}

TEST(ops, a_thousand_at_once_half_of_them_cancelled) { play(many_slots); }

static int unsupported(void *argument) {
  (void)argument;
  uint32_t word = 0;
  CHECK_EQ(um_futex_wait(&word, 0, UM_FOREVER), -EOPNOTSUPP);
  CHECK_EQ(um_futex_wake(&word, 1), -EOPNOTSUPP);
  int fds[2];
  local_pair(fds);
  CHECK_EQ(um_close(fds[0]), 0); /* closed without the kernel's operation */
  CHECK_EQ(send(fds[1], "x", 1, MSG_NOSIGNAL), -1);
  close(fds[1]);
  return 0;
}

TEST(ops, what_the_kernel_lacks_is_refused_at_once) {
  play_with(unsupported, NULL, &(script_options){.unsupported = UINT64_C(1) << UM_OP_FUTEX_WAIT |
                                                                UINT64_C(1) << UM_OP_FUTEX_WAKE |
                                                                UINT64_C(1) << UM_OP_CLOSE});
}

/* ---- io.h over short, late and failing kernels ---- */

static int short_sends(void *argument) {
  scene *c = argument;
  size_t length;
  script_answer(c->s, UM_OP_SEND, (answer){.result = 3});
  script_answer(c->s, UM_OP_SEND, (answer){.result = 1, .after = 3});
  script_answer(c->s, UM_OP_SEND, (answer){.result = -EAGAIN}); /* O_NONBLOCK: polls */
  CHECK_EQ(um_send(FD, "0123456789", 10, 0, UM_FOREVER), 10);
  CHECK(!strcmp(script_sent(c->s, FD, &length), "0123456789"));
  CHECK_EQ(script_count(c->s).submitted[UM_OP_POLL], 1);
  struct iovec parts[] = {{(void *)(uintptr_t) "ab", 2}, {NULL, 0}, {(void *)(uintptr_t) "cde", 3},
                          {(void *)(uintptr_t) "f", 1}};
  for (int first = 1; first < 6; first++) { /* short at every place */
    script_answer(c->s, UM_OP_SENDMSG, (answer){.result = first});
    CHECK_EQ(um_sendv(FD + first, parts, 4, UM_FOREVER), 6);
    CHECK(!strcmp(script_sent(c->s, FD + first, &length), "abcdef"));
  }
  CHECK_EQ(parts[0].iov_len, 2); /* the caller's vector is not touched */
  CHECK_EQ(um_sendv(FD, parts, 0, UM_FOREVER), 0);
  CHECK_EQ(um_sendv(FD, parts, -1, UM_FOREVER), -EINVAL);
  CHECK_EQ(um_sendv(FD, parts, 1025, UM_FOREVER), -EMSGSIZE);
  return 0;
}

TEST(ops, sends_complete_whole) { play(short_sends); }

static int short_writes(void *argument) {
  scene *c = argument;
  size_t length;
  script_answer(c->s, UM_OP_WRITE, (answer){.result = 4});
  script_answer(c->s, UM_OP_WRITE, (answer){.result = 0}); /* a full device: no endless loop */
  CHECK_EQ(um_write(FD, "0123456789", 10, 0, UM_FOREVER), 4);
  CHECK(!strcmp(script_sent(c->s, FD, &length), "0123"));
  return 0;
}

TEST(ops, a_write_that_takes_nothing_ends) { play(short_writes); }

static int errors_after_bytes(void *argument) {
  scene *c = argument;
  script_answer(c->s, UM_OP_SEND, (answer){.result = 3});
  script_answer(c->s, UM_OP_SEND, (answer){.result = -EPIPE});
  script_answer(c->s, UM_OP_SEND, (answer){.result = -EPIPE});
  CHECK_EQ(um_send(FD, "0123456789", 10, 0, UM_FOREVER), 3);
  CHECK_EQ(um_send(FD, "3456789", 7, 0, UM_FOREVER), -EPIPE); /* calling again reports it */
  script_answer(c->s, UM_OP_SENDMSG, (answer){.result = 2});
  script_answer(c->s, UM_OP_SENDMSG, (answer){.result = -ECONNRESET});
  struct iovec part = {(void *)(uintptr_t) "abcd", 4};
  CHECK_EQ(um_sendv(FD, &part, 1, UM_FOREVER), 2);
  script_answer(c->s, UM_OP_SEND, (answer){.result = 5});
  script_answer(c->s, UM_OP_SEND, (answer){.result = ANSWER_NEVER});
  CHECK_EQ(um_send(FD, "0123456789", 10, 0, um_after(2)), 5);
  return 0;
}

TEST(ops, errors_after_some_bytes_give_a_short_count) { play(errors_after_bytes); }

static int sends_ten(void *argument) {
  (void)argument;
  ssize_t sent = um_send(FD, "0123456789", 10, 0, UM_FOREVER);
  CHECK_EQ(um_send(FD, "56789", 5, 0, UM_FOREVER), -ECANCELED); /* calling again reports it */
  CHECK_EQ(um_fiber_yield(), 0);
  return (int)sent;
}

static int cancelled_after_bytes(void *argument) {
  scene *c = argument;
  script_answer(c->s, UM_OP_SEND, (answer){.result = 5});
  script_answer(c->s, UM_OP_SEND, (answer){.result = ANSWER_NEVER});
  script_answer(c->s, UM_OP_SEND, (answer){.result = ANSWER_NEVER});
  um_fiber *fiber = spawn(sends_ten, NULL);
  yield_times(5);
  um_fiber_cancel(fiber);
  CHECK_EQ(join(fiber), 5);
  return 0;
}

TEST(ops, a_cancellation_after_some_bytes_is_reported_by_the_next_call) { play(cancelled_after_bytes); }

static int receives(void *argument) {
  scene *c = argument;
  char bytes[16];
  script_feed(c->s, FD, "hello world", 11);
  script_end(c->s, FD, 0);
  script_answer(c->s, UM_OP_RECV, (answer){.result = 5, .after = 2});
  CHECK_EQ(um_recv(FD, bytes, sizeof bytes, 0, UM_FOREVER), 5);
  script_answer(c->s, UM_OP_RECV, (answer){.result = -EAGAIN});
  script_answer(c->s, UM_OP_POLL, (answer){.result = 1});
  CHECK_EQ(um_recv(FD, bytes, sizeof bytes, 0, UM_FOREVER), 6);
  CHECK_EQ(um_recv(FD, bytes, sizeof bytes, 0, UM_FOREVER), 0);
  script_answer(c->s, UM_OP_RECV, (answer){.result = -EAGAIN});
  CHECK_EQ(um_recv(FD, bytes, sizeof bytes, MSG_DONTWAIT, UM_FOREVER), -EAGAIN);
  script_answer(c->s, UM_OP_RECV, (answer){.result = -EAGAIN});
  CHECK_EQ(um_recv(FD, bytes, sizeof bytes, 0, um_after(1)), -ETIMEDOUT); /* in its poll */
  script_answer(c->s, UM_OP_RECV, (answer){.result = -ECONNRESET});
  CHECK_EQ(um_recv(FD, bytes, sizeof bytes, 0, UM_FOREVER), -ECONNRESET);
  return 0;
}

TEST(ops, receives_short_late_polled_and_ended) { play(receives); }

static int no_buffer(void *argument) {
  scene *c = argument;
  script_feed(c->s, FD, "hello", 5);
  CHECK_EQ(um_recv(FD, NULL, 5, 0, um_after(5)), -EFAULT); /* must not take a provided one */
  CHECK_EQ(script_count(c->s).lent, 0);
  return 0;
}

TEST(ops, a_receive_without_a_buffer_takes_none_of_the_reactors) { play(no_buffer); }

static int closes_cancelled(void *argument) {
  (void)argument;
  um_fiber_cancel(um_fiber_self());
  CHECK_EQ(um_close(FD), 0);
  CHECK_EQ(um_fiber_yield(), -ECANCELED); /* still pending */
  return 0;
}

TEST(ops, a_cancelled_fiber_still_closes) { play(closes_cancelled); }

/* ---- provided buffers, through a connection ---- */

#include "reactor/conn.h"

static int conn_bytes(void *argument) {
  scene *c = argument;
  um_conn conn;
  char got[64];
  size_t taken = 0;
  um__conn_init(&conn, FD);
  um__conn_attach(&conn, c->r);
  script_feed(c->s, FD, "the quick brown fox", 19);
  script_answer(c->s, UM_OP_RECV_MULTI, (answer){.result = 3});
  script_answer(c->s, UM_OP_RECV_MULTI, (answer){.result = 2, .ends = true}); /* re-armed */
  script_answer(c->s, UM_OP_RECV_MULTI, (answer){.result = -ENOBUFS});        /* starved */
  script_answer(c->s, UM_OP_RECV_MULTI, (answer){.result = -EINTR});
  script_answer(c->s, UM_OP_RECV_MULTI, (answer){.result = -EAGAIN});         /* polls */
  script_answer(c->s, UM_OP_POLL, (answer){.result = 1, .after = 2});
  while (taken < 19) {
    CHECK_EQ(um__conn_wait_readable(&conn, UM_FOREVER), 0);
    taken += um__conn_take(&conn, got + taken, sizeof got - taken);
  }
  CHECK(!memcmp(got, "the quick brown fox", 19));
  CHECK_EQ(metrics_of(c->r).enobufs, 1);
  script_end(c->s, FD, 0);
  CHECK_EQ(um__conn_wait_readable(&conn, UM_FOREVER), 0);
  CHECK_EQ(um__conn_take(&conn, got, sizeof got), 0);
  CHECK_EQ(conn.received_end, 1);
  CHECK_EQ(um__conn_close(&conn, UM_FOREVER), 0);
  return 0;
}

TEST(ops, a_connection_over_endings_starvation_and_polls) { play(conn_bytes); }

typedef struct reader {
  scene *c;
  int fd;
  size_t wanted;
} reader;

static int reads_slowly(void *argument) {
  reader *w = argument;
  um_conn conn;
  char got[512];
  size_t taken = 0;
  um__conn_init(&conn, w->fd);
  um__conn_attach(&conn, w->c->r);
  while (taken < w->wanted) {
    CHECK_EQ(um__conn_wait_readable(&conn, UM_FOREVER), 0);
    CHECK_EQ(um_fiber_yield(), 0);
    size_t part = um__conn_take(&conn, got, 1 + taken % sizeof got);
    for (size_t i = 0; i < part; i++) CHECK_EQ((unsigned char)got[i], (taken + i) * 7 % 251);
    taken += part;
  }
  CHECK_EQ(um__conn_close(&conn, UM_FOREVER), 0);
  return 0;
}

static int random_conns(void *argument) {
  scene *c = argument;
  enum { N = 20, EACH = 20000 };
  unsigned char bytes[EACH];
  reader readers[N];
  um_group group = {0};
  for (size_t i = 0; i < EACH; i++) bytes[i] = (unsigned char)(i * 7 % 251);
  for (int i = 0; i < N; i++) {
    script_feed(c->s, FD + i, bytes, EACH);
    readers[i] = (reader){c, FD + i, EACH};
    CHECK_EQ(um_group_spawn(&group, reads_slowly, &readers[i], NULL), 0);
  }
  CHECK_EQ(um_group_join(&group, UM_FOREVER), 0);
  return 0;
}

TEST(ops, connections_over_random_kernels_lose_nothing) {
  for (uint64_t seed = 1; seed <= 20; seed++)
    play_with(random_conns, &(um_reactor_config){.buffer_count = 4, .buffer_size = 4096},
              &(script_options){.seed = seed});
}

static int conn_output(void *argument) {
  scene *c = argument;
  um_conn conn;
  size_t length;
  um__conn_init(&conn, FD);
  um__conn_attach(&conn, c->r);
  script_answer(c->s, UM_OP_SEND, (answer){.result = 3, .after = 2});
  script_answer(c->s, UM_OP_SEND, (answer){.result = -EAGAIN});
  script_answer(c->s, UM_OP_SEND, (answer){.result = -EINTR});
  CHECK_EQ(um__conn_put(&conn, "hello world", 11), 0);
  CHECK_EQ(um__conn_wait_output(&conn, 0, UM_FOREVER), 0);
  CHECK(!strcmp(script_sent(c->s, FD, &length), "hello world"));
  script_answer(c->s, UM_OP_SEND, (answer){.result = ANSWER_NEVER, .cancel_after = 2});
  CHECK_EQ(um__conn_put(&conn, "late", 4), 0);
  CHECK_EQ(um__conn_wait_output(&conn, 0, um_after(1)), -ETIMEDOUT);
  CHECK_EQ(um__conn_close(&conn, um_after(1)), -ETIMEDOUT);
  CHECK_EQ(script_owned(c->s), 0); /* drained */
  um__conn_init(&conn, FD + 1);
  um__conn_attach(&conn, c->r);
  script_answer(c->s, UM_OP_SEND, (answer){.result = -EPIPE});
  CHECK_EQ(um__conn_put(&conn, "x", 1), 0);
  CHECK_EQ(um__conn_wait_output(&conn, 0, UM_FOREVER), -EPIPE);
  CHECK_EQ(um__conn_put(&conn, "x", 1), -EPIPE); /* latched */
  CHECK_EQ(um__conn_close(&conn, UM_FOREVER), -EPIPE);
  return 0;
}

TEST(ops, a_connections_output_short_late_failed_and_abandoned) { play(conn_output); }
