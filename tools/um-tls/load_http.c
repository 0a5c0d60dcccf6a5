/* HTTP keep-alive: responses are counted by their Content-Length. */
#include "load.h"

#include <string.h>
#include <strings.h>

static int read_more(load_connection *c, um_time deadline) {
  if (c->end == LOAD_BUFFER) return UM_ETOOLONG;
  ssize_t n = um_tls_read(c->tls, c->buffer + c->end, LOAD_BUFFER - c->end, deadline);
  if (n <= 0) return n ? (int)n : LOAD_FAILED(LOAD_CLOSED);
  c->end += (size_t)n;
  LOAD_COUNT(c->worker->counters.received, (uint64_t)n);
  return 0;
}

/* The head's length, once all of it is at c->start; or an error. */
static int find_head(load_connection *c, um_time deadline) {
  for (;;) {
    char *head = c->buffer + c->start, *blank = NULL;
    if (c->end > c->start) blank = memmem(head, c->end - c->start, "\r\n\r\n", 4);
    if (blank) return (int)(blank - head) + 4;
    memmove(c->buffer, head, c->end - c->start);
    c->end -= c->start;
    c->start = 0;
    int result = read_more(c, deadline);
    if (result) return result;
  }
}

/* -1 without one that is a number. */
static int64_t content_length(const char *head, size_t length) {
  static const char name[] = "content-length:";
  const char *end = head + length, *line = head;
  while ((line = memchr(line, '\n', (size_t)(end - line))) &&
         end - ++line > (ptrdiff_t)sizeof name) {
    if (strncasecmp(line, name, sizeof name - 1)) continue;
    int64_t value = 0;
    for (line += sizeof name - 1; *line == ' '; line++) {}
    if (*line < '0' || *line > '9') return -1;
    for (; *line >= '0' && *line <= '9' && value < INT64_MAX / 16; line++)
      value = value * 10 + *line - '0';
    return *line == '\r' || *line == ' ' ? value : -1;
  }
  return -1;
}

static int skip_body(load_connection *c, uint64_t left, um_time deadline) {
  for (;;) {
    uint64_t here = c->end - c->start;
    if (here >= left) return c->start += (size_t)left, 0;
    left -= here;
    c->start = c->end = 0;
    int result = read_more(c, deadline);
    if (result) return result;
  }
}

static int read_response(load_connection *c, um_time deadline) {
  int length = find_head(c, deadline);
  if (length < 0) return length;
  const char *head = c->buffer + c->start;
  if (length < 15 || memcmp(head, "HTTP/1.", 7) || head[9] != '2') return LOAD_FAILED(LOAD_STATUS);
  int64_t body = content_length(head, (size_t)length);
  if (body < 0) return LOAD_FAILED(LOAD_STATUS);
  c->start += (size_t)length;
  return skip_body(c, (uint64_t)body, deadline);
}

int load_http(load_connection *c, um_time deadline) {
  const load *l = c->worker->load;
  ssize_t n = um_tls_write(c->tls, l->message, l->message_length, deadline);
  if (n < 0) return (int)n;
  if ((size_t)n != l->message_length) return -ETIMEDOUT;
  LOAD_COUNT(c->worker->counters.sent, (uint64_t)n);
  int result = 0;
  for (uint64_t i = 0; i < l->options.pipeline && !result; i++) result = read_response(c, deadline);
  return result;
}
