/* The epoll backend, where it differs from a ring: descriptors that are shared, closed and
 * reused, what cannot be tried without waiting, and what it lacks. What both have in common is
 * tested by all the others with UM_BACKEND=epoll. */
#include "harness.h"

#include <arpa/inet.h>
#include <bio_uring/io.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/un.h>

SUITE(epoll);

static void run_epoll(um_fiber_fn main, void *argument) {
  run_fibers_with(&(um_reactor_config){.backend = "epoll"}, main, argument);
}

TEST(epoll, tells_its_name) {
  um_reactor *r = reactor_new(&(um_reactor_config){.backend = "epoll"});
  CHECK(!strcmp(um_reactor_backend(r), "epoll"));
  CHECK_EQ(um_reactor_destroy(r), 0);
}

/* ---- many operations on one descriptor ---- */

static int receives_one(void *argument) {
  char byte;
  return (int)um_recv(*(int *)argument, &byte, 1, 0, UM_FOREVER);
}

static int polls_in(void *argument) { return um_poll(*(int *)argument, POLLIN, UM_FOREVER); }

static int sends_much(void *argument) {
  static char much[1 << 20];
  return (int)um_send(*(int *)argument, much, sizeof much, 0, UM_FOREVER);
}

static int crowd(void *argument) {
  int *fds = argument;
  char *sink = malloc(1 << 20);
  um_fiber *readers[3], *pollers[2], *writer = spawn(sends_much, &fds[0]);
  CHECK(sink != NULL);
  for (int i = 0; i < 3; i++) readers[i] = spawn(receives_one, &fds[0]);
  for (int i = 0; i < 2; i++) pollers[i] = spawn(polls_in, &fds[0]);
  yield_times(3);
  um_fiber_cancel(readers[1]);
  CHECK_EQ(join(readers[1]), -ECANCELED);
  CHECK_EQ(um_send(fds[1], "ab", 2, 0, UM_FOREVER), 2);
  for (int i = 0; i < 3; i += 2) CHECK_EQ(join(readers[i]), 1);
  CHECK_EQ(um_send(fds[1], "c", 1, 0, UM_FOREVER), 1); /* a reader may have been faster */
  for (int i = 0; i < 2; i++) CHECK_EQ(join(pollers[i]), POLLIN);
  CHECK_EQ(um_recv(fds[1], sink, 1 << 20, MSG_WAITALL, UM_FOREVER), 1 << 20);
  CHECK_EQ(join(writer), 1 << 20);
  free(sink);
  return 0;
}

TEST(epoll, readers_a_writer_and_pollers_share_a_descriptor) {
  int fds[2];
  local_pair(fds);
  run_epoll(crowd, fds);
  close(fds[0]);
  close(fds[1]);
}

/* ---- closed behind its back ---- */

/* Each way a number can come back while epoll may remember the one before. */
static int reuses_numbers(void *argument) {
  (void)argument;
  char byte;
  for (int round = 0; round < 20; round++) {
    int old[2], new[2], copy = -1;
    local_pair(old);
    CHECK_EQ(um_recv(old[0], &byte, 1, 0, um_after(1)), -ETIMEDOUT); /* known, and cancelled */
    um_fiber *reader = spawn(receives_one, &old[0]);
    yield_times(2);
    CHECK_EQ(um_send(old[1], "x", 1, 0, UM_FOREVER), 1);
    CHECK_EQ(join(reader), 1); /* known, and fired */
    if (round % 2) copy = dup(old[0]); /* epoll keeps the file's entry then */
    close(old[0]);
    if (round % 3 == 0) close(old[1]);
    local_pair(new);
    CHECK(new[0] == old[0] || new[1] == old[0]);
    int again = old[0], peer = new[0] == old[0] ? new[1] : new[0];
    reader = spawn(receives_one, &again);
    yield_times(2);
    if (round % 3) CHECK_EQ(write(old[1], "y", 1), copy < 0 ? -1 : 1); /* the old one's news */
    yield_times(2);
    CHECK_EQ(um_send(peer, "z", 1, 0, UM_FOREVER), 1);
    CHECK_EQ(join(reader), 1);
    if (copy >= 0) close(copy);
    if (round % 3) close(old[1]);
    close(new[0]);
    close(new[1]);
  }
  return 0;
}

TEST(epoll, numbers_of_closed_descriptors_come_back) {
  signal(SIGPIPE, SIG_IGN);
  run_epoll(reuses_numbers, NULL);
}

/* A readable descriptor that nobody waits for, or is gone while a copy lives, must not
 * keep the loop awake. */
static int stays_asleep(void *argument) {
  int *fds = argument;
  char byte;
  CHECK_EQ(um_recv(fds[0], &byte, 1, 0, um_after(1)), -ETIMEDOUT);
  um_fiber *poller = spawn(polls_in, &fds[0]);
  yield_times(2);
  CHECK_EQ(um_send(fds[1], "x", 1, 0, UM_FOREVER), 1);
  CHECK_EQ(join(poller), POLLIN);
  int copy = dup(fds[0]);
  um_metrics before = metrics_of(um_reactor_current());
  CHECK_EQ(um_fiber_sleep(um_after(20)), 0);
  close(fds[0]);
  CHECK_EQ(um_send(fds[1], "y", 1, 0, UM_FOREVER), 1);
  CHECK_EQ(um_fiber_sleep(um_after(20)), 0);
  um_metrics after = metrics_of(um_reactor_current());
  CHECK(after.enters - before.enters < 20);
  close(copy);
  return 0;
}

TEST(epoll, unread_bytes_do_not_keep_it_awake) {
  int fds[2];
  local_pair(fds);
  run_epoll(stays_asleep, fds);
  close(fds[1]);
}

