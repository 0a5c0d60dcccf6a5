/* Seeing inside: log, trace, histograms, the list of fibers. */
#include "harness.h"

#include "log.h"
#include "reactor/observe.h"

#include <bio_uring/io.h>
#include <bio_uring/observe.h>
#include <bio_uring/sync.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

SUITE(observe);

/* ---- log ---- */

static struct {
  int level, count;
  char text[200];
} heard;

static void hear(int level, const char *message, void *arg) {
  CHECK(arg == &heard);
  heard.level = level;
  heard.count++;
  snprintf(heard.text, sizeof heard.text, "%s", message);
}

TEST(observe, log_goes_to_a_callback_up_to_its_level) {
  um_log_set(UM_LOG_WARNING, hear, &heard);
  heard.count = 0;
  um__log(UM_LOG_INFO, "not this");
  CHECK_EQ(heard.count, 0);
  um__log(UM_LOG_WARNING, "%d is a %s", 7, "number");
  CHECK_EQ(heard.count, 1);
  CHECK_EQ(heard.level, UM_LOG_WARNING);
  CHECK(!strcmp(heard.text, "7 is a number"));
  um_log_set(UM_LOG_OFF, hear, &heard);
  um__log(UM_LOG_ERROR, "nor this");
  CHECK_EQ(heard.count, 1);
}

TEST(observe, log_says_what_backend_a_reactor_has) {
  um_reactor *r;
  um_log_set(UM_LOG_INFO, hear, &heard);
  CHECK_EQ(um_reactor_create(&r, NULL, NULL), 0);
  um_log_set(UM_LOG_WARNING, NULL, NULL);
  CHECK_HAS(heard.text, um_reactor_backend(r));
  um_reactor_destroy(r);
}

