/* Latencies with 1.6 % resolution in constant space. */
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include <stdint.h>

void histogram_add(int64_t nanoseconds);
void histogram_clear(void);
/* Microseconds below which `part` (0..1) of what was added lies. */
double histogram_us(double part);

#endif
