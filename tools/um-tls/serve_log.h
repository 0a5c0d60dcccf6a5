/* One line for each connection that failed, but never a flood of them: hostile
 * peers choose how often they fail. */
#ifndef UM_TLS_SERVE_LOG_H
#define UM_TLS_SERVE_LOG_H

#include <bio_uring/tls.h>
#include <stdbool.h>

/* One a reactor. */
typedef struct serve_log {
  bool verbose; /* also idle timeouts, and what we cut ourselves */
  um_time window;
  unsigned lines, suppressed;
} serve_log;

/* A connection ended with `reason`, before or after its handler first ran. */
void serve_log_end(serve_log *log, um_tls *tls, int reason, bool served);

#endif
