#include "serve_observe.h"

#include "address.h"
#include "exit_codes.h"
#include "metrics.h"
#include "say.h"

#include <stdio.h>
#include <string.h>

#define SAMPLE_MS 1000

int serve_metrics_bind(server *s) {
  um_error error;
  char where[160];
  if (!s->options.metrics) return EXIT_OK;
  s->metrics_fd = um_tcp_listen(s->options.metrics, 0, &error);
  if (s->metrics_fd < 0)
    return fail(s->metrics_fd == UM_ERESOLVE ? EXIT_RESOLVE : EXIT_LISTEN, "--metrics: %s",
                error.message);
  address_of_socket(s->metrics_fd, ADDRESS_LOCAL, where, sizeof where);
  say("metrics on http://%s/metrics", where);
  return EXIT_OK;
}

/* ---- metrics ---- */

/* A listener's counters belong to its thread: it is asked for a copy there. */
static int copy_stats(void *arg) {
  serve_worker *w = arg;
  if (w->listener) um_tls_listener_stats_get(w->listener, &w->copied);
  um_semaphore_release(&w->copying);
  return 0;
}

/* A reactor that does not answer is shown as it was when it last did. */
static void sample(void *arg, unsigned index, metrics_sample *out) {
  serve_worker *w = &((server *)arg)->workers[index];
  um_reactor_metrics(w->reactor, &out->reactor);
  um_reactor_histograms(w->reactor, &out->histograms);
  if (!w->asked && um_post(w->reactor, copy_stats, w) == 0) w->asked = true;
  if (w->asked && um_semaphore_acquire(&w->copying, um_after(SAMPLE_MS)) == 0) {
    w->asked = false;
    w->shown = w->copied;
  }
  out->listener = w->shown;
}

int serve_metrics(void *arg) {
  server *s = arg;
  metrics_source source = {s->count, sample, s};
  return metrics_serve(s->metrics_fd, &source);
}

/* ---- fibers ---- */

static void list_fiber(const um_fiber_info *f, void *arg) {
  char until[48] = "", descriptor[24] = "";
  if (f->deadline != UM_FOREVER)
    snprintf(until, sizeof until, ", at most %.3f s more", (double)(f->deadline - um_now()) / 1e9);
  if (f->fd >= 0) snprintf(descriptor, sizeof descriptor, " on fd %d", f->fd);
  say("reactor %u: fiber %p %s: %s%s%s%s for %.3f s%s", *(unsigned *)arg, f->id,
      f->name ? f->name : "(unnamed)", f->state, f->waits_for ? " for " : "",
      f->waits_for ? f->waits_for : "", descriptor, (double)f->age / 1e9, until);
}

static int list_fibers(void *arg) {
  serve_worker *w = arg;
  unsigned index = (unsigned)(w - w->server->workers);
  um_tls_listener_stats stats = {0};
  if (w->listener) um_tls_listener_stats_get(w->listener, &stats);
  say("reactor %u: %llu connections, %llu of them parked without a fiber", index,
      (unsigned long long)stats.open, (unsigned long long)stats.parked);
  return um_reactor_fibers(w->reactor, list_fiber, &index);
}

void serve_list_fibers(server *s) {
  for (unsigned i = 0; i < s->count; i++) um_post(s->workers[i].reactor, list_fibers, &s->workers[i]);
}
