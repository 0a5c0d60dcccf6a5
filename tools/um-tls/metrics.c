/* Text format 0.0.4 of Prometheus. One scrape a connection. */
#include "metrics.h"

#include "http.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define SCRAPE_MS 5000
#define RETRY_MS 100
#define HEAD_LIMIT 4096
#define SCRAPES_MOST 32 /* at a time; more wait in the kernel's queue */

typedef struct metric {
  const char *name, *help;
  size_t offset; /* of a uint64_t in metrics_sample */
  bool gauge;
} metric;

#define REACTOR(field, help) {"reactor_" #field "_total", help, offsetof(metrics_sample, reactor.field), false}
#define REACTOR_NOW(field, help) {"reactor_" #field, help, offsetof(metrics_sample, reactor.field), true}
#define LISTENER(field, help) {"tls_" #field "_total", help, offsetof(metrics_sample, listener.field), false}
#define LISTENER_NOW(field, help) {"tls_" #field, help, offsetof(metrics_sample, listener.field), true}

static const metric metrics[] = {
  LISTENER(accepted, "Connections accepted."),
  LISTENER(handshakes, "TLS handshakes completed."),
  LISTENER(failed, "Connections that ended before their handshake had."),
  LISTENER(timed_out, "Connections whose handshake or idle deadline passed."),
  LISTENER(too_slow, "Connections whose handler gave up waiting for a request or for it to be taken."),
  LISTENER(too_much, "Connections that sent too long a handshake or too many records without data."),
  LISTENER(refused, "Connections closed at once: their address had as many as it may."),
  LISTENER(pauses, "Times accepting stopped at the limit of connections."),
  LISTENER(offloaded, "TLS handshakes given to worker threads."),
  LISTENER(trims, "Times memory was given back to the system after a burst."),
  LISTENER_NOW(shaking, "TLS handshakes in flight."),
  LISTENER_NOW(open, "Connections alive."),
  LISTENER_NOW(parked, "Connections alive without a fiber."),
  REACTOR(ticks, "Rounds of the loop."),
  REACTOR(enters, "System calls into the kernel's ring."),
  REACTOR(submissions, "Operations handed to the kernel."),
  REACTOR(completions, "Completions reaped."),
  REACTOR(cancels, "Cancellations asked for."),
  REACTOR(switches, "Fibers resumed."),
  REACTOR(waits, "Times the loop slept."),
  REACTOR(spawned, "Fibers started."),
  REACTOR_NOW(fibers, "Fibers alive."),
  REACTOR_NOW(pending, "Operations the kernel owns."),
  REACTOR(enobufs, "Receives that found no provided buffer."),
  REACTOR(sq_full, "Submission queue full."),
  REACTOR(cq_overflows, "Completion queue overflowed."),
  REACTOR(short_sends, "Sends resumed after a short count."),
  REACTOR(posts, "Callbacks posted from other threads."),
  REACTOR(wakes, "Wake-ups by other threads."),
  REACTOR(timers, "Timers that fired."),
  REACTOR_NOW(buffers_used, "Provided buffers not with the kernel."),
  REACTOR(received_bytes, "Ciphertext received."),
  REACTOR(sent_bytes, "Ciphertext sent."),
  REACTOR(copied_bytes, "Ciphertext copied out of shared buffers, unread at a tick's end."),
  REACTOR(accept_backoffs, "Accepting paused for want of descriptors or memory."),
  REACTOR(turns, "Times a connection gave way after its share of a turn."),
  REACTOR(floods, "Turns that records without data used up."),
  REACTOR_NOW(receive_queued, "Bytes of ciphertext received and not taken yet."),
  REACTOR_NOW(send_held, "Bytes of memory that connections' send buffers hold."),
  REACTOR(receive_pauses, "Times a connection had as much received and unread as it may."),
  REACTOR(send_waits, "Times a connection waited for its peer to take what was queued."),
  REACTOR(squeezed, "Times the reactor's totals made a connection's limit small."),
};

typedef struct exporter {
  const metrics_source *source;
  um_group scrapes;
  um_semaphore room;
  um_mutex sampling; /* one at a time: a source has one place for what it is told */
} exporter;

typedef struct scrape {
  exporter *exporter;
  int fd;
} scrape;

/* ---- the text ---- */

static void print_metric(FILE *out, const metric *m, const metrics_sample *samples, unsigned count) {
  fprintf(out, "# HELP bio_uring_%s %s\n# TYPE bio_uring_%s %s\n", m->name, m->help, m->name,
          m->gauge ? "gauge" : "counter");
  for (unsigned i = 0; i < count; i++) {
    uint64_t value;
    memcpy(&value, (const char *)&samples[i] + m->offset, sizeof value);
    fprintf(out, "bio_uring_%s{reactor=\"%u\"} %llu\n", m->name, i, (unsigned long long)value);
  }
}

/* The sum of the buckets, not the counter read beside them: the two must agree. */
static void print_buckets(FILE *out, const char *name, unsigned reactor, const um_histogram *h) {
  unsigned long long total = 0;
  for (unsigned i = 0; i < UM_HISTOGRAM_BUCKETS - 1; i++) {
    total += h->buckets[i];
    fprintf(out, "bio_uring_%s_bucket{reactor=\"%u\",le=\"%g\"} %llu\n", name, reactor,
            (double)(UINT64_C(1) << i) / 1e6, total);
  }
  total += h->buckets[UM_HISTOGRAM_BUCKETS - 1];
  fprintf(out, "bio_uring_%s_bucket{reactor=\"%u\",le=\"+Inf\"} %llu\n", name, reactor, total);
  fprintf(out, "bio_uring_%s_sum{reactor=\"%u\"} %.9f\n", name, reactor, (double)h->sum / 1e9);
  fprintf(out, "bio_uring_%s_count{reactor=\"%u\"} %llu\n", name, reactor, total);
}

