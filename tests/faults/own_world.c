#define OPENSSL_SUPPRESS_DEPRECATED /* RAND_METHOD: there is no other way so short */
#include "own_world.h"

#include <bio_uring/base.h>
#include <openssl/rand.h>
#include <poll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int64_t own_time = UM_SECOND;

/* In place of the C library's. */
int clock_gettime(clockid_t clock, struct timespec *out) {
  if (clock != CLOCK_MONOTONIC) return (int)syscall(SYS_clock_gettime, clock, out);
  own_time += 1000;
  *out = (struct timespec){own_time / UM_SECOND, own_time % UM_SECOND};
  return 0;
}

int poll(struct pollfd *fds, nfds_t count, int timeout) {
  struct timespec at_once = {0, 0}; /* arm64 has no poll(2) of its own */
  long ready = syscall(SYS_ppoll, fds, count, &at_once, NULL, 0);
  if (ready == 0 && timeout > 0) own_time += timeout * UM_MS;
  return (int)ready;
}

static uint64_t *random_state;

static int random_bytes(unsigned char *bytes, int count) {
  for (int i = 0; i < count; i++) {
    *random_state = *random_state * 6364136223846793005u + 1442695040888963407u;
    bytes[i] = (unsigned char)(*random_state >> 56);
  }
  return 1;
}

static int random_is_ready(void) { return 1; }

void own_randomness(uint64_t *state) {
  static const RAND_METHOD not_random = {.bytes = random_bytes, .pseudorand = random_bytes,
                                         .status = random_is_ready};
  random_state = state;
  RAND_set_rand_method(&not_random);
}
