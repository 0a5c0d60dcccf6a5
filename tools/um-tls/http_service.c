#include "http_service.h"

#include "http.h"
#include "response.h"
#include "static_files.h"

#include <bio_uring/io.h>
#include <limits.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEAD_LIMIT 16384          /* request line and fields together */
#define BODY_LIMIT (1024 * 1024)  /* of a request; read and thrown away */
#define CHUNK (128 * 1024)        /* of a file at a time */
#define SPARE_CHUNKS 8            /* kept for the next file */
#define LINGER_MS 2000            /* for the peer to read a last response */

static const char welcome[] = "um-tls is serving. There is no index.html here.\n";

struct http_service {
  http_site *site;
  http_date date;
  char *ready; /* whole response of --body: head_length + site->body bytes */
  size_t ready_head, ready_date; /* where its Date's value is */
  unsigned spare_count;
  char *spare[SPARE_CHUNKS];
};

/* One connection while its handler runs. Bytes of `head` from `start` to `end`
 * were read and not used. */
typedef struct exchange {
  um_tls *tls;
  http_service *service;
  size_t start, end, most; /* most: `end` ever */
  http_request request;
  bool keep_alive; /* of the response */
  um_time request_limit;    /* when all of the request must be here */
  um_time response_started;
  uint64_t sent;            /* of the response */
  char head[HEAD_LIMIT];
} exchange;

/* ---- the service ---- */

static int make_ready(http_service *s) {
  response r = {.status = 200, .type = "application/octet-stream", .keep_alive = true,
                .length = s->site->body, .fields = s->site->fields};
  char head[RESPONSE_HEAD_MAX];
  s->ready_head = response_head(head, &r, &s->date);
  s->ready_date = (size_t)(strstr(head, "Date: ") + 6 - head);
  s->ready = malloc(s->ready_head + s->site->body);
  if (!s->ready) return -ENOMEM;
  memcpy(s->ready, head, s->ready_head);
  for (size_t i = 0; i < s->site->body; i++) s->ready[s->ready_head + i] = (char)('a' + i % 26);
  return 0;
}

http_service *http_service_create(http_site *site) {
  http_service *s = calloc(1, sizeof *s);
  if (!s) return NULL;
  s->site = site;
  http_date_renew(&s->date);
  if (site->has_body && make_ready(s)) {
    free(s);
    return NULL;
  }
  return s;
}

void http_service_destroy(http_service *s) {
  if (!s) return;
  while (s->spare_count) free(s->spare[--s->spare_count]);
  free(s->ready);
  free(s);
}

static void renew_date(http_service *s) {
  if (http_date_renew(&s->date) && s->ready)
    memcpy(s->ready + s->ready_date, s->date.text, HTTP_DATE_LENGTH);
}

static char *take_chunk(http_service *s) {
  return s->spare_count ? s->spare[--s->spare_count] : malloc(CHUNK);
}

/* Another connection will use it. */
static void give_chunk(http_service *s, char *chunk, uint64_t used) {
  OPENSSL_cleanse(chunk, used < CHUNK ? (size_t)used : CHUNK);
  if (s->spare_count < SPARE_CHUNKS) s->spare[s->spare_count++] = chunk;
  else free(chunk);
}

/* ---- sending ---- */

static um_time wait_limit(const exchange *x) { return um_after(x->service->site->wait_ms); }

/* When the next `length` bytes of the response must have been taken, or some of them: a peer may
 * be slow, but not for as long as it likes. */
static um_time send_limit(const exchange *x, size_t length) {
  const http_site *site = x->service->site;
  double seconds = (double)(x->sent + length) / (double)site->min_rate;
  um_time whole = x->response_started + site->wait_ms * UM_MS + (um_time)(seconds * 1e9);
  um_time some = wait_limit(x);
  return whole < some ? whole : some;
}

static int send_all(exchange *x, const char *data, size_t length) {
  while (length) {
    size_t part = length < CHUNK ? length : CHUNK;
    ssize_t n = um_tls_write(x->tls, data, part, send_limit(x, part));
    if (n < 0) return (int)n;
    x->sent += (uint64_t)n;
    data += n;
    length -= (size_t)n;
  }
  return 0;
}

static bool is_head(const exchange *x) { return http_slice_is(x->request.method, "HEAD"); }

static void begin_response(exchange *x) {
  x->response_started = um_now();
  x->sent = 0;
}

static response respond(exchange *x, int status, const char *type, uint64_t length) {
  begin_response(x);
  return (response){.status = status, .type = type, .length = length,
                    .keep_alive = x->keep_alive, .http_1_0 = x->request.http_1_0,
                    .fields = x->service->site->fields};
}