/* Standard error is a file; gives what was written there by `level` of UM_LOG. */
static void logged_under(const char *level, char *out, size_t room) {
  char name[] = "/tmp/um-log-XXXXXX";
  int file = mkstemp(name);
  unlink(name);
  pid_t child = fork();
  if (child == 0) {
    setenv("UM_LOG", level, 1);
    dup2(file, STDERR_FILENO);
    um__log_init();
    char big[2000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = 0;
    um__log(UM_LOG_DEBUG, "%s", big);
    um__log(UM_LOG_ERROR, "an error");
    dup2(open("/dev/full", O_WRONLY), STDERR_FILENO);
    um__log(UM_LOG_ERROR, "lost");
    _exit(0);
  }
  int status;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  ssize_t n = pread(file, out, room - 1, 0);
  CHECK(n >= 0);
  out[n] = 0;
  close(file);
}

TEST(observe, log_level_comes_from_the_environment) {
  char text[4096];
  logged_under("error", text, sizeof text);
  CHECK(!strcmp(text, "bio_uring error: an error\n"));
  logged_under("off", text, sizeof text);
  CHECK(!strcmp(text, ""));
  logged_under("loud", text, sizeof text);
  CHECK_HAS(text, "UM_LOG is \"loud\": wanted is");
  CHECK_HAS(text, "an error");
  logged_under("debug", text, sizeof text);
  CHECK_EQ(strcspn(text, "\n"), 511 - 1); /* cut, and still a line */
  CHECK_HAS(text, "\nbio_uring error: an error\n");
}

/* Nobody reads, then nobody can: lines are dropped, without a wait or SIGPIPE. */
static int logs_to_a_pipe(void *argument) {
  int ends[2], saved = dup(STDERR_FILENO);
  char text[200];
  (void)argument;
  signal(SIGPIPE, SIG_DFL);
  CHECK_EQ(pipe(ends), 0);
  dup2(ends[1], STDERR_FILENO);
  for (int i = 0; i < 10000; i++) um__log(UM_LOG_ERROR, "line %d of more than fit", i);
  int full = um__write_line(STDERR_FILENO, "x\n", 2);
  ssize_t n = read(ends[0], text, sizeof text - 1);
  close(ends[0]);
  um__log(UM_LOG_ERROR, "lost");
  int closed = um__write_line(STDERR_FILENO, "x\n", 2);
  dup2(saved, STDERR_FILENO);
  CHECK_EQ(full, -EAGAIN);
  CHECK_EQ(closed, -EPIPE);
  CHECK(n > 0);
  text[n] = 0;
  CHECK_HAS(text, "bio_uring error: line 0 of more than fit\nbio_uring error: line 1 of");
  return 0;
}
TEST(observe, log_does_not_wait_for_its_reader) { CHECK_EQ(in_child(logs_to_a_pipe, NULL), 0); }

/* ---- trace ---- */

typedef struct watched {
  int pipe[2]; /* the callback writes here: I/O of its own */
  int submitted, completed, inner;
  uint64_t ids[8];
  int results[8];
  um_reactor *reactor;
} watched;

static int posted(void *arg) {
  ((watched *)arg)->inner++;
  return 0;
}

static void watch(const um_trace_event *e, void *arg) {
  watched *w = arg;
  if (strcmp(e->operation, "write")) return;
  CHECK(e->fd >= 0);
  if (e->kind == UM_TRACE_SUBMIT) w->ids[w->submitted++] = e->id;
  if (e->kind == UM_TRACE_COMPLETE) {
    CHECK_EQ(e->id, w->ids[w->completed]);
    w->results[w->completed++] = e->result;
  }
  CHECK_EQ(write(w->pipe[1], "t", 1), 1);
  CHECK_EQ(um_write(w->pipe[1], "u", 1, -1, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_fiber_sleep(um_after(1)), UM_ENOTFIBER);
  CHECK_EQ(um_post(w->reactor, posted, w), 0);
}

static void watch_bad_fd_too(const um_trace_event *e, void *arg) {
  watched *w = arg;
  if (!strcmp(e->operation, "write") && e->fd == -1 && e->kind == UM_TRACE_COMPLETE) w->results[7] = e->result;
}

static int traced_failure(void *arg) {
  CHECK_EQ(um_reactor_trace(um_reactor_current(), watch_bad_fd_too, arg), 0);
  CHECK_EQ(um_write(-1, "abc", 3, -1, UM_FOREVER), -EBADF);
  return 0;
}

static int traced_write(void *arg) {
  watched *w = arg;
  int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
  w->reactor = um_reactor_current();
  CHECK_EQ(um_reactor_trace(w->reactor, watch, w), 0);
  CHECK_EQ(um_write(null, "abc", 3, -1, UM_FOREVER), 3);
  CHECK_EQ(um_reactor_trace(w->reactor, NULL, NULL), 0);
  CHECK_EQ(um_write(null, "abc", 3, -1, UM_FOREVER), 3);
  um_fiber_yield();
  close(null);
  return 0;
}

TEST(observe, trace_sees_each_operation_and_may_do_io) {
  watched w = {0};
  CHECK_EQ(pipe(w.pipe), 0);
  run_fibers(traced_write, &w);
  CHECK_EQ(w.submitted, 1);
  CHECK_EQ(w.completed, 1);
  CHECK_EQ(w.results[0], 3);
  CHECK_EQ(w.inner, 2);
  char bytes[16];
  CHECK_EQ(read(w.pipe[0], bytes, sizeof bytes), 2); /* never entered twice */
  close(w.pipe[0]);
  close(w.pipe[1]);
}

TEST(observe, trace_tells_of_failures) {
  watched w = {0};
  run_fibers(traced_failure, &w);
  CHECK_EQ(w.results[7], -EBADF);
}

/* ---- histograms ---- */

static int busy_and_idle(void *arg) {
  um_time begun = *(um_time *)arg, end = um_now() + 3 * UM_MS;
  while (um_now() < end) {}
  um_fiber_sleep(um_after(30));
  um_histograms h;
  um_reactor_histograms(um_reactor_current(), &h);
  uint64_t total = 0, long_ones = 0;
  for (int i = 0; i < UM_HISTOGRAM_BUCKETS; i++) {
    total += h.busy.buckets[i];
    if (i >= 12) long_ones += h.busy.buckets[i]; /* 2.048 ms and longer */
  }
  CHECK_EQ(total, h.busy.count);
  CHECK(long_ones >= 1);
  CHECK(h.busy.sum >= 3u * UM_MS);
  CHECK(h.busy.sum <= (uint64_t)(um_now() - begun - 20 * UM_MS)); /* sleeping is not being busy */
  CHECK_EQ(h.handshake.count, 0);
  return 0;
}
TEST(observe, histogram_of_busy_time) {
  um_time begun = um_now();
  run_fibers(busy_and_idle, &begun);
}

TEST(observe, histogram_buckets_are_powers_of_two) {
  um_histogram h = {0};
  const struct { um_time ns; int bucket; } cases[] = {
      {-5, 0}, {0, 0}, {999, 0}, {1000, 1}, {1999, 1}, {2000, 2}, {3999, 2}, {4000, 3},
      {1023999, 10}, {1024000, 11}, {UM_FOREVER, UM_HISTOGRAM_BUCKETS - 1}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    uint64_t before = h.buckets[cases[i].bucket];
    um__histogram_add(&h, cases[i].ns);
    CHECK_EQ(h.buckets[cases[i].bucket], before + 1);
    CHECK_EQ(h.count, i + 1);
  }
}

/* ---- fibers ---- */

typedef struct seen {
  int count;
  um_fiber_info sleeper, reader, waiter, self, fresh;
} seen;

static void look(const um_fiber_info *info, void *arg) {
  seen *s = arg;
  s->count++;
  if (!info->name) return;
  um_fiber_info *to = !strcmp(info->name, "sleeper")  ? &s->sleeper
                      : !strcmp(info->name, "reader") ? &s->reader
                      : !strcmp(info->name, "waiter") ? &s->waiter
                      : !strcmp(info->name, "fresh")  ? &s->fresh
                                                      : &s->self;
  *to = *info;
}

static int sleeps(void *arg) { return (void)arg, um_fiber_sleep(um_after(1000)); }
static int reads(void *arg) {
  char byte;
  return (int)um_read(*(int *)arg, &byte, 1, -1, UM_FOREVER);
}
static int waits(void *arg) { return um_event_wait(arg, UM_FOREVER); }

static int listed(void *arg) {
  seen s = {0};
  int ends[2];
  um_event event;
  um_group group;
  (void)arg;
  CHECK_EQ(pipe(ends), 0);
  um_event_init(&event);
  um_group_init(&group);
  CHECK_EQ(um_group_spawn(&group, sleeps, NULL, &(um_fiber_options){.name = "sleeper"}), 0);
  CHECK_EQ(um_group_spawn(&group, reads, &ends[0], &(um_fiber_options){.name = "reader"}), 0);
  CHECK_EQ(um_group_spawn(&group, waits, &event, &(um_fiber_options){.name = "waiter"}), 0);
  um_fiber_sleep(um_after(5));
  CHECK_EQ(um_group_spawn(&group, sleeps, NULL, &(um_fiber_options){.name = "fresh"}), 0);
  CHECK_EQ(um_reactor_fibers(um_reactor_current(), look, &s), 0);
  CHECK_EQ(s.count, 5);
  CHECK(!strcmp(s.sleeper.state, "waiting") && !strcmp(s.sleeper.waits_for, "sleep"));
  CHECK(s.sleeper.deadline < UM_FOREVER && s.sleeper.age >= 4 * UM_MS);
  CHECK(!strcmp(s.reader.waits_for, "read"));
  CHECK_EQ(s.reader.fd, ends[0]);
  CHECK(s.reader.deadline == UM_FOREVER);
  CHECK(!strcmp(s.waiter.waits_for, "a wake-up"));
  CHECK_EQ(s.waiter.fd, -1);
  CHECK(!strcmp(s.fresh.state, "ready") && !s.fresh.waits_for);
  CHECK_EQ(write(ends[1], "x", 1), 1);
  um_event_set(&event);
  CHECK_EQ(um_group_join(&group, UM_FOREVER), 0);
  close(ends[0]);
  close(ends[1]);
  return 0;
}
TEST(observe, fibers_say_what_they_wait_for) { run_fibers(listed, NULL); }

static void *from_another_thread(void *reactor) {
  seen s = {0};
  CHECK_EQ(um_reactor_fibers(reactor, look, &s), UM_EWRONGTHREAD);
  CHECK_EQ(um_reactor_trace(reactor, watch, NULL), UM_EWRONGTHREAD);
  CHECK_EQ(s.count, 0);
  return NULL;
}
static int beside_a_thread(void *arg) {
  pthread_t thread;
  (void)arg;
  CHECK_EQ(pthread_create(&thread, NULL, from_another_thread, um_reactor_current()), 0);
  CHECK_EQ(pthread_join(thread, NULL), 0);
  return 0;
}
TEST(observe, other_threads_may_not_look) { run_fibers(beside_a_thread, NULL); }
