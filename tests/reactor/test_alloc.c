/* Every allocation of the library fails in turn: no crash, no leak, and a clear answer. */
#include "backend_scripted.h"
#include "harness.h"

#include <bio_uring/io.h>

SUITE(alloc);

#define MOST 2000

/* ---- creating ---- */

TEST(alloc, creating_a_reactor) {
  for (unsigned n = 0; n < MOST; n++) {
    um_reactor *r = (um_reactor *)1;
    um_error error;
    unsigned before = open_fds();
    fail_allocation(n);
    int result = um_reactor_create(&r, &(um_reactor_config){.zerocopy_threshold = 4096}, &error);
    if (!allocation_failed()) {
      CHECK(n > 3);
      CHECK_EQ(result, 0);
      CHECK_EQ(um_reactor_destroy(r), 0);
      return;
    }
    if (result == 0) { /* it could do without */
      CHECK_EQ(um_reactor_destroy(r), 0);
    } else {
      CHECK_EQ(result, -ENOMEM);
      CHECK(r == NULL);
      CHECK(error.message[0]);
    }
    CHECK_EQ(open_fds(), before);
  }
  CHECK(false);
}

TEST(alloc, um_run) {
  for (unsigned n = 0; n < 30; n++) {
    fail_allocation(n);
    int result = um_run((int (*)(void *))(uintptr_t)um_fiber_yield, NULL);
    bool failed = allocation_failed();
    CHECK(result == 0 || (failed && result == -ENOMEM));
  }
}

/* ---- a life with everything in it ---- */

typedef struct life {
  int fds[2], listen_fd;
  uint16_t port;
  int result; /* of the last step that failed */
} life;

static bool enough(life *l, long long result) {
  if (result >= 0) return true;
  CHECK_EQ(result, -ENOMEM);
  l->result = (int)result;
  return false;
}

static int pass(void *argument) {
  (void)argument;
  return 3;
}

static int waits_in_join(void *argument) {
  int result = um_fiber_join(argument, NULL, um_after(1000));
  return result;
}

static void spawns(life *l) {
  um_fiber *fibers[80];
  int made = 0;
  for (; made < 80; made++) { /* more than one arena of stacks */
    int result = um_fiber_spawn(NULL, &fibers[made], pass, NULL, NULL);
    if (!enough(l, result)) break;
  }
  for (int i = 0; i < made; i++) CHECK_EQ(join(fibers[i]), 3);
  um_fiber_options other = {.stack_size = 32768};
  um_fiber *fiber;
  if (enough(l, um_fiber_spawn(NULL, &fiber, pass, NULL, &other))) CHECK_EQ(join(fiber), 3);
}

static void groups(life *l) {
  um_group group = {0};
  for (int i = 0; i < 5; i++) enough(l, um_group_spawn(&group, pass, NULL, NULL));
  CHECK_EQ(um_group_join(&group, UM_FOREVER), 0);
}

static void transfers(life *l) {
  char bytes[64] = "bytes";
  struct iovec parts[20];
  for (int i = 0; i < 20; i++) parts[i] = (struct iovec){bytes, 2};
  if (enough(l, um_send(l->fds[0], bytes, 5, 0, UM_FOREVER)))
    enough(l, um_recv(l->fds[1], bytes, sizeof bytes, 0, UM_FOREVER));
  if (enough(l, um_sendv(l->fds[0], parts, 20, UM_FOREVER)))
    enough(l, um_recv(l->fds[1], bytes, sizeof bytes, 0, UM_FOREVER));
  int result = (int)um_recv(l->fds[1], bytes, sizeof bytes, MSG_DONTWAIT, UM_FOREVER);
  CHECK(result == -EAGAIN || result == -ENOMEM || result > 0);
}

static void accepts(life *l) {
  um_acceptor *a;
  if (!enough(l, um_acceptor_create(&a, l->listen_fd))) return;
  int client, accepted;
  CHECK_EQ(dial(l->port, &client), 0);
  accepted = um_acceptor_next(a, um_after(100)); /* backs off and comes back */
  if (accepted == -ETIMEDOUT) { /* without memory to keep it, that one was closed */
    close(client);
    CHECK_EQ(dial(l->port, &client), 0);
    accepted = um_acceptor_next(a, um_after(10000));
  }
  CHECK(accepted >= 0);
  close(accepted);
  close(client);
  um_acceptor_destroy(a);
}