/* Head and a short text in one record. */
static int send_text(exchange *x, const response *r, const char *text) {
  char out[RESPONSE_HEAD_MAX + 128];
  size_t n = response_head(out, r, &x->service->date);
  if (!is_head(x)) {
    memcpy(out + n, text, r->length);
    n += r->length;
  }
  return send_all(x, out, n);
}

static int send_status(exchange *x, int status, uint64_t file_size) {
  char text[64];
  int n = snprintf(text, sizeof text, "%d %s\n", status, response_reason(status));
  response r = respond(x, status, "text/plain; charset=utf-8", (uint64_t)n);
  r.size = file_size;
  return send_text(x, &r, text);
}

/* ---- what is served ---- */

static int send_ready(exchange *x) {
  http_service *s = x->service;
  begin_response(x);
  if (x->keep_alive && !x->request.http_1_0)
    return send_all(x, s->ready, s->ready_head + (is_head(x) ? 0 : s->site->body));
  char head[RESPONSE_HEAD_MAX];
  response r = respond(x, 200, "application/octet-stream", s->site->body);
  int result = send_all(x, head, response_head(head, &r, &s->date));
  return result || is_head(x) ? result : send_all(x, s->ready + s->ready_head, s->site->body);
}

/* `filled` bytes of `chunk` (the response's head) go out with the first of the
 * file. A file that turns out shorter ends the connection: its length was told. */
static int send_range(exchange *x, const static_file *file, char *chunk, size_t filled,
                      uint64_t from, uint64_t length) {
  do {
    size_t want = length < CHUNK - filled ? (size_t)length : CHUNK - filled;
    ssize_t n = want ? static_read(file, chunk + filled, want, from) : 0;
    if (n < 0 || (want && !n)) return n < 0 ? (int)n : -EIO;
    int result = send_all(x, chunk, filled + (size_t)n);
    if (result) return result;
    from += (uint64_t)n;
    length -= (uint64_t)n;
    filled = 0;
  } while (length);
  return 0;
}

static int send_file(exchange *x, const static_file *file) {
  uint64_t first = 0, last = file->size ? file->size - 1 : 0;
  bool whole = is_head(x) || x->request.if_range; /* If-Range: we have no validator to match */
  int status = whole ? 200 : http_range(x->request.range, file->size, &first, &last);
  if (status == 416) return send_status(x, 416, file->size);
  if (status == 200) first = 0, last = file->size ? file->size - 1 : 0;
  response r = respond(x, status, file->type, file->size ? last - first + 1 : 0);
  r.first = first, r.last = last, r.size = file->size;
  char *chunk = take_chunk(x->service);
  if (!chunk) return send_status(x, 503, 0);
  size_t head = response_head(chunk, &r, &x->service->date);
  int result = send_range(x, file, chunk, head, first, is_head(x) ? 0 : r.length);
  give_chunk(x->service, chunk, head + r.length);
  return result;
}

static int send_path(exchange *x, const char *path) {
  static_file file;
  int root = x->service->site->root;
  int status = root < 0 ? 404 : static_open(&file, root, path, wait_limit(x));
  if (!status) {
    int result = send_file(x, &file);
    um_close(file.fd);
    return result;
  }
  if (status != 404 || strcmp(path, "/")) return send_status(x, status, 0);
  response r = respond(x, 200, "text/plain; charset=utf-8", sizeof welcome - 1);
  return send_text(x, &r, welcome);
}

static int send_target(exchange *x) {
  char path[PATH_MAX];
  if (x->service->site->has_body) return send_ready(x);
  int status = http_path(x->request.target, path, sizeof path);
  return status ? send_status(x, status, 0) : send_path(x, path);
}

/* ---- requests ---- */

/* Known and not allowed, or not known at all. */
static int status_of_method(http_slice method) {
  static const char *const known[] = {"POST",    "PUT",   "DELETE", "PATCH",
                                      "OPTIONS", "TRACE", "CONNECT"};
  /* NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage): http_parse() has set it */
  if (http_slice_is(method, "GET") || http_slice_is(method, "HEAD")) return 0;
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (http_slice_is(method, known[i])) return 405;
  return 501;
}

/* A body is read to its end before anything is answered, so that the bytes after
 * it are the next request's; or it is not read at all, and then the connection
 * ends with the response. */
