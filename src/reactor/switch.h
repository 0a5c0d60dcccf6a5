/* The switch itself: assembly for x86-64 and aarch64, ucontext elsewhere.
 * Saves all callee-saved registers and the floating-point control state; signal
 * masks are the thread's and are left alone. */
#ifndef UM_SWITCH_H
#define UM_SWITCH_H

#include <stddef.h>

/* Stores the stack pointer to resume at in *save, continues at `restore`. */
void um__switch(void **save, void *restore);
/* A stack pointer for um__switch() that starts entry(argument) on the stack. */
void *um__switch_prepare(char *bottom, size_t size, void (*entry)(void *), void *argument);
/* fn(argument) with the stack pointer at `top` (16-byte aligned), then back. */
void um__switch_call(void *top, void (*fn)(void *), void *argument);

#endif
