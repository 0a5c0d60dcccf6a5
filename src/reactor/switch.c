/* Preparing a stack for um__switch(); and the whole switch where there is no
 * assembly for the machine (about eight times slower: it saves the signal mask), or
 * where a test asks for that one. */
#include "switch.h"

#include <stdint.h>
#include <string.h>

static char *aligned_top(char *bottom, size_t size) {
  return (char *)((uintptr_t)(bottom + size) & ~(uintptr_t)15);
}

#if defined(__x86_64__) && !defined(UM_UCONTEXT)

extern void um__switch_start(void);

void *um__switch_prepare(char *bottom, size_t size, void (*entry)(void *), void *argument) {
  void **frame = (void **)aligned_top(bottom, size) - 10;
  memset(frame, 0, 10 * sizeof *frame);
  uint32_t mxcsr;
  uint16_t x87;
  __asm__("stmxcsr %0" : "=m"(mxcsr));
  __asm__("fnstcw %0" : "=m"(x87));
  memcpy((char *)frame, &mxcsr, sizeof mxcsr);
  memcpy((char *)frame + 4, &x87, sizeof x87);
  frame[3] = argument;                               /* r13 */
  frame[4] = (void *)(uintptr_t)entry;               /* r12 */
  frame[7] = (void *)(uintptr_t)um__switch_start;    /* rip; the call there aligns */
  return frame;
}

#elif defined(__aarch64__) && !defined(UM_UCONTEXT)

extern void um__switch_start(void);

void *um__switch_prepare(char *bottom, size_t size, void (*entry)(void *), void *argument) {
  char *frame = aligned_top(bottom, size) - 176;
  memset(frame, 0, 176);
  uint64_t fpcr;
  __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
  memcpy(frame + 160, &fpcr, sizeof fpcr);
  void *start = (void *)(uintptr_t)um__switch_start;
  memcpy(frame + 0, &entry, sizeof entry);       /* x19 */
  memcpy(frame + 8, &argument, sizeof argument); /* x20 */
  memcpy(frame + 88, &start, sizeof start);      /* x30 */
  return frame;
}

#else

#include <ucontext.h>

/* A context lives at the top of its own stack, or in the switcher's frame. */
typedef struct prepared {
  ucontext_t context;
  void (*entry)(void *);
  void *argument;
} prepared;

static void start(unsigned high, unsigned low) {
  prepared *self = (prepared *)(uintptr_t)((uint64_t)high << 32 | low);
  self->entry(self->argument);
  __builtin_trap();
}

void *um__switch_prepare(char *bottom, size_t size, void (*entry)(void *), void *argument) {
  prepared *self = (prepared *)(void *)aligned_top(bottom, size - sizeof *self);
  self->entry = entry;
  self->argument = argument;
  getcontext(&self->context);
  self->context.uc_stack.ss_sp = bottom;
  self->context.uc_stack.ss_size = (size_t)((char *)self - bottom);
  self->context.uc_link = NULL;
  uint64_t address = (uint64_t)(uintptr_t)self;
  makecontext(&self->context, (void (*)(void))(uintptr_t)start, 2, (unsigned)(address >> 32),
              (unsigned)address);
  return &self->context;
}

void um__switch(void **save, void *restore) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, restore);
}

/* The caller's stack will do: ucontext machines use the default, large stacks. */
void um__switch_call(void *top, void (*fn)(void *), void *argument) {
  (void)top;
  fn(argument);
}

#endif
