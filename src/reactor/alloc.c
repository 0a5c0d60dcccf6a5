#include "alloc.h"

#include <stdlib.h>
#include <string.h>

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

char *um__strdup(const char *text) {
  size_t size = strlen(text) + 1;
  char *copy = um__alloc_raw(size);
  return copy ? memcpy(copy, text, size) : NULL;
}
