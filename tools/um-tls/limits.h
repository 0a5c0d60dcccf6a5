#ifndef UM_TLS_LIMITS_H
#define UM_TLS_LIMITS_H

#include <stdint.h>

/* Raises RLIMIT_NOFILE to its hard limit, and when `wanted` descriptors are more
 * than that the hard limit as well, where this process may. The limit now. */
uint64_t limits_raise_files(uint64_t wanted);

#endif