/* ---- what cannot be tried without waiting ---- */

static int connects(void *argument) {
  uint16_t port = *(uint16_t *)argument;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (nonblocking) set_nonblocking(fd);
    int flags = fcntl(fd, F_GETFL);
    CHECK_EQ(um_connect(fd, (struct sockaddr *)&address, sizeof address, UM_FOREVER), 0);
    CHECK_EQ(fcntl(fd, F_GETFL), flags);
    close(fd);
  }
  return 0;
}

TEST(epoll, connecting_leaves_the_flags_alone) {
  uint16_t port;
  int fd = listener(&port, 8);
  run_epoll(connects, &port);
  close(fd);
}

#define CALLERS 200
typedef struct hall {
  int fd;
  atomic_int taken;
} hall;

static int takes_from_hall(void *argument) {
  hall *h = argument;
  um_acceptor *a;
  CHECK_EQ(um_acceptor_create(&a, h->fd), 0);
  while (atomic_load(&h->taken) < CALLERS) {
    int fd = um_acceptor_next(a, um_after(50));
    CHECK(fd >= 0 || fd == -ETIMEDOUT);
    if (fd < 0) continue;
    close(fd);
    atomic_fetch_add(&h->taken, 1);
  }
  um_acceptor_destroy(a); /* may close some that it has: they are not taken */
  return 0;
}

static void *runs_hall(void *argument) {
  run_epoll(takes_from_hall, argument);
  return NULL;
}

/* Both are told of each connection; the one that comes too late must not block: the other
 * has taken the last, so its deadline would never come. */
TEST(epoll, two_reactors_accept_from_one_blocking_listener) {
  hall h = {.fd = -1};
  uint16_t port;
  pthread_t threads[2];
  h.fd = listener(&port, 32);
  for (int i = 0; i < 2; i++) CHECK_EQ(pthread_create(&threads[i], NULL, runs_hall, &h), 0);
  while (atomic_load(&h.taken) < CALLERS) {
    int client;
    CHECK_EQ(dial(port, &client), 0);
    close(client);
  }
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  close(h.fd);
}

static int splices_through(void *argument) {
  int *fds = argument, ends[2];
  char bytes[16];
  CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
  CHECK_EQ(um_splice(ends[0], -1, fds[0], -1, 10, 0, um_after(1)), -ETIMEDOUT); /* nothing in it */
  CHECK_EQ(write(ends[1], "through", 7), 7);
  CHECK_EQ(um_splice(ends[0], -1, fds[0], -1, 10, 0, UM_FOREVER), 7);
  CHECK_EQ(um_recv(fds[1], bytes, sizeof bytes, 0, UM_FOREVER), 7);
  CHECK(!memcmp(bytes, "through", 7));
  CHECK_EQ(um_close(ends[0]), 0);
  CHECK_EQ(um_close(ends[1]), 0);
  return 0;
}

TEST(epoll, splices_without_blocking) {
  int fds[2];
  local_pair(fds);
  run_epoll(splices_through, fds);
  close(fds[0]);
  close(fds[1]);
}

/* ---- files ---- */

#define FILE_SIZE (1 << 20)

static int reads_from_disk(void *argument) {
  char path[] = "/tmp/um-test-XXXXXX", *bytes = malloc(FILE_SIZE), *back = malloc(FILE_SIZE);
  int fd = mkostemp(path, O_CLOEXEC);
  (void)argument;
  CHECK(fd >= 0 && bytes && back);
  for (int i = 0; i < FILE_SIZE; i++) bytes[i] = (char)(i * 7 + (i >> 9));
  CHECK_EQ(um_write(fd, bytes, FILE_SIZE, 0, UM_FOREVER), FILE_SIZE);
  for (int cached = 0; cached < 2; cached++) {
    if (!cached) CHECK_EQ(fsync(fd), 0);
    if (!cached) CHECK_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    CHECK_EQ(um_read(fd, back, FILE_SIZE, 0, UM_FOREVER), FILE_SIZE); /* whole, wherever it is */
    CHECK(!memcmp(bytes, back, FILE_SIZE));
    CHECK_EQ(um_read(fd, back, FILE_SIZE, FILE_SIZE - 10, UM_FOREVER), 10);
    CHECK_EQ(um_read(fd, back, FILE_SIZE, FILE_SIZE, UM_FOREVER), 0);
  }
  unsigned before = open_fds();
  for (int i = 0; i < 10; i++) { /* done by the time it can be given up: no descriptor is lost */
    int late = um_openat(AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0, um_now() - 1);
    CHECK(late >= 0);
    CHECK_EQ(um_close(late), 0);
  }
  CHECK_EQ(open_fds(), before);
  unlink(path);
  CHECK_EQ(um_close(fd), 0);
  free(bytes);
  free(back);
  return 0;
}

TEST(epoll, files_are_read_whole_and_opened_by_workers) { run_epoll(reads_from_disk, NULL); }

/* ---- what it lacks ---- */

static int lacks(void *argument) {
  uint32_t word = 0;
  siginfo_t info;
  (void)argument;
  CHECK_EQ(um_futex_wait(&word, 0, UM_FOREVER), -EOPNOTSUPP);
  CHECK_EQ(um_futex_wake(&word, 1), -EOPNOTSUPP);
  CHECK_EQ(um_waitid(P_ALL, 0, &info, WEXITED, UM_FOREVER), -EOPNOTSUPP);
  if (!under_valgrind()) /* it lacks pidfd_open */
    CHECK_EQ(um_waitid(P_PID, 1, &info, WEXITED | WNOHANG, UM_FOREVER), -ECHILD);
  return 0;
}

TEST(epoll, answers_what_it_lacks) { run_epoll(lacks, NULL); }
