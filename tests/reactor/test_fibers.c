/* Fibers: life, cancellation exactly as fiber.h says, fairness, sleep, locals. */
#include "harness.h"

#include "reactor/reactor.h"

#include <pthread.h>
#include <stdatomic.h>

SUITE(fibers);

/* ---- life ---- */

static int returns(void *argument) { return *(int *)argument; }

static int joins_for_result(void *argument) {
  (void)argument;
  int value = 42;
  um_fiber *fiber = spawn(returns, &value);
  CHECK_EQ(join(fiber), 42);
  value = -7;
  fiber = spawn(returns, &value);
  yield_times(2); /* has ended before the join */
  CHECK_EQ(join(fiber), -7);
  CHECK_EQ(um_fiber_spawn(NULL, &fiber, returns, &value, NULL), 0);
  CHECK_EQ(um_fiber_join(fiber, NULL, UM_FOREVER), 0); /* nobody asks for the result */
  return 5;
}

TEST(fibers, join_gives_the_result) { CHECK_EQ(run_fibers(joins_for_result, NULL), 5); }

static size_t resident_pages(void) {
  size_t pages = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  CHECK(file != NULL);
  CHECK_EQ(fscanf(file, "%*u %zu", &pages), 1);
  fclose(file);
  return pages;
}

static int naps(void *argument) {
  (void)argument;
  return um_fiber_sleep(um_after(20));
}

/* A stack holds a page at least while its fiber lives, and none afterwards, but for those
 * that are kept for the next. */
static int comes_and_goes_in_thousands(void *argument) {
  enum { COUNT = 4000 };
  static um_fiber *fibers[COUNT];
  (void)argument;
  size_t before = resident_pages();
  for (int i = 0; i < COUNT; i++) fibers[i] = spawn(naps, NULL);
  um_fiber_sleep(um_after(1)); /* all have begun */
  CHECK(resident_pages() >= before + COUNT);
  for (int i = 0; i < COUNT; i++) CHECK_EQ(join(fibers[i]), 0);
  CHECK(resident_pages() < before + COUNT / 2);
  return 0;
}

TEST(fibers, stacks_go_back_to_the_system) {
  if (UNDER_ASAN || UNDER_TSAN || under_valgrind()) SKIP("the tool's memory for each page stays");
  CHECK_EQ(run_fibers(comes_and_goes_in_thousands, NULL), 0);
}

static int counts(void *argument) {
  ++*(int *)argument;
  return 0;
}

static int detaches(void *argument) {
  for (int i = 0; i < 100; i++) CHECK_EQ(um_fiber_spawn(NULL, NULL, counts, argument, NULL), 0);
  return 0;
}

TEST(fibers, detached_ones_run_to_their_end) {
  int count = 0;
  run_fibers(detaches, &count);
  CHECK_EQ(count, 100);
}

