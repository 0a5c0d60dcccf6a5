/* Stacks and switching between them.
 *
 * Stacks come from arenas and are reused last in, first out, so that a hot one is
 * hot in cache. Each has a guard page below it: MADV_GUARD_INSTALL (kernel 6.13)
 * keeps an arena one mapping; mprotect(2) before that.
 */
#ifndef UM_STACK_H
#define UM_STACK_H

#include <stdbool.h>
#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#define UM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UM_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define UM_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UM_TSAN 1
#endif
#endif

typedef struct um_stack {
  struct um_stack *next; /* in the pool */
  struct um_stack_class *class; /* of its size */
  char *bottom;          /* lowest usable address */
  size_t size;
  unsigned valgrind_id;
} um_stack;

typedef struct um_stack_pool um_stack_pool;

um_stack_pool *um__stack_pool_new(void);
void um__stack_pool_free(um_stack_pool *pool);
/* A stack of `size` bytes, or NULL. Its um_stack is not in it: a free one keeps no page. */
um_stack *um__stack_take(um_stack_pool *pool, size_t size);
void um__stack_give(um_stack *stack);

/* What the sanitizers must know about one side of a switch. */
typedef struct um_context {
  void *stack_pointer;
#ifdef UM_ASAN
  void *fake_stack;
  const void *bottom;
  size_t size;
#endif
#ifdef UM_TSAN
  void *tsan;
#endif
} um_context;

/* `entry(argument)` runs when the context is first switched to; never returns. */
void um__context_make(um_context *context, um_stack *stack, void (*entry)(void *), void *argument);
void um__context_free(um_context *context);
/* Saves where we are in *from, goes on in *to. `from_ends`: *from is never resumed. */
void um__context_switch(um_context *from, um_context *to, bool from_ends);
/* First thing on a new stack: completes the switch that led here. */
void um__context_entered(um_context *self, um_context *from);

/* Runs fn(argument) on another stack and returns when it does. */
void um__call_on(um_stack *stack, void (*fn)(void *), void *argument);

#endif
