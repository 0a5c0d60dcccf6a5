/* Send slabs: where ciphertext waits to leave. Small ones hold a TLS record and
 * the usual small answer; large ones gather many records into one send. Pools are
 * last in, first out; what a burst left over goes back to the system. */
#ifndef UM_SLAB_H
#define UM_SLAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UM_SLAB_SMALL (18u << 10)
#define UM_SLAB_LARGE (272u << 10)

typedef struct um_slab_pool um_slab_pool;

typedef struct um_slab {
  struct um_slab *next;
  um_slab_pool *pool;     /* NULL: plain memory */
  uint32_t start, end;    /* unsent bytes are data[start..end) */
  uint32_t capacity;
  int registered;         /* buffer index for SEND_ZC, or -1 */
  unsigned references;    /* queue and zero-copy sends that still read it */
  uint8_t data[];
} um_slab;

um_slab_pool *um__slab_pool_new(void);
void um__slab_pool_free(um_slab_pool *pool);
/* Frees the slabs that nobody uses. */
void um__slab_pool_shrink(um_slab_pool *pool);
/* Whether more are free than are worth keeping; and frees of those what was not needed
 * since the last time. */
bool um__slab_pool_in_excess(const um_slab_pool *pool);
void um__slab_pool_decay(um_slab_pool *pool);
/* An empty slab, small or large; with no pool it is plain memory. NULL without. */
um_slab *um__slab_take(um_slab_pool *pool, bool large);
/* Drops one reference; the last gives it back. */
void um__slab_give(um_slab *slab);
/* Makes the large slabs of this pool come from one registered region first. */
struct iovec;
int um__slab_arena(um_slab_pool *pool, struct iovec **regions, unsigned *count);

#endif
