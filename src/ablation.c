/* Compiled only with -Dablation=true. */
#include "ablation.h"

#include "error.h"

#include <stdlib.h>
#include <string.h>

unsigned um__ablation;

static const char *const names[] = {"defer-taskrun", "multishot",       "incremental",
                                    "shared-stack",  "release-buffers", "coalescing"};

static unsigned bit_of(const char *name, size_t length) {
  for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
    if (strlen(names[i]) == length && !memcmp(names[i], name, length)) return 1u << i;
  return 0;
}

int um__ablation_read(um_error *error) {
  const char *name = getenv("UM_ABLATE");
  um__ablation = 0;
  while (name && *name) {
    size_t length = strcspn(name, ",");
    unsigned bit = bit_of(name, length);
    if (!bit)
      return um__fail(error, UM_ECONFIG, "UM_ABLATE: no decision '%.*s'", (int)length, name);
    um__ablation |= bit;
    name += length + (name[length] == ',');
  }
  return 0;
}
