#include "limits.h"

#include <sys/resource.h>

uint64_t limits_raise_files(uint64_t wanted) {
  struct rlimit limit, more;
  if (getrlimit(RLIMIT_NOFILE, &limit)) return 0;
  if (limit.rlim_max != RLIM_INFINITY && wanted > limit.rlim_max) {
    more = (struct rlimit){wanted, wanted}; /* CAP_SYS_RESOURCE; without it, the hard limit */
    if (!setrlimit(RLIMIT_NOFILE, &more)) return wanted;
  }
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  getrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_cur;
}
