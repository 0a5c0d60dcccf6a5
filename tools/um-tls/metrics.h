/* um-tls serve --metrics: counters for Prometheus, over plain HTTP on a port of its own. */
#ifndef UM_TLS_METRICS_H
#define UM_TLS_METRICS_H

#include <bio_uring.h>

/* What one reactor shows. */
typedef struct metrics_sample {
  um_metrics reactor;
  um_histograms histograms;
  um_tls_listener_stats listener;
} metrics_sample;

typedef struct metrics_source {
  unsigned count; /* of reactors */
  void (*sample)(void *arg, unsigned reactor, metrics_sample *out); /* in a fiber; may wait */
  void *arg;
} metrics_source;

/* Answers scrapes on a listening socket until it is cancelled. In a fiber; `source` must
 * stay. 0 or why it could not. */
int metrics_serve(int listen_fd, const metrics_source *source);

#endif
