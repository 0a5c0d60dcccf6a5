/* The acceptor: multishot, back-off while descriptors are short, pausing, the end. */
#include "backend_scripted.h"
#include "harness.h"

#include <bio_uring/io.h>
#include <fcntl.h>
#include <sys/resource.h>

SUITE(acceptor);

static um_acceptor *acceptor_on(int fd) {
  um_acceptor *a;
  CHECK_EQ(um_acceptor_create(&a, fd), 0);
  return a;
}

static int many(void *argument) {
  enum { N = 100 };
  uint16_t port;
  int clients[N], accepted[N], fd = listener(&port, N + 10);
  if (*(bool *)argument) set_nonblocking(fd);
  um_acceptor *a = acceptor_on(fd);
  CHECK_EQ(um_acceptor_next(a, um_after(1)), -ETIMEDOUT);
  CHECK_EQ(um_acceptor_next(a, um_now() - 1), -ETIMEDOUT);
  for (int i = 0; i < N; i++) CHECK_EQ(dial(port, &clients[i]), 0);
  for (int i = 0; i < N; i++) {
    accepted[i] = um_acceptor_next(a, um_after(5000));
    CHECK(accepted[i] >= 0);
    CHECK_EQ(fcntl(accepted[i], F_GETFD), FD_CLOEXEC);
  }
  CHECK_EQ(um_acceptor_next(a, um_after(1)), -ETIMEDOUT);
  char byte;
  for (int i = 0; i < N; i++) {
    CHECK_EQ(um_send(accepted[i], "x", 1, 0, UM_FOREVER), 1);
    CHECK_EQ(um_recv(clients[i], &byte, 1, 0, UM_FOREVER), 1);
    close(clients[i]);
    close(accepted[i]);
  }
  um_acceptor_destroy(a);
  close(fd);
  return 0;
}

TEST(acceptor, takes_a_hundred) { run_fibers(many, &(bool){false}); }
TEST(acceptor, takes_a_hundred_from_a_nonblocking_listener) { run_fibers(many, &(bool){true}); }

static int waits_next(void *argument) { return um_acceptor_next(argument, UM_FOREVER); }

static int one_caller(void *argument) {
  uint16_t port;
  int client, fd = listener(&port, 10);
  (void)argument;
  um_acceptor *a = acceptor_on(fd);
  um_fiber *waiter = spawn(waits_next, a);
  yield_times(2);
  CHECK_EQ(um_acceptor_next(a, UM_FOREVER), UM_EREENTRANT);
  um_fiber_cancel(waiter);
  CHECK_EQ(join(waiter), -ECANCELED);
  CHECK_EQ(dial(port, &client), 0);
  int accepted = um_acceptor_next(a, um_after(5000));
  CHECK(accepted >= 0);
  um_acceptor_destroy(a);
  close(accepted);
  close(client);
  close(fd);
  a = acceptor_on(-1);
  CHECK_EQ(um_acceptor_next(a, UM_FOREVER), -EBADF);
  CHECK_EQ(um_acceptor_next(a, UM_FOREVER), -EBADF);
  um_acceptor_destroy(a);
  um_acceptor_destroy(NULL);
  int pair[2];
  local_pair(pair);
  a = acceptor_on(pair[0]); /* not a listener */
  CHECK(um_acceptor_next(a, UM_FOREVER) < 0);
  um_acceptor_destroy(a);
  close(pair[0]);
  close(pair[1]);
  return 0;
}

TEST(acceptor, one_caller_at_a_time_and_errors) { run_fibers(one_caller, NULL); }

static int destroys_untaken(void *argument) {
  uint16_t port;
  int clients[20], fd = listener(&port, 30);
  (void)argument;
  unsigned before = open_fds();
  um_acceptor *a = acceptor_on(fd);
  for (int i = 0; i < 20; i++) CHECK_EQ(dial(port, &clients[i]), 0);
  int accepted = um_acceptor_next(a, um_after(5000));
  CHECK(accepted >= 0);
  CHECK_EQ(um_fiber_sleep(um_after(2)), 0); /* the others come in, too */
  um_acceptor_destroy(a);
  close(accepted);
  char byte;
  for (int i = 0; i < 20; i++) { /* nobody is left hanging: closed, or still in the queue */
    ssize_t n = recv(clients[i], &byte, 1, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) {
      int left = accept(fd, NULL, NULL);
      CHECK(left >= 0);
      close(left);
    }
    close(clients[i]);
  }
  CHECK_EQ(open_fds(), before);
  close(fd);
  return 0;
}

