#include "histogram.h"

#include <string.h>

#define STEPS 64 /* per doubling */
#define OCTAVES 40

static uint64_t slots[OCTAVES * STEPS], total;

void histogram_add(int64_t nanoseconds) {
  uint64_t value = nanoseconds < STEPS ? STEPS : (uint64_t)nanoseconds;
  unsigned octave = 63 - (unsigned)__builtin_clzll(value);
  unsigned step = (unsigned)(value >> (octave - 6)) & (STEPS - 1);
  unsigned slot = (octave - 6) * STEPS + step;
  slots[slot < OCTAVES * STEPS ? slot : OCTAVES * STEPS - 1]++;
  total++;
}

void histogram_clear(void) {
  memset(slots, 0, sizeof slots);
  total = 0;
}

double histogram_us(double part) {
  uint64_t wanted = (uint64_t)((double)total * part), seen = 0;
  for (unsigned slot = 0; slot < OCTAVES * STEPS; slot++) {
    seen += slots[slot];
    if (seen > wanted)
      return (double)((uint64_t)(STEPS + slot % STEPS) << (slot / STEPS)) / 1e3;
  }
  return 0;
}
