#include "alloc.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int (*um__alloc_fails)(void);

void *um__alloc(size_t size) {
  if (__builtin_expect(um__alloc_fails != NULL, 0) && um__alloc_fails()) return NULL;
  return calloc(1, size);
}

void *um__alloc_raw(size_t size) {
  if (__builtin_expect(um__alloc_fails != NULL, 0) && um__alloc_fails()) return NULL;
  return malloc(size);
}

void um__free(void *memory) { free(memory); }

void *um__map(size_t size) {
  if (__builtin_expect(um__alloc_fails != NULL, 0) && um__alloc_fails()) return NULL;
  void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? NULL : memory;
}

void um__unmap(void *memory, size_t size) { munmap(memory, size); }

char *um__strdup(const char *text) {
  size_t size = strlen(text) + 1;
  char *copy = um__alloc_raw(size);
  return copy ? memcpy(copy, text, size) : NULL;
}
