/* What a server does not need once it listens. */
#ifndef UM_TLS_PRIVILEGES_H
#define UM_TLS_PRIVILEGES_H

#include <stdbool.h>

/* Becomes "NAME" or "NAME:GROUP", for good; nothing for NULL. EXIT_OK, or a code after saying
 * why not. Before threads start and rings are created. */
int privileges_drop(const char *user);
/* Without `allowed` neither a core dump nor a debugger gets at this process. The same. */
int privileges_core(bool allowed);

#endif