TEST(acceptor, destroying_closes_what_was_not_taken) { run_fibers(destroys_untaken, NULL); }

/* ---- out of descriptors ---- */

static struct rlimit limit_descriptors(rlim_t count) {
  struct rlimit before, low;
  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  low = (struct rlimit){count, before.rlim_max};
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  return before;
}

static int out_of_descriptors(void *argument) {
  uint16_t port;
  int clients[5], fd = listener(&port, 30);
  (void)argument;
  um_acceptor *a = acceptor_on(fd);
  for (int i = 0; i < 5; i++) CHECK_EQ(dial(port, &clients[i]), 0);
  int next = dup(fd); /* the lowest free one: everything above is over the limit */
  close(next);
  struct rlimit before = limit_descriptors((rlim_t)next);
  CHECK_EQ(um_acceptor_next(a, um_after(100)), -ETIMEDOUT); /* waits; no error, no spinning */
  um_metrics m = metrics_of(um_reactor_current());
  CHECK(m.accept_backoffs >= 1 && m.accept_backoffs <= 10);
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  for (int i = 0; i < 5; i++) {
    int accepted = um_acceptor_next(a, um_after(10000));
    CHECK(accepted >= 0);
    close(accepted);
    close(clients[i]);
  }
  um_acceptor_destroy(a);
  close(fd);
  return 0;
}

TEST(acceptor, backs_off_and_recovers_when_descriptors_run_out) { run_fibers(out_of_descriptors, NULL); }

static int destroyed_while_backing_off(void *argument) {
  uint16_t port;
  int client, fd = listener(&port, 30);
  (void)argument;
  um_acceptor *a = acceptor_on(fd);
  CHECK_EQ(dial(port, &client), 0);
  int next = dup(fd);
  close(next);
  struct rlimit before = limit_descriptors((rlim_t)next);
  CHECK_EQ(um_acceptor_next(a, um_after(2)), -ETIMEDOUT);
  um_acceptor_destroy(a);
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  close(client);
  close(fd);
  CHECK_EQ(um_fiber_sleep(um_after(30)), 0); /* its timer is gone with it */
  return 0;
}

TEST(acceptor, destroyed_while_backing_off) { run_fibers(destroyed_while_backing_off, NULL); }

/* ---- over a scripted kernel ---- */

#define FD 7
static int next_fd(void) {
  int fd = dup(2);
  CHECK(fd >= 0);
  return fd;
}

typedef struct scene {
  script *s;
  um_reactor *r;
} scene;

static void play(um_fiber_fn main) {
  scene c;
  c.r = scripted_reactor(&c.s, NULL, NULL);
  CHECK_EQ(um_fiber_spawn(c.r, NULL, main, &c, NULL), 0);
  reactor_finish(c.r);
}

static int errors_of_others(void *argument) {
  scene *c = argument;
  const int passing[] = {-ECONNABORTED, -EINTR, -EPROTO, -EHOSTUNREACH, -ENETDOWN, -EAGAIN};
  um_acceptor *a = acceptor_on(FD);
  for (size_t i = 0; i < sizeof passing / sizeof *passing; i++) {
    int fd = next_fd();
    script_answer(c->s, UM_OP_ACCEPT_MULTI, (answer){.result = passing[i]});
    script_answer(c->s, UM_OP_POLL, (answer){.result = 1});
    script_answer(c->s, UM_OP_ACCEPT_MULTI, (answer){.result = fd, .after = 1, .ends = i % 2});
    CHECK_EQ(um_acceptor_next(a, um_after(5000)), fd);
    close(fd);
    if (passing[i] != -EAGAIN) continue;
    CHECK_EQ(script_count(c->s).submitted[UM_OP_POLL], 1);
  }
  um_acceptor_destroy(a);
  a = acceptor_on(FD);
  for (int i = 0; i < 4; i++) {
    const int scarce[] = {-EMFILE, -ENFILE, -ENOBUFS, -ENOMEM};
    int fd = next_fd();
    script_answer(c->s, UM_OP_ACCEPT_MULTI, (answer){.result = scarce[i]});
    script_answer(c->s, UM_OP_ACCEPT_MULTI, (answer){.result = fd});
    CHECK_EQ(um_acceptor_next(a, um_after(5000)), fd);
    close(fd);
    CHECK_EQ(metrics_of(c->r).accept_backoffs, (unsigned)i + 1);
    um_acceptor_pause(a);
    yield_times(3);
  }
  script_answer(c->s, UM_OP_ACCEPT_MULTI, (answer){.result = -EINVAL}); /* one that stays */
  CHECK_EQ(um_acceptor_next(a, um_after(5000)), -EINVAL);
  um_acceptor_destroy(a);
  return 0;
}

