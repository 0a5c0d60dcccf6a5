/* Timers: one heap with deadlines that move for nothing; against a plain model. */
#include "harness.h"

#include "reactor/reactor.h"

SUITE(timers);

typedef struct tracked {
  struct um_timer timer;
  um_time wanted; /* what the model thinks; UM_FOREVER: not set */
  int fired;
} tracked;

static um_time last_fired;

static void fires(struct um_timer *timer) {
  tracked *t = (tracked *)timer;
  CHECK(t->wanted != UM_FOREVER); /* neither cleared nor fired before */
  CHECK(t->wanted <= um_now());
  CHECK(t->wanted >= last_fired); /* in order within one expiry */
  last_fired = t->wanted;
  t->wanted = UM_FOREVER;
  t->fired++;
}

static tracked *timers_new(um_reactor *r, int count) {
  tracked *all = calloc((size_t)count, sizeof *all);
  CHECK(all != NULL);
  for (int i = 0; i < count; i++) {
    CHECK_EQ(um__timer_reserve(r), 0);
    all[i].timer = (struct um_timer){.deadline = UM_FOREVER, .fire = fires};
    all[i].wanted = UM_FOREVER;
  }
  return all;
}

static void timers_end(um_reactor *r, tracked *all, int count) {
  for (int i = 0; i < count; i++) {
    um__timer_remove(r, &all[i].timer);
    um__timer_unreserve(r);
  }
  CHECK_EQ(r->timer_count, 0);
  CHECK_EQ(um_reactor_destroy(r), 0);
  free(all);
}

static void set(um_reactor *r, tracked *t, um_time at) {
  um__timer_set(r, &t->timer, at);
  t->wanted = at;
}

static um_time earliest(const tracked *all, int count) {
  um_time least = UM_FOREVER;
  for (int i = 0; i < count; i++)
    if (all[i].wanted < least) least = all[i].wanted;
  return least;
}

static uint64_t seed = 88172645463325252u;
static unsigned roll(unsigned sides) {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  seed ^= seed << 17;
  return (unsigned)(seed >> 33) % sides;
}

TEST(timers, a_million_sets_and_resets_fire_nothing) {
  enum { N = 1000 };
  um_reactor *r = reactor_new(NULL);
  tracked *all = timers_new(r, N);
  int total = scaled(1000000);
  um_time base = um_now() + 1000 * UM_SECOND;
  for (int i = 0; i < total; i++) {
    set(r, &all[i % N], base + (um_time)roll(1000000));
    if (i % 3) {
      um__timer_clear(&all[i % N].timer);
      all[i % N].wanted = UM_FOREVER;
    }
  }
  CHECK(r->timer_count <= N);
  CHECK_EQ(um__timers_next(r), earliest(all, N));
  um__timers_expire(r, um_now());
  CHECK_EQ(metrics_of(r).timers, 0);
  timers_end(r, all, N);
}

/* The heap's deadlines are virtual: only those in the past are due. */
static void one_step(um_reactor *r, tracked *all, int count) {
  tracked *t = &all[roll((unsigned)count)];
  switch (roll(6)) {
    case 0:
      um__timer_clear(&t->timer);
      t->wanted = UM_FOREVER;
      break;
    case 1:
      um__timer_remove(r, &t->timer);
      t->timer.deadline = t->wanted = UM_FOREVER;
      break;
    case 2:
      set(r, t, um_now() - (um_time)roll(1000));
      break;
    default:
      set(r, t, um_now() + 1000 * UM_SECOND + (um_time)roll(100000));
  }
}

TEST(timers, random_against_a_model) {
  enum { N = 200 };
  um_reactor *r = reactor_new(NULL);
  tracked *all = timers_new(r, N);
  uint64_t fired = 0;
  for (int i = 0; i < scaled(20000); i++) {
    one_step(r, all, N);
    if (roll(4)) continue;
    CHECK_EQ(um__timers_next(r), earliest(all, N));
    um_time now = um_now();
    int due = 0, before = 0, after = 0;
    for (int j = 0; j < N; j++) due += all[j].wanted <= now, before += all[j].fired;
    last_fired = INT64_MIN;
    um__timers_expire(r, um_now());
    for (int j = 0; j < N; j++) after += all[j].fired;
    CHECK_EQ(after - before, due); /* each of them exactly once */
    fired += (uint64_t)due;
  }
  CHECK_EQ(metrics_of(r).timers, fired);
  CHECK(fired > 0);
  timers_end(r, all, N);
}

TEST(timers, removal_keeps_the_order_of_the_rest) {
  enum { N = 64 };
  for (int gone = 0; gone < N; gone++) {
    um_reactor *r = reactor_new(NULL);
    tracked *all = timers_new(r, N);
    for (int i = 0; i < N; i++) set(r, &all[i], 1 + (i * 37) % N);
    um__timer_remove(r, &all[gone].timer);
    all[gone].wanted = UM_FOREVER;
    last_fired = INT64_MIN;
    um__timers_expire(r, um_now());
    for (int i = 0; i < N; i++) CHECK_EQ(all[i].fired, i != gone);
    CHECK_EQ(um__timers_next(r), UM_FOREVER);
    timers_end(r, all, N);
    gone += UNDER_ASAN || UNDER_TSAN ? 8 : 3;
  }
}

static tracked *again;
static um_reactor *again_reactor;
static void sets_itself_again(struct um_timer *timer) {
  tracked *t = (tracked *)timer;
  if (++t->fired < 5) um__timer_set(again_reactor, timer, 1);
}

TEST(timers, one_may_set_itself_again_when_it_fires) {
  um_reactor *r = again_reactor = reactor_new(NULL);
  again = timers_new(r, 1);
  again->timer.fire = sets_itself_again;
  um__timer_set(r, &again->timer, um_now() - 1);
  um__timers_expire(r, um_now());
  CHECK_EQ(again->fired, 5);
  timers_end(r, again, 1);
}

static int set_and_clear_in_fibers(void *argument) {
  int fds[2];
  char byte = 'x';
  local_pair(fds);
  for (int i = 0; i < *(int *)argument; i++) { /* a deadline set and cleared for each */
    CHECK_EQ(um_send(fds[0], &byte, 1, 0, um_after(10000)), 1);
    CHECK_EQ(um_recv(fds[1], &byte, 1, 0, um_after(10000 + i)), 1);
  }
  close(fds[0]);
  close(fds[1]);
  CHECK_EQ(metrics_of(um_reactor_current()).timers, 0);
  return 0;
}

TEST(timers, deadlines_of_finished_operations_do_not_fire) {
  int rounds = scaled(20000);
  run_fibers(set_and_clear_in_fibers, &rounds);
}
