#include "http.h"

#include <string.h>
#include <strings.h>

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool is_token(unsigned char c) {
  static const char others[] = "!#$%&'*+-.^_`|~";
  return is_digit((char)c) || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') ||
         (c && c < 0x80 && memchr(others, c, sizeof others - 1));
}

static bool is_text(unsigned char c) { return (c >= 0x20 && c != 0x7f) || c == '\t'; }

bool http_slice_is(http_slice s, const char *text) {
  return s.length == strlen(text) && !memcmp(s.at, text, s.length);
}

static bool is_word(http_slice s, const char *text) {
  return s.length == strlen(text) && !strncasecmp(s.at, text, s.length);
}

size_t http_leading_blank(const char *data, size_t length) {
  size_t n = 0;
  while (n + 2 <= length && data[n] == '\r' && data[n + 1] == '\n') n += 2;
  return n;
}

size_t http_head_length(const char *data, size_t length, size_t searched) {
  size_t from = searched > 3 ? searched - 3 : 0; /* the end may straddle two reads */
  const char *end = length > from ? memmem(data + from, length - from, "\r\n\r\n", 4) : NULL;
  return end ? (size_t)(end - data) + 4 : 0;
}

/* Decimal digits only: no sign, no space, no overflow. */
static bool parse_number(http_slice s, uint64_t *out) {
  uint64_t value = 0;
  for (size_t i = 0; i < s.length; i++) {
    if (!is_digit(s.at[i]) || value > (UINT64_MAX - 9) / 10) return false;
    value = value * 10 + (uint64_t)(s.at[i] - '0');
  }
  *out = value;
  return s.length > 0;
}

/* method SP target SP HTTP/1.digit */
static int parse_request_line(http_slice line, http_request *out) {
  const char *end = line.at + line.length, *p = line.at;
  while (p < end && is_token((unsigned char)*p)) p++;
  out->method = (http_slice){line.at, (size_t)(p - line.at)};
  if (!out->method.length || p == end || *p++ != ' ') return 400;
  out->target.at = p;
  while (p < end && (unsigned char)*p > 0x20 && (unsigned char)*p < 0x7f) p++;
  out->target.length = (size_t)(p - out->target.at);
  if (!out->target.length || end - p != 9 || memcmp(p, " HTTP/", 6)) return 400;
  if (!is_digit(p[6]) || p[7] != '.' || !is_digit(p[8])) return 400;
  out->http_1_0 = p[8] == '0';
  return p[6] == '1' ? 0 : 505;
}

static http_slice trim(const char *from, const char *to) {
  while (from < to && (*from == ' ' || *from == '\t')) from++;
  while (from < to && (to[-1] == ' ' || to[-1] == '\t')) to--;
  return (http_slice){from, (size_t)(to - from)};
}

enum {
  SEEN_HOST = 1, SEEN_LENGTH = 2, SEEN_CODING = 4, SEEN_RANGE = 8, /* at most once each */
  SEEN_CLOSE = 16, SEEN_KEEP_ALIVE = 32
};

static void parse_connection(http_slice value, unsigned *seen) {
  const char *p = value.at, *end = value.at + value.length;
  while (p <= end) {
    const char *comma = p < end ? memchr(p, ',', (size_t)(end - p)) : NULL;
    http_slice option = trim(p, comma ? comma : end);
    if (is_word(option, "close")) *seen |= SEEN_CLOSE;
    if (is_word(option, "keep-alive")) *seen |= SEEN_KEEP_ALIVE;
    p = comma ? comma + 1 : end + 1;
  }
}

static int once(unsigned *seen, unsigned which) {
  int status = *seen & which ? 400 : 0;
  *seen |= which;
  return status;
}

static int parse_field(http_slice name, http_slice value, unsigned *seen, http_request *out) {
  if (is_word(name, "host")) return once(seen, SEEN_HOST);
  if (is_word(name, "content-length"))
    return once(seen, SEEN_LENGTH) || !parse_number(value, &out->content_length) ? 400 : 0;
  if (is_word(name, "transfer-encoding")) {
    out->chunked = true;
    return once(seen, SEEN_CODING) ? 400 : is_word(value, "chunked") ? 0 : 501;
  }
  if (is_word(name, "range")) {
    out->range = value;
    return once(seen, SEEN_RANGE);
  }
  if (is_word(name, "connection")) parse_connection(value, seen);
  else if (is_word(name, "expect")) out->expects_continue = true;
  else if (is_word(name, "if-range")) out->if_range = true;
  return 0;
}

static int parse_field_line(const char *p, const char *end, unsigned *seen, http_request *out) {
  const char *name = p;
  while (p < end && is_token((unsigned char)*p)) p++;
  if (p == name || p == end || *p != ':') return 400; /* also a folded line */
  http_slice value = trim(p + 1, end);
  for (size_t i = 0; i < value.length; i++)
    if (!is_text((unsigned char)value.at[i])) return 400;
  return parse_field((http_slice){name, (size_t)(p - name)}, value, seen, out);
}

int http_parse(const char *head, size_t length, http_request *out) {
  unsigned seen = 0;
  int status = 0, first = 1;
  *out = (http_request){0};
  if (length < 4) return 400;
  for (const char *p = head, *last = head + length - 2; p < last && !status; first = 0) {
    const char *end = memchr(p, '\r', (size_t)(last - p) + 1);
    if (!end || end[1] != '\n') return 400;
    if (first) status = parse_request_line((http_slice){p, (size_t)(end - p)}, out);
    else status = parse_field_line(p, end, &seen, out);
    p = end + 2;
  }
  if (status) return status;
  if (!out->http_1_0 && !(seen & SEEN_HOST)) return 400;
  if (seen & SEEN_CODING && (seen & SEEN_LENGTH || out->http_1_0)) return 400;
  out->keep_alive = !(seen & SEEN_CLOSE) && (!out->http_1_0 || seen & SEEN_KEEP_ALIVE);
  return 0;
}