TEST(acceptor, errors_of_single_connections_concern_nobody) { play(errors_of_others); }

static int too_many_untaken(void *argument) {
  scene *c = argument;
  um_acceptor *a = acceptor_on(FD);
  int taken = 0;
  for (int i = 0; i < 100; i++) script_answer(c->s, UM_OP_ACCEPT_MULTI, (answer){.result = next_fd()});
  int fd = um_acceptor_next(a, um_after(5000));
  CHECK(fd >= 0);
  close(fd);
  yield_times(200); /* nobody takes any: it stops accepting */
  CHECK_EQ(script_count(c->s).cancelled, 1);
  CHECK_EQ(script_owned(c->s), 0);
  for (taken = 1; taken < 99; taken++) { /* and goes on when they are taken */
    fd = um_acceptor_next(a, um_after(5000));
    CHECK(fd >= 0);
    close(fd);
  }
  CHECK_EQ(um_acceptor_next(a, um_after(1)), -ETIMEDOUT); /* one went with the cancelled operation */
  um_acceptor_destroy(a);
  return 0;
}

TEST(acceptor, pauses_when_nobody_takes_them_and_goes_on) { play(too_many_untaken); }

static int paused(void *argument) {
  scene *c = argument;
  um_acceptor *a = acceptor_on(FD);
  int backoff = 5;
  do { /* again, twice as long, where a slow machine let the back-off end with the wait */
    um_acceptor_pause(a);
    yield_times(3);
    CHECK((backoff *= 2) < 1000);
    script_answer(c->s, UM_OP_ACCEPT_MULTI, (answer){.result = -EMFILE});
    CHECK_EQ(um_acceptor_next(a, um_after(2)), -ETIMEDOUT);
  } while (script_owned(c->s));
  unsigned tries = script_count(c->s).submitted[UM_OP_ACCEPT_MULTI];
  um_acceptor_pause(a);
  CHECK_EQ(um_fiber_sleep(um_after(3 * backoff)), 0); /* its time comes while paused */
  CHECK_EQ(script_count(c->s).submitted[UM_OP_ACCEPT_MULTI], tries);
  int fd = next_fd();
  script_answer(c->s, UM_OP_ACCEPT_MULTI, (answer){.result = fd});
  CHECK_EQ(um_acceptor_next(a, um_after(5000)), fd);
  close(fd);
  um_acceptor_pause(a);
  um_acceptor_pause(a);
  yield_times(3);
  CHECK_EQ(script_owned(c->s), 0);
  um_acceptor_destroy(a);
  return 0;
}

TEST(acceptor, paused_it_leaves_connections_to_the_kernel) { play(paused); }

static int drains_at_the_end(void *argument) {
  scene *c = argument;
  for (int how = CANCEL_ENDS; how <= CANCEL_PARTLY; how++) {
    um_acceptor *a = acceptor_on(FD);
    int fd = next_fd();
    unsigned before = open_fds();
    script_answer(c->s, UM_OP_ACCEPT_MULTI,
                  (answer){.result = fd, .after = 1u << 30, .cancel = (enum answer_cancel)how, .cancel_after = 3});
    CHECK_EQ(um_acceptor_next(a, um_after(1)), -ETIMEDOUT);
    um_acceptor_destroy(a);
    CHECK_EQ(script_owned(c->s), 0);
    if (how >= CANCEL_LOSES) CHECK_EQ(open_fds(), before - 1); /* it came nevertheless: closed */
    else close(fd);
  }
  return 0;
}

TEST(acceptor, destroying_waits_for_the_kernel) { play(drains_at_the_end); }

TEST(acceptor, needs_a_fiber) {
  um_acceptor *a = (um_acceptor *)1;
  CHECK_EQ(um_acceptor_create(&a, 0), UM_ENOTFIBER);
  CHECK(a == NULL);
}
