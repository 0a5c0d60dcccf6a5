/* Latencies: 64 buckets to each power of two, so within 1.6 % of the truth. */
#ifndef UM_TLS_HISTOGRAM_H
#define UM_TLS_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_BUCKETS (64 * 42) /* up to 2^47 ns, a day and a half */

typedef struct histogram {
  uint64_t count, least, most; /* exact; least and most in ns */
  uint64_t buckets[HISTOGRAM_BUCKETS];
} histogram;

void histogram_add(histogram *h, uint64_t ns, uint64_t times);
void histogram_merge(histogram *into, const histogram *from);
/* The value that `share` (0..1) of all do not exceed; 0 when empty. */
uint64_t histogram_quantile(const histogram *h, double share);

#endif
