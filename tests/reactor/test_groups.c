/* Groups: cancelled and joined together; the first negative result is theirs. */
#include "harness.h"

SUITE(groups);

static int returns(void *argument) { return (int)(intptr_t)argument; }

static int forever(void *argument) {
  (void)argument;
  return um_fiber_sleep(UM_FOREVER);
}

static int sleeps_then_returns(void *argument) {
  int *at_result = argument;
  CHECK_EQ(um_fiber_sleep(um_after(at_result[0])), 0);
  return at_result[1];
}

static int first_negative(void *argument) {
  (void)argument;
  int late[] = {6, -EIO}, early[] = {1, -EPIPE};
  um_group group;
  um_group_init(&group);
  CHECK_EQ(um_group_spawn(&group, returns, (void *)(intptr_t)5, NULL), 0);
  CHECK_EQ(um_group_spawn(&group, sleeps_then_returns, late, NULL), 0);
  CHECK_EQ(um_group_spawn(&group, sleeps_then_returns, early, NULL), 0);
  CHECK_EQ(group.count, 3);
  CHECK_EQ(um_group_join(&group, UM_FOREVER), 0);
  CHECK_EQ(group.count, 0);
  CHECK_EQ(group.result, -EPIPE);
  return 0;
}

TEST(groups, result_is_the_first_negative_one) { run_fibers(first_negative, NULL); }

static int cancel_and_join(void *argument) {
  (void)argument;
  um_group group = {0};
  for (int i = 0; i < 50; i++) CHECK_EQ(um_group_spawn(&group, forever, NULL, NULL), 0);
  CHECK_EQ(um_group_join(&group, um_after(1)), -ETIMEDOUT);
  CHECK_EQ(um_group_join(&group, um_now() - 1), -ETIMEDOUT);
  CHECK_EQ(group.count, 50);
  um_group_cancel(&group);
  CHECK_EQ(um_group_join(&group, UM_FOREVER), 0);
  CHECK_EQ(group.result, -ECANCELED);
  CHECK_EQ(um_group_join(&group, um_now() - 1), 0); /* empty: nothing to wait for */
  return 0;
}

TEST(groups, cancel_then_join) { run_fibers(cancel_and_join, NULL); }

static int joins_group(void *argument) { return um_group_join(argument, UM_FOREVER); }

static int several_joiners(void *argument) {
  (void)argument;
  um_group group = {0};
  CHECK_EQ(um_group_spawn(&group, forever, NULL, NULL), 0);
  um_fiber *joiners[3];
  for (int i = 0; i < 3; i++) joiners[i] = spawn(joins_group, &group);
  yield_times(1);
  um_fiber_cancel(joiners[1]);
  CHECK_EQ(join(joiners[1]), -ECANCELED);
  CHECK_EQ(group.count, 1);
  um_group_cancel(&group);
  CHECK_EQ(join(joiners[0]), 0);
  CHECK_EQ(join(joiners[2]), 0);
  return 0;
}

TEST(groups, several_may_join_and_one_be_cancelled) { run_fibers(several_joiners, NULL); }

typedef struct grower {
  um_group *group;
  int left;
} grower;

static int spawns_next(void *argument) {
  grower *g = argument;
  if (g->left-- > 0) CHECK_EQ(um_group_spawn(g->group, spawns_next, g, NULL), 0);
  return um_fiber_yield();
}

static int grows(void *argument) {
  (void)argument;
  um_group group = {0};
  grower g = {&group, 500};
  CHECK_EQ(um_group_spawn(&group, spawns_next, &g, NULL), 0);
  CHECK_EQ(um_group_join(&group, UM_FOREVER), 0);
  CHECK_EQ(g.left, -1);
  return 0;
}

TEST(groups, members_may_add_members) { run_fibers(grows, NULL); }

TEST(groups, needs_a_reactor) {
  um_group group = {0};
  CHECK_EQ(um_group_spawn(&group, returns, NULL, NULL), UM_ENOTFIBER);
}
