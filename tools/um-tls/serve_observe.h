/* Looking into a running server: --metrics, and the list of fibers on SIGUSR1. */
#ifndef UM_TLS_SERVE_OBSERVE_H
#define UM_TLS_SERVE_OBSERVE_H

#include "serve.h"

/* Binds --metrics, if asked for, and says where. EXIT_OK, or a code after saying why. */
int serve_metrics_bind(server *s);
/* The fiber that answers scrapes, until it is cancelled. `arg` is the server. */
int serve_metrics(void *arg);
/* Every reactor lists its fibers on standard error. */
void serve_list_fibers(server *s);

#endif
