/* One connection of a load run: open, work until the end, close; after a failure
 * open again. */
#include "load.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RETRY_MS 100
#define CLOSE_MS 2000

/* ---- errors ---- */

static enum load_error kind_of(int error) {
  if (error <= LOAD_FAILED(0)) return (enum load_error)(LOAD_FAILED(0) - error);
  switch (error) {
  case -ETIMEDOUT: return LOAD_TIMEOUT;
  case -ECONNRESET:
  case -EPIPE: return LOAD_RESET;
  case UM_ETRUNCATED: return LOAD_TRUNCATED;
  case UM_ETLS:
  case UM_EPLAINTEXT: return LOAD_TLS;
  case UM_EVERIFY: return LOAD_VERIFY;
  case -ECONNREFUSED:
  case -EADDRNOTAVAIL:
  case -EHOSTUNREACH:
  case -ENETUNREACH:
  case -EMFILE:
  case -ENFILE: return LOAD_CONNECT;
  default: return LOAD_OTHER;
  }
}

static const char *words_for(load_connection *c, int error) {
  enum load_error kind = kind_of(error);
  const char *words = c->tls ? um_tls_error(c->tls) : "";
  if (kind == LOAD_MISMATCH) return "what came back is not what was sent";
  if (kind == LOAD_STATUS) return "the response's status is not 2xx, or it has no Content-Length";
  if (kind == LOAD_CLOSED) return "the peer closed the connection";
  return *words ? words : um_strerror(error);
}

static void count_error(load_connection *c, int error) {
  load_worker *w = c->worker;
  LOAD_COUNT(w->counters.errors[kind_of(error)], 1);
  if (!*w->first_error)
    snprintf(w->first_error, sizeof w->first_error, "%s", words_for(c, error));
}

/* ---- opening and closing ---- */