TEST(fibers, spawned_before_the_reactor_runs) {
  int count = 0;
  um_fiber *fiber;
  um_reactor *r = reactor_new(NULL);
  CHECK_EQ(um_fiber_spawn(r, &fiber, counts, &count, NULL), 0);
  CHECK_EQ(um_fiber_join(fiber, NULL, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_reactor_run(r), 0);
  CHECK_EQ(count, 1);
  CHECK_EQ(um_fiber_join(fiber, NULL, UM_FOREVER), 0); /* has ended: needs no fiber */
  reactor_finish(r);
}

static int refused(void *argument) {
  um_reactor *r = argument;
  um_fiber *fiber;
  um_fiber_options options = {.stack_size = 16384 - 4096};
  CHECK_EQ(um_fiber_spawn(r, &fiber, returns, NULL, &options), UM_ECONFIG);
  options.stack_size = 16384 + 1;
  CHECK_EQ(um_fiber_spawn(r, &fiber, returns, NULL, &options), UM_ECONFIG);
  options.stack_size = (64u << 20) + 4096;
  CHECK_EQ(um_fiber_spawn(r, &fiber, returns, NULL, &options), UM_ECONFIG);
  int value = 3;
  unsigned good[] = {16384, 20480, 1u << 20, 64u << 20};
  for (int i = 0; i < 4; i++) {
    options.stack_size = good[i];
    CHECK_EQ(um_fiber_spawn(r, &fiber, returns, &value, &options), 0);
    CHECK_EQ(join(fiber), 3);
  }
  CHECK_EQ(um_fiber_join(um_fiber_self(), NULL, UM_FOREVER), -EDEADLK);
  return 0;
}

static int refuses(void *argument) {
  (void)argument;
  return refused(um_reactor_current());
}

TEST(fibers, stack_size_is_checked_and_joining_itself_is_refused) { run_fibers(refuses, NULL); }

TEST(fibers, calls_outside_fibers_say_so) {
  um_fiber *fiber;
  um_group group = {0};
  CHECK_EQ(um_fiber_spawn(NULL, &fiber, returns, NULL, NULL), UM_ENOTFIBER);
  CHECK_EQ(um_fiber_yield(), UM_ENOTFIBER);
  CHECK_EQ(um_fiber_sleep(um_after(1)), UM_ENOTFIBER);
  CHECK_EQ(um_task_wait(um_after(1)), UM_ENOTFIBER);
  CHECK_EQ(um_group_join(&group, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_fiber_cancelled(), 0);
  CHECK(um_fiber_self() == NULL);
  CHECK(um_task_current() == NULL);
  CHECK(um_reactor_current() == NULL);
  CHECK(um_local_get(0) == NULL);
  CHECK_EQ(um_local_set(0, &group), UM_ENOTFIBER);
}

static int waits_in_join(void *argument) { return um_fiber_join(argument, NULL, UM_FOREVER); }

static int sleeps_until_cancelled(void *argument) {
  (void)argument;
  return um_fiber_sleep(UM_FOREVER);
}

static int join_leaves_handle(void *argument) {
  (void)argument;
  um_fiber *sleeper = spawn(sleeps_until_cancelled, NULL);
  CHECK_EQ(um_fiber_join(sleeper, NULL, um_now() - 1), -ETIMEDOUT);
  CHECK_EQ(um_fiber_join(sleeper, NULL, um_after(2)), -ETIMEDOUT);
  um_fiber *joiner = spawn(waits_in_join, sleeper);
  yield_times(1);
  um_fiber_cancel(joiner);
  CHECK_EQ(join(joiner), -ECANCELED);
  um_fiber_cancel(sleeper);
  CHECK_EQ(join(sleeper), -ECANCELED);
  return 0;
}

TEST(fibers, join_may_time_out_or_be_cancelled_and_be_repeated) { run_fibers(join_leaves_handle, NULL); }

/* ---- cancellation ---- */

typedef struct log {
  int first, second, third, cancelled_before, cancelled_after;
} log;

static int waits_three_times(void *argument) {
  log *l = argument;
  l->cancelled_before = um_fiber_cancelled();
  l->first = um_fiber_sleep(um_after(2000));
  l->second = um_fiber_sleep(um_after(1));
  l->third = um_fiber_yield();
  l->cancelled_after = um_fiber_cancelled();
  return 0;
}

static int cancels_before_start(void *argument) {
  log *l = argument;
  um_fiber *fiber = spawn(waits_three_times, l);
  um_fiber_cancel(fiber);
  join(fiber);
  return 0;
}

TEST(fibers, cancelled_before_it_starts_it_runs_and_its_first_wait_fails_once) {
  log l;
  run_fibers(cancels_before_start, &l);
  CHECK_EQ(l.cancelled_before, 1);
  CHECK_EQ(l.first, -ECANCELED);
  CHECK_EQ(l.second, 0);
  CHECK_EQ(l.third, 0);
  CHECK_EQ(l.cancelled_after, 1);
}

static int cancels_parked_twice(void *argument) {
  log *l = argument;
  um_fiber *fiber = spawn(waits_three_times, l);
  yield_times(1);
  um_fiber_cancel(fiber);
  um_fiber_cancel(fiber);
  join(fiber);
  return 0;
}

TEST(fibers, cancelled_twice_while_parked_is_once) {
  log l;
  run_fibers(cancels_parked_twice, &l);
  CHECK_EQ(l.cancelled_before, 0);
  CHECK_EQ(l.first, -ECANCELED);
  CHECK_EQ(l.second, 0);
  CHECK_EQ(l.cancelled_after, 1);
}

static int waits_on_event(void *argument) {
  um_event *event = argument;
  CHECK_EQ(um_event_wait(event, UM_FOREVER), 0); /* it happened: its result counts */
  CHECK_EQ(um_fiber_cancelled(), 1);
  CHECK_EQ(um_fiber_yield(), -ECANCELED);        /* pending until here */
  CHECK_EQ(um_fiber_yield(), 0);
  return 0;
}

static int cancels_ready(void *argument) {
  (void)argument;
  um_event event;
  um_event_init(&event);
  um_fiber *fiber = spawn(waits_on_event, &event);
  yield_times(1);
  um_event_set(&event);
  um_fiber_cancel(fiber); /* runnable already */
  join(fiber);
  um_event_reset(&event);
  fiber = spawn(waits_on_event, &event);
  yield_times(1);
  um_fiber_cancel(fiber); /* the other way round: before it could run, it was set, too */
  um_event_set(&event);
  join(fiber);
  return 0;
}

TEST(fibers, what_happened_anyway_is_returned_and_the_cancellation_stays) {
  run_fibers(cancels_ready, NULL);
}

static int cancels_itself(void *argument) {
  (void)argument;
  um_fiber_cancel(um_fiber_self());
  CHECK_EQ(um_fiber_cancelled(), 1);
  CHECK_EQ(um_fiber_sleep(um_after(1000000)), -ECANCELED);
  CHECK_EQ(um_fiber_sleep(um_after(1)), 0);
  um_fiber_cancel(um_fiber_self());
  CHECK_EQ(um_fiber_sleep(um_now() - 1), -ECANCELED); /* rather than a passed deadline */
  return 0;
}

TEST(fibers, cancels_itself) { run_fibers(cancels_itself, NULL); }

static int cancels_ended(void *argument) {
  int value = 9;
  (void)argument;
  um_fiber *fiber = spawn(returns, &value);
  yield_times(2);
  um_fiber_cancel(fiber);
  CHECK_EQ(join(fiber), 9);
  return 0;
}

TEST(fibers, cancelling_one_that_has_ended_is_harmless) { run_fibers(cancels_ended, NULL); }

static int cancel_all_main(void *argument) {
  (void)argument;
  um_fiber *sleepers[10];
  for (int i = 0; i < 10; i++) sleepers[i] = spawn(sleeps_until_cancelled, NULL);
  yield_times(1);
  um_reactor_cancel_all(um_reactor_current());
  for (int i = 0; i < 10; i++) {
    int result;
    int joined = um_fiber_join(sleepers[i], &result, UM_FOREVER);
    if (i == 0 && joined == -ECANCELED) joined = um_fiber_join(sleepers[i], &result, UM_FOREVER);
    CHECK_EQ(joined, 0);
    CHECK_EQ(result, -ECANCELED);
  }
  return 0;
}

TEST(fibers, cancel_all_reaches_everyone) { run_fibers(cancel_all_main, NULL); }

/* ---- fairness and time ---- */

typedef struct turns {
  char order[64];
  int length;
} turns;

typedef struct turn {
  turns *all;
  char name;
} turn;

static int yields_four(void *argument) {
  turn *t = argument;
  for (int i = 0; i < 4; i++) {
    t->all->order[t->all->length++] = t->name;
    CHECK_EQ(um_fiber_yield(), 0);
  }
  return 0;
}

static int takes_turns(void *argument) {
  static turn each[3];
  um_fiber *fibers[3];
  for (int i = 0; i < 3; i++) {
    each[i] = (turn){argument, (char)('a' + i)};
    fibers[i] = spawn(yields_four, &each[i]);
  }
  for (int i = 0; i < 3; i++) join(fibers[i]);
  return 0;
}

TEST(fibers, yield_lets_every_other_go_first) {
  turns all = {.length = 0};
  run_fibers(takes_turns, &all);
  CHECK(!strcmp(all.order, "abcabcabcabc"));
}

typedef struct ping {
  um_task *other;
  bool *stop;
} ping;

static int wakes_other(void *argument) {
  ping *p = argument;
  while (!*p->stop) {
    um_task_wake(p->other);
    um_task_wait(um_after(1000));
  }
  um_task_wake(p->other);
  return 0;
}

static int stops_them(void *argument) {
  CHECK_EQ(um_fiber_sleep(um_after(5)), 0);
  *(bool *)argument = true;
  return 0;
}

TEST(fibers, two_that_wake_each_other_cannot_keep_a_timer_from_firing) {
  bool stop = false;
  um_fiber *one, *two;
  um_reactor *r = reactor_new(&(um_reactor_config){.max_switches = 8});
  ping pings[2] = {{NULL, &stop}, {NULL, &stop}};
  CHECK_EQ(um_fiber_spawn(r, &one, wakes_other, &pings[0], NULL), 0);
  CHECK_EQ(um_fiber_spawn(r, &two, wakes_other, &pings[1], NULL), 0);
  pings[0].other = (um_task *)two; /* a fiber begins with its task */
  pings[1].other = (um_task *)one;
  CHECK_EQ(um_fiber_spawn(r, NULL, stops_them, &stop, NULL), 0);
  CHECK_EQ(um_reactor_run(r), 0);
  CHECK_EQ(um_fiber_join(one, NULL, UM_FOREVER), 0);
  CHECK_EQ(um_fiber_join(two, NULL, UM_FOREVER), 0);
  um_metrics m = metrics_of(r);
  CHECK(m.ticks >= m.switches / 8);
  reactor_finish(r);
}

typedef struct wakeup {
  um_time at;
  int index, *count;
} wakeup;

static int sleeps_and_checks(void *argument) {
  wakeup *w = argument;
  CHECK_EQ(um_fiber_sleep(w->at), 0);
  CHECK(um_now() >= w->at);
  CHECK_EQ((*w->count)++, w->index);
  return 0;
}

static int sleep_order(void *argument) {
  (void)argument;
  enum { N = 20 };
  wakeup w[N];
  um_fiber *fibers[N];
  int count = 0;
  um_time start = um_after(5);
  for (int i = 0; i < N; i++) {
    int at = (i * 7) % N; /* not in the order of time */
    w[i] = (wakeup){start + at * UM_MS / 2, at, &count};
    fibers[i] = spawn(sleeps_and_checks, &w[i]);
  }
  for (int i = 0; i < N; i++) join(fibers[i]);
  return 0;
}

TEST(fibers, sleepers_wake_in_the_order_of_their_deadlines_and_never_early) {
  run_fibers(sleep_order, NULL);
}

static int past_deadlines(void *argument) {
  (void)argument;
  um_time past[] = {0, 1, -1, INT64_MIN, um_now() - UM_SECOND, um_now()};
  for (size_t i = 0; i < sizeof past / sizeof *past; i++) {
    CHECK_EQ(um_fiber_sleep(past[i]), 0);
    CHECK_EQ(um_task_wait(past[i]), -ETIMEDOUT);
  }
  CHECK_EQ(um_after(-1), UM_FOREVER);
  CHECK(um_after(INT64_MAX) > um_now()); /* no overflow into the past */
  return 0;
}

TEST(fibers, deadlines_in_the_past) { run_fibers(past_deadlines, NULL); }

/* ---- locals ---- */

static int destroyed[2];
static void destroy_one(void *value) { destroyed[0] += *(int *)value; }

static int uses_locals(void *argument) {
  int *keys = argument;
  static int three = 3, four = 4;
  CHECK(um_local_get(keys[0]) == NULL);
  CHECK_EQ(um_local_set(keys[0], &three), 0);
  CHECK_EQ(um_local_set(keys[1], &four), 0);
  CHECK_EQ(um_fiber_yield(), 0);
  CHECK(um_local_get(keys[0]) == &three);
  CHECK(um_local_get(keys[1]) == &four);
  CHECK(um_local_get(-1) == NULL);
  CHECK(um_local_get(UM_LOCAL_KEYS) == NULL);
  CHECK_EQ(um_local_set(-1, &four), -EINVAL);
  CHECK_EQ(um_local_set(UM_LOCAL_KEYS, &four), -EINVAL);
  return 0;
}

static int locals_main(void *argument) {
  um_fiber *one = spawn(uses_locals, argument), *two = spawn(uses_locals, argument);
  join(one);
  join(two);
  CHECK_EQ(destroyed[0], 6);
  return 0;
}

TEST(fibers, locals_belong_to_one_fiber_and_are_destroyed_with_it) {
  int keys[2] = {um_local_create(destroy_one), um_local_create(NULL)};
  CHECK(keys[0] >= 0 && keys[1] == keys[0] + 1);
  destroyed[0] = 0;
  run_fibers(locals_main, keys);
}

static int waits_in_destructor_key;
static void waits_when_destroyed(void *value) {
  CHECK_EQ(um_fiber_sleep(um_after(1)), 0);
  CHECK_EQ(um_local_set(waits_in_destructor_key, NULL), 0);
  ++*(int *)value;
}

static int sets_local(void *argument) {
  CHECK_EQ(um_local_set(waits_in_destructor_key, argument), 0);
  return 0;
}

TEST(fibers, a_locals_destructor_may_wait) {
  int count = 0;
  waits_in_destructor_key = um_local_create(waits_when_destroyed);
  CHECK(waits_in_destructor_key >= 0);
  run_fibers(sets_local, &count);
  CHECK_EQ(count, 1);
}

TEST(fibers, zz_keys_run_out) {
  int key, made = 0;
  while ((key = um_local_create(NULL)) >= 0) made++;
  CHECK(made <= UM_LOCAL_KEYS);
  CHECK_EQ(key, -EAGAIN);
}

/* ---- many ---- */

static int spawns_over_time(void *argument) {
  int total = *(int *)argument, count = 0;
  for (int i = 0; i < total; i++) {
    CHECK_EQ(um_fiber_spawn(NULL, NULL, counts, &count, NULL), 0);
    if (i % 100 == 99) CHECK_EQ(um_fiber_yield(), 0);
  }
  yield_times(2000);
  CHECK_EQ(count, total);
  return 0;
}

TEST(fibers, a_hundred_thousand_over_time) {
  int total = scaled(100000);
  run_fibers(spawns_over_time, &total);
}

static int waits_for_event(void *argument) { return um_event_wait(argument, UM_FOREVER); }

static int holds_many(void *argument) {
  int total = *(int *)argument;
  um_event event;
  um_group group;
  um_event_init(&event);
  um_group_init(&group);
  um_fiber_options small = {.stack_size = 16384};
  for (int i = 0; i < total; i++) CHECK_EQ(um_group_spawn(&group, waits_for_event, &event, &small), 0);
  yield_times(total / 100); /* max_switches a round */
  CHECK_EQ(group.count, total);
  um_event_set(&event);
  CHECK_EQ(um_group_join(&group, UM_FOREVER), 0);
  return 0;
}

TEST(fibers, ten_thousand_alive) {
  int total = scaled(10000);
  run_fibers(holds_many, &total);
}

/* ---- what a switch must keep ---- */

#if defined(__x86_64__)
static uint32_t mxcsr(void) {
  uint32_t value;
  __asm__ volatile("stmxcsr %0" : "=m"(value));
  return value;
}

static void set_mxcsr(uint32_t value) { __asm__ volatile("ldmxcsr %0" ::"m"(value)); }

/* Holds six values in callee-saved registers across a switch. */
static void registers_survive(uint64_t seed) {
  register uint64_t b __asm__("rbx") = seed, c __asm__("r12") = seed + 1, d __asm__("r13") = seed + 2,
                    e __asm__("r14") = seed + 3, f __asm__("r15") = seed + 4;
  __asm__ volatile("" : "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f));
  um_fiber_yield();
  __asm__ volatile("" : "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f));
  CHECK(b == seed && c == seed + 1 && d == seed + 2 && e == seed + 3 && f == seed + 4);
}

static int rounds_its_way(void *argument) {
  uint32_t mode = (uint32_t)(uintptr_t)argument << 13;
  uint16_t x87, wanted = (uint16_t)(0x37f | (mode >> 3));
  set_mxcsr((mxcsr() & ~0x6000u) | mode);
  __asm__ volatile("fldcw %0" ::"m"(wanted));
  for (int i = 0; i < 50; i++) {
    registers_survive((uint64_t)mode * 77 + (uint64_t)i);
    CHECK_EQ(mxcsr() & 0x6000u, mode);
    __asm__ volatile("fnstcw %0" : "=m"(x87));
    CHECK_EQ(x87 & 0xc00, wanted & 0xc00);
  }
  return 0;
}

static int rounding(void *argument) {
  (void)argument;
  um_fiber *fibers[4];
  uint32_t before = mxcsr();
  for (uintptr_t i = 0; i < 4; i++) fibers[i] = spawn(rounds_its_way, (void *)i);
  for (int i = 0; i < 4; i++) join(fibers[i]);
  CHECK_EQ(mxcsr() & 0x6000u, before & 0x6000u);
  return 0;
}

TEST(fibers, registers_and_rounding_mode_survive_switches) {
  if (under_valgrind()) SKIP("valgrind does not model rounding modes");
  uint32_t before = mxcsr();
  run_fibers(rounding, NULL);
  CHECK_EQ(mxcsr() & 0x6000u, before & 0x6000u);
}
#endif

static int errno_main(void *argument) {
  (void)argument;
  double sum = 0;
  for (int i = 1; i < 100; i++) { /* values in vector registers and on the stack */
    double part = 1.0 / i;
    CHECK_EQ(um_fiber_yield(), 0);
    sum += part;
  }
  CHECK(sum > 5.17 && sum < 5.18);
  return 0;
}

static int floats(void *argument) {
  (void)argument;
  um_fiber *one = spawn(errno_main, NULL), *two = spawn(errno_main, NULL);
  join(one);
  join(two);
  return 0;
}

TEST(fibers, floating_point_values_survive_switches) { run_fibers(floats, NULL); }