static void local_data(life *l) {
  static int key = -2;
  if (key == -2) key = um_local_create(NULL);
  enough(l, um_local_set(key, l));
}

static void queues(life *l) {
  um_queue *q;
  void *out;
  if (!enough(l, um_queue_create(&q, 2))) return;
  CHECK_EQ(um_queue_push(q, l, UM_FOREVER), 0); /* nothing of it can fail */
  CHECK_EQ(um_queue_pop(q, &out, UM_FOREVER), 0);
  um_queue_destroy(q);
}

static void posts(life *l) { enough(l, um_post(um_reactor_current(), pass, NULL)); }

/* More operations at once than one chunk of them holds. */
static int receives_briefly(void *argument) {
  char byte;
  ssize_t result = um_recv(((life *)argument)->fds[1], &byte, 1, 0, um_after(3));
  CHECK(result == -ETIMEDOUT || result == -ENOMEM);
  return 0;
}

static void many_operations(life *l) {
  um_group group = {0};
  for (int i = 0; i < 200; i++) enough(l, um_group_spawn(&group, receives_briefly, l, NULL));
  CHECK_EQ(um_group_join(&group, UM_FOREVER), 0);
}

static int lives(void *argument) {
  life *l = argument;
  (void)waits_in_join;
  spawns(l);
  groups(l);
  transfers(l);
  accepts(l);
  local_data(l);
  queues(l);
  posts(l);
  many_operations(l);
  return um_fiber_yield();
}

/* Returns false once n is beyond the last allocation. */
static bool live_with_failure(unsigned n, bool from_there_on) {
  life l = {.result = 0};
  local_pair(l.fds);
  l.listen_fd = listener(&l.port, 10);
  um_reactor *r = reactor_new(NULL);
  if (from_there_on) fail_allocations_from(n);
  else fail_allocation(n);
  int spawned = um_fiber_spawn(r, NULL, lives, &l, NULL);
  CHECK(spawned == 0 || spawned == -ENOMEM);
  int result = spawned == 0 ? um_reactor_run(r) : 0;
  bool failed = allocation_failed();
  if (result < 0) { /* it could not even start: once more */
    CHECK_EQ(result, -ENOMEM);
    CHECK(failed);
    CHECK_EQ(um_reactor_run(r), 0);
  }
  CHECK_EQ(metrics_of(r).fibers, 0);
  CHECK_EQ(um_reactor_destroy(r), 0);
  close(l.fds[0]);
  close(l.fds[1]);
  close(l.listen_fd);
  return failed;
}

TEST(alloc, each_one_of_a_whole_life) {
  unsigned before = open_fds(), n = 0;
  while (n < MOST && live_with_failure(n, false)) n++;
  CHECK(n > 10 && n < MOST);
  CHECK_EQ(open_fds(), before);
}

static int waits_for_memory(void *argument) {
  char byte;
  int *fds = argument;
  ssize_t result = um_recv(fds[1], &byte, 1, 0, um_after(1));
  CHECK(result == -ENOMEM || result == -ETIMEDOUT);
  um_fiber *fiber;
  for (int i = 0; i < 200; i++) {
    int spawned = um_fiber_spawn(NULL, &fiber, pass, NULL, NULL);
    if (spawned == -ENOMEM) return 0;
    CHECK_EQ(spawned, 0);
    CHECK_EQ(join(fiber), 3);
  }
  return 0; /* stacks are reused: none of that allocates */
}

TEST(alloc, all_of_them_from_some_point_on) {
  for (unsigned n = 0; n < 12; n++) {
    int fds[2];
    local_pair(fds);
    um_reactor *r = reactor_new(NULL);
    fail_allocations_from(n);
    int result = um_fiber_spawn(r, NULL, waits_for_memory, fds, NULL);
    if (result == 0) result = um_reactor_run(r);
    CHECK(result == 0 || result == -ENOMEM);
    allocation_failed();
    if (metrics_of(r).fibers) CHECK_EQ(um_reactor_run(r), 0);
    CHECK_EQ(um_reactor_destroy(r), 0);
    close(fds[0]);
    close(fds[1]);
  }
}