static int open_socket(const load *l, um_time deadline) {
  int on = 1, fd = socket(l->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (l->options.cubic) setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
  int result = um_connect(fd, (const struct sockaddr *)&l->address, l->address_length, deadline);
  if (result < 0) um_close(fd);
  return result < 0 ? result : fd;
}

static int open_tls(load_connection *c, um_time deadline) {
  load_worker *w = c->worker;
  const load *l = w->load;
  int fd = open_socket(l, deadline);
  if (fd < 0) return fd;
  um_tls_options options = client_tls_options(&l->options.client, &l->peer, w->session);
  int result = um_tls_client(&c->tls, fd, l->ctx, &options);
  if (result) c->tls = NULL;
  else result = um_tls_handshake(c->tls, deadline);
  if (result) return result;
  LOAD_COUNT(w->counters.handshakes, 1);
  if (SSL_session_reused(um_tls_ssl(c->tls))) LOAD_COUNT(w->counters.resumed, 1);
  return 0;
}

static void drop(load_connection *c, int result) {
  if (!c->tls) return;
  if (result) um_tls_abort(c->tls);
  else um_tls_close(c->tls, um_after(CLOSE_MS));
  c->tls = NULL;
  c->start = c->end = 0;
}

/* Sessions of TLS 1.3 are good for one connection each. */
static void keep_session(load_connection *c) {
  load_worker *w = c->worker;
  if (!w->load->options.resume) return;
  SSL_SESSION *session = um_tls_session(c->tls);
  if (!session) return;
  SSL_SESSION_free(w->session);
  w->session = session;
}

/* ---- working ---- */

static bool take_quota(load_connection *c) {
  load_worker *w = c->worker;
  if (!w->quota || c->now >= w->load->ends) return false;
  w->quota -= w->quota < w->load->options.pipeline ? w->quota : w->load->options.pipeline;
  return true;
}

static um_time limit(const load_connection *c) {
  return c->now + c->worker->load->options.timeout * UM_MS;
}

static int batch(load_connection *c, um_time deadline) {
  const load_options *o = &c->worker->load->options;
  if (o->echo) return load_echo(c, deadline);
  return o->http ? load_http(c, deadline) : 0;
}

static void count_batch(load_connection *c, um_time from) {
  load_worker *w = c->worker;
  uint64_t n = w->load->options.pipeline;
  w->last = c->now = um_now();
  histogram_add(&w->latencies, (uint64_t)(c->now - from), n);
  LOAD_COUNT(w->counters.operations, n);
}

/* When the next operation starts to count: now, or with --rate when it is due,
 * however late we are (a late server would otherwise set the pace). */
static um_time wait_until_due(load_connection *c) {
  const load *l = c->worker->load;
  if (!l->options.rate) return c->now;
  um_time due = c->due;
  c->due += (um_time)(l->options.connections * l->options.pipeline * UM_SECOND / l->options.rate);
  if (due > c->now) {
    um_fiber_sleep(due < l->ends ? due : l->ends);
    c->now = um_now();
  }
  return due;
}

static int work(load_connection *c) {
  int result = 0;
  while (!result && take_quota(c)) {
    um_time from = wait_until_due(c);
    if (c->now >= c->worker->load->ends) break;
    result = batch(c, limit(c));
    if (!result) count_batch(c, from);
  }
  return result;
}

/* Held open until the end: nothing may come, and it must still work then. */
static int hold(load_connection *c) {
  const load *l = c->worker->load;
  ssize_t n = um_tls_read(c->tls, c->buffer, 1, l->ends);
  if (n != -ETIMEDOUT) return n < 0 ? (int)n : LOAD_FAILED(n ? LOAD_MISMATCH : LOAD_CLOSED);
  um_time from = c->now = um_now();
  if (!l->options.echo && !l->options.http) return 0;
  int result = batch(c, limit(c));
  if (!result) count_batch(c, from);
  return result;
}

/* Without a request, the peer's close_notify is the sign that it is done. */
static int finish_handshake(load_connection *c, um_time deadline) {
  const load_options *o = &c->worker->load->options;
  if (o->echo || o->http) return 0;
  int result = um_tls_shutdown(c->tls, deadline);
  if (result) return result;
  ssize_t n = um_tls_read(c->tls, c->buffer, 1, deadline);
  return n > 0 ? LOAD_FAILED(LOAD_MISMATCH) : (int)n;
}

static int work_on_new(load_connection *c) {
  int result = 0;
  while (!result && take_quota(c)) {
    um_time from = wait_until_due(c), deadline = limit(c);
    if (c->now >= c->worker->load->ends) break;
    result = open_tls(c, deadline);
    if (!result) result = batch(c, deadline);
    if (!result) result = finish_handshake(c, deadline);
    if (result) break;
    count_batch(c, from);
    keep_session(c);
    drop(c, 0);
  }
  return result;
}

/* ---- a connection's life ---- */

/* Everyone starts together, when each has connected or failed to. */
static void settle(load_connection *c) {
  load *l = c->worker->load;
  if (c->settled) return;
  c->settled = true;
  if (atomic_fetch_sub(&l->unsettled, 1) == 1) um_event_set(&l->settled);
  um_event_wait(&l->go, UM_FOREVER);
  c->now = um_now();
  if (l->options.rate) /* spread over one period */
    c->due = l->started + (um_time)(UM_SECOND * c->index / l->options.rate * l->options.threads);
}

static int open_in_turn(load_connection *c) {
  load_worker *w = c->worker;
  um_semaphore_acquire(&w->opening, UM_FOREVER);
  int result = open_tls(c, um_after(w->load->options.timeout));
  um_semaphore_release(&w->opening);
  if (!result) LOAD_COUNT(w->counters.open, 1);
  return result;
}

static int live(load_connection *c) {
  load_worker *w = c->worker;
  if (w->load->options.new_connections) return settle(c), work_on_new(c);
  int result = open_in_turn(c);
  if (result && w->quota) w->quota--; /* or a run of so many requests might never end */
  if (result) return result;
  settle(c);
  result = w->load->options.idle ? hold(c) : work(c);
  LOAD_COUNT(w->counters.open, (uint64_t)-1);
  return result;
}

static bool goes_on(load_connection *c) {
  load_worker *w = c->worker;
  settle(c);
  if (w->load->options.idle || !w->quota) return false;
  um_fiber_sleep(um_after(RETRY_MS));
  c->now = um_now();
  return c->now < w->load->ends;
}

int load_connection_run(void *connection) {
  load_connection *c = connection;
  load *l = c->worker->load;
  int result;
  do {
    result = live(c);
    if (result) count_error(c, result);
    drop(c, result);
  } while (result && goes_on(c));
  if (atomic_fetch_sub(&l->running, 1) == 1) um_event_set(&l->finished);
  free(c->buffer);
  free(c);
  return 0;
}