static void print_histogram(FILE *out, const char *name, const char *help, size_t offset,
                            const metrics_sample *samples, unsigned count) {
  fprintf(out, "# HELP bio_uring_%s %s\n# TYPE bio_uring_%s histogram\n", name, help, name);
  for (unsigned i = 0; i < count; i++)
    print_buckets(out, name, i, (const um_histogram *)((const char *)&samples[i] + offset));
}

static void print_all(FILE *out, const metrics_sample *samples, unsigned count) {
  fprintf(out, "# HELP bio_uring_info Version of the library, and how it talks to the kernel.\n"
          "# TYPE bio_uring_info gauge\nbio_uring_info{version=\"%s\",backend=\"%s\"} 1\n",
          um_version(), um_reactor_backend(um_reactor_current()));
  for (size_t i = 0; i < sizeof metrics / sizeof *metrics; i++)
    print_metric(out, &metrics[i], samples, count);
  print_histogram(out, "reactor_busy_seconds", "Between a look at the kernel and the next sleep.",
                  offsetof(metrics_sample, histograms.busy), samples, count);
  print_histogram(out, "tls_handshake_seconds", "From accepting to the end of the handshake.",
                  offsetof(metrics_sample, histograms.handshake), samples, count);
}

/* ---- a scrape ---- */

static void reply(int fd, int status, const char *type, const char *body, size_t length, um_time deadline) {
  char head[256];
  int n = snprintf(head, sizeof head,
                   "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
                   "Connection: close\r\n\r\n",
                   status, status == 200 ? "OK" : "Not served", type, length);
  if (um_send(fd, head, (size_t)n, 0, deadline) == n) um_send(fd, body, length, 0, deadline);
}

static void refuse(int fd, int status, um_time deadline) {
  static const char body[] = "GET /metrics is all there is here.\n";
  reply(fd, status, "text/plain", body, sizeof body - 1, deadline);
}

static bool take_samples(exporter *e, metrics_sample *samples, um_time deadline) {
  if (um_mutex_lock(&e->sampling, deadline) < 0) return false;
  for (unsigned i = 0; i < e->source->count; i++) e->source->sample(e->source->arg, i, &samples[i]);
  um_mutex_unlock(&e->sampling);
  return true;
}

static void show(const scrape *s, um_time deadline) {
  char *text = NULL;
  size_t length = 0;
  unsigned count = s->exporter->source->count;
  metrics_sample *samples = calloc(count, sizeof *samples);
  bool taken = samples && take_samples(s->exporter, samples, deadline);
  FILE *out = taken ? open_memstream(&text, &length) : NULL;
  if (out) print_all(out, samples, count);
  if (out && fclose(out) == 0)
    reply(s->fd, 200, "text/plain; version=0.0.4; charset=utf-8", text, length, deadline);
  free(text);
  free(samples);
}

static int read_head(int fd, char *head, http_request *request, um_time deadline) {
  size_t have = 0, length = 0;
  while (!length) {
    ssize_t n = have < HEAD_LIMIT ? um_recv(fd, head + have, HEAD_LIMIT - have, 0, deadline) : 0;
    if (n <= 0) return have < HEAD_LIMIT ? -ECONNRESET : 431;
    have += (size_t)n;
    length = http_head_length(head, have, have - (size_t)n);
  }
  return http_parse(head, length, request);
}

static void end(scrape *s) {
  um_close(s->fd);
  um_semaphore_release(&s->exporter->room);
  free(s);
}

static int answer(void *arg) {
  scrape *s = arg;
  char head[HEAD_LIMIT];
  http_request request;
  um_time deadline = um_after(SCRAPE_MS);
  int status = read_head(s->fd, head, &request, deadline);
  if (status > 0) refuse(s->fd, status, deadline);
  else if (status == 0 && !http_slice_is(request.method, "GET")) refuse(s->fd, 405, deadline);
  else if (status == 0 && !http_slice_is(request.target, "/metrics")) refuse(s->fd, 404, deadline);
  else if (status == 0) show(s, deadline);
  um_shutdown(s->fd, SHUT_WR, deadline);
  end(s);
  return 0;
}

static void start(exporter *e, int fd) {
  um_fiber_options options = {.name = "metrics"};
  scrape *s = malloc(sizeof *s);
  if (s) *s = (scrape){e, fd};
  if (s && um_group_spawn(&e->scrapes, answer, s, &options) == 0) return;
  free(s);
  um_close(fd);
  um_semaphore_release(&e->room);
}

/* Not with an acceptor, which takes what the kernel has queued, room or not. */
static void accept_scrapes(exporter *e, int listen_fd) {
  int result = 0;
  while (result != -ECANCELED) {
    if ((result = um_semaphore_acquire(&e->room, UM_FOREVER)) < 0) continue;
    result = um_accept(listen_fd, NULL, NULL, SOCK_CLOEXEC, UM_FOREVER);
    if (result >= 0) {
      start(e, result);
      continue;
    }
    um_semaphore_release(&e->room);
    /* Out of descriptors, for example. */
    if (result != -ECANCELED) result = um_fiber_sleep(um_after(RETRY_MS));
  }
}

int metrics_serve(int listen_fd, const metrics_source *source) {
  exporter e = {.source = source};
  um_group_init(&e.scrapes);
  um_semaphore_init(&e.room, SCRAPES_MOST);
  um_mutex_init(&e.sampling);
  accept_scrapes(&e, listen_fd);
  um_group_cancel(&e.scrapes);
  return um_group_join(&e.scrapes, UM_FOREVER);
}
