#include "histogram.h"

/* Values below 64 have a bucket each; above, the six bits after the leading one
 * choose among the 64 of its power of two. */
static unsigned bucket_of(uint64_t ns) {
  if (ns < 64) return (unsigned)ns;
  unsigned power = 63 - (unsigned)__builtin_clzll(ns);
  unsigned bucket = (power - 5) * 64 + (unsigned)(ns >> (power - 6) & 63);
  return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1;
}

static uint64_t middle_of(unsigned bucket) {
  if (bucket < 64) return bucket;
  unsigned power = bucket / 64 + 5;
  uint64_t width = UINT64_C(1) << (power - 6);
  return (UINT64_C(1) << power) + bucket % 64 * width + width / 2;
}

void histogram_add(histogram *h, uint64_t ns, uint64_t times) {
  if (!h->count || ns < h->least) h->least = ns;
  if (ns > h->most) h->most = ns;
  h->count += times;
  h->buckets[bucket_of(ns)] += times;
}

void histogram_merge(histogram *into, const histogram *from) {
  if (!from->count) return;
  if (!into->count || from->least < into->least) into->least = from->least;
  if (from->most > into->most) into->most = from->most;
  into->count += from->count;
  for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) into->buckets[i] += from->buckets[i];
}

uint64_t histogram_quantile(const histogram *h, double share) {
  uint64_t wanted = (uint64_t)((double)h->count * share), seen = 0;
  for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
    seen += h->buckets[i];
    if (!h->buckets[i] || seen < wanted) continue;
    uint64_t value = middle_of(i); /* never outside what was really seen */
    return value < h->least ? h->least : value > h->most ? h->most : value;
  }
  return h->most;
}
