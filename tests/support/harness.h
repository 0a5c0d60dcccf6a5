/* What tests of the reactor share: tests that run under Criterion or, compiled with
 * PLAIN_RUNNER, from a plain main() (thread sanitizer, valgrind); checks; a reactor
 * around a fiber; sockets; failing allocations.
 *
 * Fibers and threads check with CHECK(), which aborts: Criterion's own asserts jump
 * and must not leave a fiber's stack. */
#ifndef HARNESS_H
#define HARNESS_H

#include <bio_uring.h>

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

/* ---- tests ---- */

#define WATCHDOG 300 /* seconds, for each test: emulated machines are slow */

#ifdef PLAIN_RUNNER
void plain_add(const char *suite, const char *name, void (*fn)(void));
void plain_skip(const char *why);
#define TEST(suite, name)                                                       \
  static void suite##_##name(void);                                             \
  __attribute__((constructor)) static void add_##suite##_##name(void) {         \
    plain_add(#suite, #name, suite##_##name);                                   \
  }                                                                             \
  static void suite##_##name(void)
#define SUITE(name) struct suite_##name
#define SKIP(why)     \
  do {                \
    plain_skip(why);  \
    return;           \
  } while (0)
#else
#include <criterion/criterion.h>
/* Fails a test that leaks, where the build can tell. */
void no_leaks(void);
#define SUITE(name) TestSuite(name, .timeout = WATCHDOG, .fini = no_leaks)
#define TEST(suite, name) Test(suite, name)
#define SKIP(why) cr_skip_test(why)
#endif

#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN 1
#else
#define UNDER_ASAN 0
#endif
#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN 1
#else
#define UNDER_TSAN 0
#endif
bool under_valgrind(void);
/* For a test that switches stacks itself: valgrind takes a switch between two that it does not
 * know for growth of one when they are near each other, and their contents for undefined. */
void *stack_new(size_t size);
void stack_free(void *stack);
/* How much of a stress to do: everything, or a tenth where each step is slow. */
int scaled(int count);

/* ---- checks ---- */

#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) check_failed(__FILE__, __LINE__, #condition);   \
  } while (0)

/* Two integers; error codes are named when they differ. */
#define CHECK_EQ(got, wanted)                                                           \
  do {                                                                                  \
    long long check_got = (long long)(got), check_wanted = (long long)(wanted);         \
    if (check_got != check_wanted)                                                      \
      check_differs(__FILE__, __LINE__, #got " == " #wanted, check_got, check_wanted);  \
  } while (0)

#define CHECK_HAS(text, part)                                                   \
  do {                                                                          \
    if (!strstr((text), (part))) check_lacks(__FILE__, __LINE__, (text), (part)); \
  } while (0)

_Noreturn void check_failed(const char *file, int line, const char *what);
_Noreturn void check_differs(const char *file, int line, const char *what, long long got,
                             long long wanted);
_Noreturn void check_lacks(const char *file, int line, const char *text, const char *part);

/* ---- a reactor around a fiber ---- */

/* Runs main(argument) until all fibers ended, checks that every gauge is back where
 * it was, and returns main's result. */
int run_fibers(um_fiber_fn main, void *argument);
int run_fibers_with(const um_reactor_config *config, um_fiber_fn main, void *argument);
um_reactor *reactor_new(const um_reactor_config *config);
/* Runs it to its end, checks gauges, destroys it. */
void reactor_finish(um_reactor *reactor);
um_metrics metrics_of(const um_reactor *reactor);
/* Whether reactors without a configured backend use io_uring. */
bool on_uring(void);

um_fiber *spawn(um_fiber_fn fn, void *argument);
/* Joins; what the fiber returned. */
int join(um_fiber *fiber);
/* Yields so many times. */
void yield_times(int count);

/* ---- sockets and descriptors ---- */

/* A connected pair of TCP sockets over loopback, or of local ones. */
void tcp_pair(int fds[2]);
void local_pair(int fds[2]);
int listener(uint16_t *port, int backlog);
/* 0 or -errno; *fd is a blocking connected socket. */
int dial(uint16_t port, int *fd);
void set_nonblocking(int fd);
void set_small_buffers(int fd, int bytes);
unsigned open_fds(void);

/* ---- child processes ---- */

/* fn(argument) in a forked child: its exit code, or minus the signal that killed it. */
int in_child(int (*fn)(void *), void *argument);

/* ---- failing allocations ---- */

/* Makes the n-th allocation of the library by this thread from now on fail (from 0),
 * once, or that one and every later one. */
void fail_allocation(unsigned n);
void fail_allocations_from(unsigned n);
/* Whether one failed; allocations succeed again. */
bool allocation_failed(void);

#endif
