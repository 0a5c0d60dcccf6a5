#include "uring_probe.h"

#include "../error.h"
#include "op.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- operations ---- */

static const uint8_t opcodes[UM_OP_COUNT] = {
    [UM_OP_RECV] = IORING_OP_RECV,           [UM_OP_RECV_MULTI] = IORING_OP_RECV,
    [UM_OP_SEND] = IORING_OP_SEND,           [UM_OP_SEND_ZC] = IORING_OP_SEND_ZC,
    [UM_OP_SENDMSG] = IORING_OP_SENDMSG,     [UM_OP_RECVMSG] = IORING_OP_RECVMSG,
    [UM_OP_ACCEPT] = IORING_OP_ACCEPT,       [UM_OP_ACCEPT_MULTI] = IORING_OP_ACCEPT,
    [UM_OP_CONNECT] = IORING_OP_CONNECT,     [UM_OP_SHUTDOWN] = IORING_OP_SHUTDOWN,
    [UM_OP_CLOSE] = IORING_OP_CLOSE,         [UM_OP_POLL] = IORING_OP_POLL_ADD,
    [UM_OP_READ] = IORING_OP_READ,           [UM_OP_WRITE] = IORING_OP_WRITE,
    [UM_OP_OPENAT] = IORING_OP_OPENAT,       [UM_OP_SPLICE] = IORING_OP_SPLICE,
    [UM_OP_TIMEOUT] = IORING_OP_TIMEOUT,     [UM_OP_FUTEX_WAIT] = IORING_OP_FUTEX_WAIT,
    [UM_OP_FUTEX_WAKE] = IORING_OP_FUTEX_WAKE, [UM_OP_WAITID] = IORING_OP_WAITID,
    [UM_OP_MSG_RING] = IORING_OP_MSG_RING,
};

void um__uring_supported(struct io_uring *ring, uint64_t *supported) {
  struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
  *supported = 0;
  for (unsigned code = 0; probe && code < UM_OP_COUNT; code++)
    if (io_uring_opcode_supported(probe, opcodes[code])) *supported |= UINT64_C(1) << code;
  io_uring_free_probe(probe);
}

/* ---- receive features, tried on a socket pair ---- */

typedef struct trial {
  struct io_uring ring;
  struct io_uring_buf_ring *buffers;
  char *memory;
  int sockets[2];
} trial;

#define TRIAL_BUFFERS 4
#define TRIAL_SIZE 4096

static bool trial_open(trial *t, unsigned flags) {
  int result;
  memset(t, 0, sizeof *t);
  t->sockets[0] = t->sockets[1] = -1;
  t->memory = MAP_FAILED;
  if (io_uring_queue_init(8, &t->ring, 0) < 0) {
    t->ring.ring_fd = -1;
    return false;
  }
  t->buffers = io_uring_setup_buf_ring(&t->ring, TRIAL_BUFFERS, 0, flags, &result);
  t->memory = mmap(NULL, TRIAL_BUFFERS * TRIAL_SIZE, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (!t->buffers || t->memory == MAP_FAILED) return false;
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, t->sockets) < 0) return false;
  for (int i = 0; i < TRIAL_BUFFERS; i++)
    io_uring_buf_ring_add(t->buffers, t->memory + i * TRIAL_SIZE, TRIAL_SIZE, (unsigned short)i,
                          io_uring_buf_ring_mask(TRIAL_BUFFERS), i);
  io_uring_buf_ring_advance(t->buffers, TRIAL_BUFFERS);
  return true;
}

static void trial_close(trial *t) {
  if (t->ring.ring_fd >= 0) io_uring_queue_exit(&t->ring);
  if (t->memory != MAP_FAILED) munmap(t->memory, TRIAL_BUFFERS * TRIAL_SIZE);
  for (int i = 0; i < 2; i++)
    if (t->sockets[i] >= 0) close(t->sockets[i]);
}

static bool trial_receive(trial *t, unsigned cap) {
  struct io_uring_sqe *sqe = io_uring_get_sqe(&t->ring);
  if (!sqe) return false;
  io_uring_prep_recv_multishot(sqe, t->sockets[0], NULL, 0, 0);
  sqe->flags |= IOSQE_BUFFER_SELECT;
  sqe->file_index = cap;
  return io_uring_submit(&t->ring) == 1;
}

