/* waitid and futexes through the ring, where the kernel has them. */
#include "harness.h"

#include <bio_uring/io.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>

SUITE(processes);

static int life; /* of the child: until it is closed */

static pid_t child_that(int code) {
  int ends[2];
  char byte;
  CHECK_EQ(pipe(ends), 0);
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid) {
    close(ends[0]);
    life = ends[1];
    return pid;
  }
  close(ends[1]);
  _exit(read(ends[0], &byte, 1) == 0 ? code : 99);
}

static int waitid_forever(void *argument) {
  siginfo_t info;
  return um_waitid(P_PID, *(id_t *)argument, &info, WEXITED, UM_FOREVER);
}

static int waits_for_children(void *argument) {
  siginfo_t info = {0};
  (void)argument;
  pid_t pid = child_that(7);
  CHECK_EQ(um_waitid(P_PID, (id_t)pid, &info, WEXITED, um_after(1)), -ETIMEDOUT);
  close(life);
  CHECK_EQ(um_waitid(P_PID, (id_t)pid, &info, WEXITED, UM_FOREVER), 0);
  CHECK_EQ(info.si_pid, pid);
  CHECK_EQ(info.si_status, 7);
  CHECK_EQ(info.si_code, CLD_EXITED);
  CHECK_EQ(um_waitid(P_PID, (id_t)pid, &info, WEXITED, UM_FOREVER), -ECHILD); /* once */
  pid = child_that(0);
  um_fiber *waiter = spawn(waitid_forever, &pid);
  yield_times(3);
  um_fiber_cancel(waiter);
  CHECK_EQ(join(waiter), -ECANCELED);
  kill(pid, SIGKILL);
  CHECK_EQ(um_waitid(P_PID, (id_t)pid, &info, WEXITED, UM_FOREVER), 0);
  CHECK_EQ(info.si_code, CLD_KILLED);
  close(life);
  return 0;
}

TEST(processes, waitid) { run_fibers(waits_for_children, NULL); }

static int futex_works(void *argument) {
  uint32_t word = 1;
  (void)argument;
  return um_futex_wait(&word, 0, UM_FOREVER);
}

static bool have_futex(void) { return run_fibers(futex_works, NULL) == -EAGAIN; }

typedef struct waited {
  uint32_t word;
  int result;
} waited;

static int waits_on_word(void *argument) {
  waited *w = argument;
  return w->result = um_futex_wait(&w->word, 0, UM_FOREVER);
}

static void *blocks_on_word(void *argument) {
  waited *w = argument;
  while (__atomic_load_n(&w->word, __ATOMIC_ACQUIRE) == 0)
    syscall(SYS_futex, &w->word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
  w->result = 1;
  return NULL;
}

static int futexes(void *argument) {
  waited w = {0, -1};
  pthread_t thread;
  (void)argument;
  CHECK_EQ(um_futex_wait(&w.word, 1, UM_FOREVER), -EAGAIN);
  CHECK_EQ(um_futex_wait(&w.word, 0, um_after(1)), -ETIMEDOUT);
  CHECK_EQ(um_futex_wait(&w.word, 0, um_now() - 1), -ETIMEDOUT);
  CHECK_EQ(um_futex_wake(&w.word, 10), 0);
  um_fiber *waiters[3];
  for (int i = 0; i < 3; i++) waiters[i] = spawn(waits_on_word, &w);
  yield_times(3);
  um_fiber_cancel(waiters[1]);
  CHECK_EQ(join(waiters[1]), -ECANCELED);
  CHECK_EQ(um_futex_wake(&w.word, 1), 1);
  CHECK_EQ(um_futex_wake(&w.word, 10), 1);
  CHECK_EQ(join(waiters[0]), 0);
  CHECK_EQ(join(waiters[2]), 0);
  w.result = 0;
  CHECK_EQ(pthread_create(&thread, NULL, blocks_on_word, &w), 0); /* futex(2) ones included */
  __atomic_store_n(&w.word, 1, __ATOMIC_RELEASE);
  CHECK(um_futex_wake(&w.word, INT32_MAX) >= 0);
  CHECK_EQ(pthread_join(thread, NULL), 0);
  CHECK_EQ(w.result, 1);
  return 0;
}

TEST(processes, futexes) {
  if (!have_futex()) SKIP("this kernel's io_uring has no futex operations");
  run_fibers(futexes, NULL);
}

TEST(processes, all_need_a_fiber) {
  uint32_t word = 0;
  siginfo_t info;
  CHECK_EQ(um_waitid(P_ALL, 0, &info, WEXITED, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_futex_wait(&word, 0, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_futex_wake(&word, 1), UM_ENOTFIBER);
}
