#include "slab.h"

#include "alloc.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#define KEEP_SMALL 512u
#define KEEP_LARGE 32u
#define ARENA_SLABS 32u
#define PAGE 4096u

struct um_slab_pool {
  um_slab *free[2];      /* small, large */
  unsigned count[2];
  um_slab *registered;   /* free ones of the arena */
  char *arena;
  struct iovec regions[ARENA_SLABS];
};

static size_t arena_stride(void) {
  return (sizeof(um_slab) + UM_SLAB_LARGE + PAGE - 1) / PAGE * PAGE;
}

um_slab_pool *um__slab_pool_new(void) { return um__alloc(sizeof(um_slab_pool)); }

void um__slab_pool_shrink(um_slab_pool *pool) {
  for (int large = 0; large < 2; large++) {
    for (um_slab *slab = pool->free[large], *next; slab; slab = next) {
      next = slab->next;
      um__free(slab);
    }
    pool->free[large] = NULL;
    pool->count[large] = 0;
  }
}

void um__slab_pool_free(um_slab_pool *pool) {
  if (!pool) return;
  um__slab_pool_shrink(pool);
  if (pool->arena) munmap(pool->arena, arena_stride() * ARENA_SLABS);
  um__free(pool);
}

/* Page-aligned: registration pins whole pages. */
int um__slab_arena(um_slab_pool *pool, struct iovec **regions, unsigned *count) {
  size_t stride = arena_stride();
  pool->arena = mmap(NULL, stride * ARENA_SLABS, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pool->arena == MAP_FAILED) {
    pool->arena = NULL;
    return -ENOMEM;
  }
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
  um_slab *slab = um__alloc_raw(sizeof *slab + capacity);
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
  if (slab->registered < 0) pool->count[large]--;
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
  } else if (!pool || pool->count[large] >= (large ? KEEP_LARGE : KEEP_SMALL)) {
    um__free(slab);
  } else {
    pool->count[large]++;
    slab->next = pool->free[large];
    pool->free[large] = slab;
  }
}
