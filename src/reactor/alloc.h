/* Every allocation of the library's own goes through here, so that tests can
 * make the n-th one fail (alloc.c). */
#ifndef UM_ALLOC_H
#define UM_ALLOC_H

#include <stddef.h>

void *um__alloc(size_t size);      /* zeroed, or NULL */
void *um__alloc_raw(size_t size);  /* not zeroed, or NULL */
void um__free(void *memory);
/* The same in a mapping of its own: it goes back to the system as a whole, where malloc(3)
 * would keep it once such sizes have become usual. */
void *um__map(size_t size);
void um__unmap(void *memory, size_t size);
char *um__strdup(const char *text);

/* Tests: when set, consulted before each allocation; true makes it fail. */
extern int (*um__alloc_fails)(void);

#endif
