#include "stack.h"

#include "alloc.h"
#include "switch.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#ifdef UM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef UM_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#if defined(__has_include)
#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#endif
#endif
#ifndef VALGRIND_STACK_REGISTER
#define VALGRIND_STACK_REGISTER(start, end) 0
#define VALGRIND_STACK_DEREGISTER(id) ((void)(id))
#endif

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

#define PAGE ((size_t)4096)
#define STACKS_PER_ARENA 64u
#define KEEP_WARM 256u /* free stacks whose pages are kept; of the rest they are given back */

typedef struct arena {
  struct arena *next;
  char *base;
  size_t length;
  um_stack stacks[STACKS_PER_ARENA];
} arena;

typedef struct um_stack_class {
  struct um_stack_class *next;
  size_t size;
  um_stack *free;
  unsigned free_count;
} um_stack_class;

struct um_stack_pool {
  arena *arenas;
  um_stack_class *classes;
};

um_stack_pool *um__stack_pool_new(void) { return um__alloc(sizeof(um_stack_pool)); }

void um__stack_pool_free(um_stack_pool *pool) {
  if (!pool) return;
  for (um_stack_class *c = pool->classes, *next; c; c = next) {
    next = c->next;
    for (um_stack *s = c->free; s; s = s->next) VALGRIND_STACK_DEREGISTER(s->valgrind_id);
    um__free(c);
  }
  for (arena *a = pool->arenas, *next; a; a = next) {
    next = a->next;
    munmap(a->base, a->length);
    um__free(a);
  }
  um__free(pool);
}

static um_stack_class *class_of(um_stack_pool *pool, size_t size) {
  for (um_stack_class *c = pool->classes; c; c = c->next)
    if (c->size == size) return c;
  um_stack_class *c = um__alloc(sizeof *c);
  if (!c) return NULL;
  c->size = size;
  c->next = pool->classes;
  pool->classes = c;
  return c;
}

/* A guard that could not be set is an error: an overflow must never be silent. */
static int install_guard(char *page) {
  return madvise(page, PAGE, MADV_GUARD_INSTALL) == 0 ? 0 : mprotect(page, PAGE, PROT_NONE);
}

static int add_arena(um_stack_pool *pool, um_stack_class *c) {
  size_t each = c->size + PAGE, length = each * STACKS_PER_ARENA;
  arena *a = um__alloc(sizeof *a);
  if (!a) return -1;
  a->base = mmap(NULL, length, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (a->base == MAP_FAILED) {
    um__free(a);
    return -1;
  }
  a->length = length;
  a->next = pool->arenas;
  pool->arenas = a;
  madvise(a->base, length, MADV_NOHUGEPAGE); /* else a stack costs 2 MiB or 22 KiB resident */
  for (unsigned i = STACKS_PER_ARENA; i-- > 0;)
    if (install_guard(a->base + i * each) != 0) return -1;
  for (unsigned i = STACKS_PER_ARENA; i-- > 0;) {
    char *bottom = a->base + i * each + PAGE;
    um_stack *stack = &a->stacks[i];
    *stack = (um_stack){.bottom = bottom, .size = c->size, .class = c, .next = c->free};
    stack->valgrind_id = (unsigned)VALGRIND_STACK_REGISTER(bottom, bottom + c->size);
    c->free = stack;
    c->free_count++;
  }
  return 0;
}

um_stack *um__stack_take(um_stack_pool *pool, size_t size) {
  um_stack_class *c = class_of(pool, size);
  if (!c || (!c->free && add_arena(pool, c) != 0)) return NULL;
  um_stack *stack = c->free;
  c->free = stack->next;
  c->free_count--;
  return stack;
}

void um__stack_give(um_stack *stack) {
  um_stack_class *c = stack->class;
#ifdef UM_ASAN
  __asan_unpoison_memory_region(stack->bottom, stack->size);
#endif
  if (++c->free_count > KEEP_WARM) madvise(stack->bottom, stack->size, MADV_DONTNEED);
  stack->next = c->free;
  c->free = stack;
}

/* ---- contexts ---- */

void um__context_make(um_context *context, um_stack *stack, void (*entry)(void *), void *argument) {
  memset(context, 0, sizeof *context);
  context->stack_pointer = um__switch_prepare(stack->bottom, stack->size, entry, argument);
#ifdef UM_ASAN
  context->bottom = stack->bottom;
  context->size = stack->size;
#endif
#ifdef UM_TSAN
  context->tsan = __tsan_create_fiber(0);
#endif
}

void um__context_free(um_context *context) {
#ifdef UM_TSAN
  __tsan_destroy_fiber(context->tsan);
#endif
  (void)context;
}

void um__context_switch(um_context *from, um_context *to, bool from_ends) {
  (void)from_ends;
#ifdef UM_ASAN
  __sanitizer_start_switch_fiber(from_ends ? NULL : &from->fake_stack, to->bottom, to->size);
#endif
#ifdef UM_TSAN
  from->tsan = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(to->tsan, 0);
#endif
  um__switch(&from->stack_pointer, to->stack_pointer);
#ifdef UM_ASAN
  __sanitizer_finish_switch_fiber(from->fake_stack, &to->bottom, &to->size);
#endif
}

void um__context_entered(um_context *self, um_context *from) {
  (void)self, (void)from;
#ifdef UM_ASAN
  __sanitizer_finish_switch_fiber(self->fake_stack, &from->bottom, &from->size);
#endif
}

/* ---- calls on another stack ---- */

typedef struct call {
  void (*fn)(void *);
  void *argument;
#ifdef UM_ASAN
  const void *bottom; /* the caller's stack */
  size_t size;
#endif
} call;

static void run_call(void *argument) {
  call *c = argument;
#ifdef UM_ASAN
  __sanitizer_finish_switch_fiber(NULL, &c->bottom, &c->size);
#endif
  c->fn(c->argument);
#ifdef UM_ASAN
  __sanitizer_start_switch_fiber(NULL, c->bottom, c->size);
#endif
}

void um__call_on(um_stack *stack, void (*fn)(void *), void *argument) {
  call c = {.fn = fn, .argument = argument};
#ifdef UM_ASAN
  void *fake_stack = NULL;
  __sanitizer_start_switch_fiber(&fake_stack, stack->bottom, stack->size);
#endif
  um__switch_call(stack->bottom + (stack->size & ~(size_t)15), run_call, &c);
#ifdef UM_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, NULL, NULL);
#endif
}
