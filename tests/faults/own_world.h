/* Time and randomness of the process's own, so that the same seed does the same again. */
#ifndef OWN_WORLD_H
#define OWN_WORLD_H

#include <stdint.h>

/* Nanoseconds of CLOCK_MONOTONIC: it passes when it is looked at and when somebody would
 * sleep, and it can jump. */
extern int64_t own_time;
/* From here on OpenSSL draws from this state: lengths of signatures depend on it. */
void own_randomness(uint64_t *state);

#endif
