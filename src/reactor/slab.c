#include "slab.h"

#include "alloc.h"

#include <errno.h>
#include <sys/uio.h>

#define LARGE_SIZE (sizeof(um_slab) + UM_SLAB_LARGE)
static const unsigned keep[2] = {512, 8}; /* however long they are not needed */
#define ARENA_SLABS 32u
#define PAGE 4096u

struct um_slab_pool {
  um_slab *free[2];      /* small, large */
  unsigned count[2];
  unsigned least[2];     /* free at every moment since the last decay */
  um_slab *registered;   /* free ones of the arena */
  char *arena;
  struct iovec regions[ARENA_SLABS];
};

static size_t arena_stride(void) {
  return (sizeof(um_slab) + UM_SLAB_LARGE + PAGE - 1) / PAGE * PAGE;
}

um_slab_pool *um__slab_pool_new(void) { return um__alloc(sizeof(um_slab_pool)); }

static void destroy(um_slab *slab) {
  if (slab->capacity == UM_SLAB_LARGE) um__unmap(slab, LARGE_SIZE);
  else um__free(slab);
}

static void free_some(um_slab_pool *pool, bool large, unsigned most) {
  for (um_slab *slab; most && (slab = pool->free[large]); most--) {
    pool->free[large] = slab->next;
    pool->count[large]--;
    destroy(slab);
  }
  pool->least[large] = pool->count[large];
}

void um__slab_pool_shrink(um_slab_pool *pool) {
  free_some(pool, false, pool->count[false]);
  free_some(pool, true, pool->count[true]);
}

bool um__slab_pool_in_excess(const um_slab_pool *pool) {
  return pool->count[false] > keep[false] || pool->count[true] > keep[true];
}

void um__slab_pool_decay(um_slab_pool *pool) {
  for (int large = 0; large < 2; large++)
    free_some(pool, large, pool->least[large] > keep[large] ? pool->least[large] - keep[large] : 0);
}

void um__slab_pool_free(um_slab_pool *pool) {
  if (!pool) return;
  um__slab_pool_shrink(pool);
  if (pool->arena) um__unmap(pool->arena, arena_stride() * ARENA_SLABS);
  um__free(pool);
}

/* Page-aligned: registration pins whole pages. */
int um__slab_arena(um_slab_pool *pool, struct iovec **regions, unsigned *count) {
  size_t stride = arena_stride();
  pool->arena = um__map(stride * ARENA_SLABS);
  if (!pool->arena) return -ENOMEM;
  for (unsigned i = 0; i < ARENA_SLABS; i++) {
    um_slab *slab = (um_slab *)(pool->arena + i * stride);
    slab->capacity = UM_SLAB_LARGE;
    slab->registered = (int)i;
    slab->pool = pool;
    slab->next = pool->registered;
    pool->registered = slab;
    pool->regions[i] = (struct iovec){slab, stride};
  }
  *regions = pool->regions;
  *count = ARENA_SLABS;
  return 0;
}

static um_slab *fresh(bool large) {
  uint32_t capacity = large ? UM_SLAB_LARGE : UM_SLAB_SMALL;
  um_slab *slab = large ? um__map(LARGE_SIZE) : um__alloc_raw(sizeof *slab + capacity);
  if (!slab) return NULL;
  slab->capacity = capacity;
  slab->registered = -1;
  return slab;
}

static um_slab *pooled(um_slab_pool *pool, bool large) {
  um_slab **list = large && pool->registered ? &pool->registered : &pool->free[large];
  um_slab *slab = *list;
  if (!slab) return NULL;
  *list = slab->next;
  if (slab->registered < 0 && --pool->count[large] < pool->least[large])
    pool->least[large] = pool->count[large];
  return slab;
}

um_slab *um__slab_take(um_slab_pool *pool, bool large) {
  um_slab *slab = pool ? pooled(pool, large) : NULL;
  if (!slab && !(slab = fresh(large))) return NULL;
  slab->pool = pool;
  slab->start = slab->end = 0;
  slab->next = NULL;
  slab->references = 1;
  return slab;
}

void um__slab_give(um_slab *slab) {
  if (--slab->references) return;
  um_slab_pool *pool = slab->pool;
  bool large = slab->capacity == UM_SLAB_LARGE;
  if (slab->registered >= 0) {
    slab->next = pool->registered;
    pool->registered = slab;
  } else if (!pool) {
    destroy(slab);
  } else {
    pool->count[large]++;
    slab->next = pool->free[large];
    pool->free[large] = slab;
  }
}
