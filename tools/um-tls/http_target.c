/* What a request asks for: the path in its target, and its byte range. */
#include "http.h"

#include <string.h>
#include <strings.h>

/* ---- path ---- */

static int hex(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c |= 0x20;
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Absolute form (RFC 9112 3.2.2): what follows scheme and authority. */
static http_slice without_authority(http_slice target) {
  size_t scheme = 0;
  if (target.length > 8 && !strncasecmp(target.at, "https://", 8)) scheme = 8;
  else if (target.length > 7 && !strncasecmp(target.at, "http://", 7)) scheme = 7;
  if (!scheme) return target;
  const char *slash = memchr(target.at + scheme, '/', target.length - scheme);
  if (!slash) return (http_slice){"/", 1};
  return (http_slice){slash, target.length - (size_t)(slash - target.at)};
}

/* Ends the segment path[start..n): drops "." and "", takes ".." back one. The
 * new length, at which the next segment starts; 0 when above the root. */
static size_t end_segment(const char *path, size_t start, size_t n) {
  size_t length = n - start;
  if (length == 1 && path[start] == '.') return start;
  if (length != 2 || path[start] != '.' || path[start + 1] != '.') return n;
  if (start == 1) return 0;
  for (start--; path[start - 1] != '/';) start--;
  return start;
}

/* One character of the target, decoded; -1 when malformed. */
static int next_character(http_slice target, size_t *i) {
  int c = (unsigned char)target.at[(*i)++];
  if (c == '%') {
    if (target.length - *i < 2) return -1;
    int high = hex(target.at[*i]), low = hex(target.at[*i + 1]);
    *i += 2;
    c = high < 0 || low < 0 ? -1 : high << 4 | low;
  }
  return c < 0x20 || c == 0x7f ? -1 : c;
}

int http_path(http_slice target, char *path, size_t capacity) {
  target = without_authority(target);
  if (!target.length || target.at[0] != '/') return 400;
  size_t n = 1, start = 1;
  path[0] = '/';
  for (size_t i = 1; i < target.length && target.at[i] != '?';) {
    int c = next_character(target, &i);
    if (c < 0) return 400;
    if (n + 2 > capacity) return 414;
    if (c != '/') {
      path[n++] = (char)c;
      continue;
    }
    size_t ended = end_segment(path, start, n);
    if (!ended) return 400;
    if (ended > start) path[ended++] = '/';
    n = start = ended;
  }
  n = end_segment(path, start, n);
  if (!n) return 400;
  path[n] = '\0';
  return 0;
}

/* ---- range ---- */

static bool take_number(const char **p, const char *end, uint64_t *out) {
  const char *from = *p;
  *out = 0;
  for (; *p < end && **p >= '0' && **p <= '9'; ++*p)
    *out = *out > (UINT64_MAX - 9) / 10 ? UINT64_MAX - 9 : *out * 10 + (uint64_t)(**p - '0');
  return *p > from;
}

int http_range(http_slice range, uint64_t size, uint64_t *first, uint64_t *last) {
  if (range.length < 8 || strncasecmp(range.at, "bytes=", 6)) return 200;
  const char *p = range.at + 6, *end = range.at + range.length;
  bool has_first = take_number(&p, end, first);
  if (p == end || *p++ != '-') return 200;
  bool has_last = take_number(&p, end, last);
  if (p != end || (!has_first && !has_last)) return 200;
  if (!has_first) { /* the last so many bytes */
    if (!*last || !size) return 416;
    *first = *last < size ? size - *last : 0;
    *last = size - 1;
    return 206;
  }
  if (has_last && *last < *first) return 200;
  if (*first >= size) return 416;
  if (!has_last || *last >= size) *last = size - 1;
  return 206;
}