static int discard_body(exchange *x) {
  char scratch[4096];
  uint64_t left = x->request.content_length;
  size_t here = x->end - x->start < left ? x->end - x->start : (size_t)left;
  x->start += here;
  left -= here;
  um_time limit = left ? x->request_limit : UM_FOREVER;
  while (left) {
    ssize_t n =
        um_tls_read(x->tls, scratch, left < sizeof scratch ? (size_t)left : sizeof scratch, limit);
    if (n <= 0) return n < 0 ? (int)n : UM_ETRUNCATED;
    OPENSSL_cleanse(scratch, (size_t)n);
    left -= (uint64_t)n;
  }
  return 0;
}

static int unreadable_body(const http_request *request) {
  if (request->chunked) return 411;
  if (request->content_length > BODY_LIMIT) return 413;
  return request->expects_continue && request->content_length ? 417 : 0;
}

static int answer(exchange *x) {
  int status = status_of_method(x->request.method), unreadable = unreadable_body(&x->request);
  x->keep_alive = x->request.keep_alive && !unreadable && !atomic_load(&x->service->site->draining);
  if (unreadable) return send_status(x, status ? status : unreadable, 0);
  int result = x->request.content_length ? discard_body(x) : 0;
  if (result) return result;
  return status ? send_status(x, status, 0) : send_target(x);
}

/* Refuses a head that could not be understood; nothing after it can be either. */
static int refuse(exchange *x, int status) {
  x->request = (http_request){0};
  x->keep_alive = false;
  return send_status(x, status, 0);
}

/* Answers the head of `length` bytes at x->start. */
static int answer_head(exchange *x, size_t length) {
  int status = http_parse(x->head + x->start, length, &x->request);
  x->start += length;
  renew_date(x->service);
  return status ? refuse(x, status) : answer(x);
}

/* A last response is lost when the socket closes with unread bytes in it (the
 * kernel then sends RST): so the peer may first finish what it is sending. */
static int linger(exchange *x) {
  um_time limit = um_after(LINGER_MS);
  uint64_t left = BODY_LIMIT;
  x->most = sizeof x->head;
  if (um_tls_shutdown(x->tls, limit)) return UM_TLS_CLOSE;
  while (left) {
    ssize_t n = um_tls_read(x->tls, x->head, sizeof x->head, limit);
    if (n <= 0) break;
    left -= (uint64_t)n < left ? (uint64_t)n : left;
  }
  return UM_TLS_CLOSE;
}

/* Told, and then counted as what it is (um_tls_listener_stats.too_slow). */
static int too_slow(exchange *x) {
  if (!refuse(x, 408)) linger(x);
  return -ETIMEDOUT;
}

/* ---- reading ---- */

enum { NO_MORE = 0 }; /* and UM_TLS_* by *outcome */

/* The length of the next head, or NO_MORE: then the handler returns *outcome. */
static size_t next_head(exchange *x, int *outcome) {
  size_t searched = 0;
  um_time limit = x->request_limit = um_after(x->service->site->request_ms);
  for (;;) {
    size_t blank = http_leading_blank(x->head + x->start, x->end - x->start);
    x->start += blank;
    if (blank) searched = 0;
    size_t have = x->end - x->start, length = http_head_length(x->head + x->start, have, searched);
    if (length) return length;
    searched = have;
    if (x->start) memmove(x->head, x->head + x->start, have);
    x->start = 0, x->end = have;
    if (have == sizeof x->head) {
      *outcome = refuse(x, 431);
      if (!*outcome) *outcome = linger(x);
      return NO_MORE;
    }
    ssize_t n = um_tls_read(x->tls, x->head + have, sizeof x->head - have, limit);
    if (n == -ETIMEDOUT && have) return *outcome = too_slow(x), NO_MORE;
    if (n <= 0) return *outcome = n ? (int)n : UM_TLS_CLOSE, NO_MORE;
    x->end += (size_t)n;
    if (x->end > x->most) x->most = x->end;
  }
}

static int converse(exchange *x) {
  do {
    int outcome;
    size_t length = next_head(x, &outcome);
    if (length == NO_MORE) return outcome;
    int result = answer_head(x, length);
    if (result) return result;
    if (!x->keep_alive) return linger(x);
  } while (x->end > x->start || um_tls_pending(x->tls));
  return UM_TLS_PARK;
}

int http_service_handle(um_tls *tls, void **data, void *service) {
  exchange x; /* not initialised as a whole: `head` is large */
  x.tls = tls, x.service = service, x.start = x.end = x.most = 0;
  *data = service; /* tells a connection that got this far from one that did not */
  int result = converse(&x);
  OPENSSL_cleanse(x.head, x.most); /* another connection's fiber will have this stack */
  return result;
}