/* Sends text and takes the completion it causes. */
static bool trial_step(trial *t, const char *text, unsigned *flags) {
  ssize_t length = (ssize_t)strlen(text);
  struct __kernel_timespec second = {1, 0};
  struct io_uring_cqe *cqe = NULL;
  if (send(t->sockets[1], text, (size_t)length, MSG_NOSIGNAL) != length) return false;
  if (io_uring_wait_cqe_timeout(&t->ring, &cqe, &second) < 0 || !cqe) return false;
  bool whole = cqe->res == length;
  *flags = cqe->flags;
  io_uring_cqe_seen(&t->ring, cqe);
  return whole;
}

/* One submission, two receives: what the kernel says of each. */
static bool trial_receive_two(trial *t, unsigned open_flags, unsigned cap, unsigned flags[2]) {
  return trial_open(t, open_flags) && trial_receive(t, cap) && trial_step(t, "abc", &flags[0]) &&
         trial_step(t, "def", &flags[1]);
}

/* The receive must go on, and with a cap end at it. */
static bool try_multishot(unsigned cap) {
  trial t;
  unsigned flags[2];
  bool works = trial_receive_two(&t, 0, cap, flags) && (flags[0] & IORING_CQE_F_MORE) &&
               !(flags[1] & IORING_CQE_F_MORE) == (cap != 0);
  trial_close(&t);
  return works;
}

/* Two receives must land behind each other in one buffer that stays the kernel's. */
static bool try_incremental(void) {
  trial t;
  unsigned flags[2];
  bool works = trial_receive_two(&t, IOU_PBUF_RING_INC, 0, flags);
  for (int i = 0; i < 2 && works; i++)
    works = (flags[i] & IORING_CQE_F_BUF_MORE) && !(flags[i] >> IORING_CQE_BUFFER_SHIFT);
  works = works && memcmp(t.memory, "abcdef", 6) == 0;
  trial_close(&t);
  return works;
}

static um_uring_features found;

static void try_all(void) {
  found.multishot_receive = try_multishot(0);
  found.incremental = found.multishot_receive && try_incremental();
  found.capped_receive = found.multishot_receive && try_multishot(6);
}

const um_uring_features *um__uring_features(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, try_all);
  return &found;
}

/* ---- refusals ---- */

static int read_disabled(void) {
  FILE *file = fopen("/proc/sys/kernel/io_uring_disabled", "re");
  int value = -1;
  if (!file) return -1;
  if (fscanf(file, "%d", &value) != 1) value = -1;
  fclose(file);
  return value;
}

int um__uring_refused(um_error *error, int result) {
  struct rlimit limit = {0};
  switch (result) {
    case -ENOSYS:
      return um__fail(error, UM_ENOURING, "io_uring: not in this kernel, or hidden by a seccomp "
                      "filter: use Linux 6.1 or newer, or allow io_uring_setup in the container's "
                      "seccomp profile");
    case -EPERM:
      if (read_disabled() > 0)
        return um__fail(error, UM_ENOURING, "io_uring: forbidden by sysctl kernel.io_uring_disabled"
                        "=%d: set it to 0, or to 1 and add this user to kernel.io_uring_group",
                        read_disabled());
      return um__fail(error, UM_ENOURING, "io_uring: forbidden, as containers' seccomp profiles do: "
                      "allow io_uring_setup, io_uring_enter and io_uring_register");
    case -ENOMEM:
      getrlimit(RLIMIT_MEMLOCK, &limit);
      return um__fail(error, UM_ENOURING, "io_uring: no memory for a ring; the locked-memory limit is "
                      "%llu KiB: raise it (ulimit -l, LimitMEMLOCK=) or close other rings",
                      (unsigned long long)limit.rlim_cur / 1024);
    case -EINVAL:
      return um__fail(error, UM_ENOURING, "io_uring: this kernel is too old for any usable set of "
                      "ring flags: use Linux 6.1 or newer");
    default:
      return um__fail(error, result, "io_uring_setup: %s", um_strerror(result));
  }
}
