/* HTTP/1.x request heads (RFC 9112), strictly and without copying.
 *
 * Everything that two parsers might read differently is refused rather than
 * repaired: bare LF, folded lines, space before a colon, repeated or non-decimal
 * Content-Length, Transfer-Encoding beside it. That is what request smuggling
 * lives on.
 */
#ifndef UM_TLS_HTTP_H
#define UM_TLS_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct http_slice {
  const char *at; /* into the head that was parsed; NULL when absent */
  size_t length;
} http_slice;

typedef struct http_request {
  http_slice method, target;
  http_slice range;        /* the value of Range */
  uint64_t content_length; /* 0 when absent */
  bool http_1_0;           /* else 1.1 or a later 1.x */
  bool keep_alive;         /* what version and Connection ask for */
  bool chunked;            /* a body of unstated length follows */
  bool expects_continue;
  bool if_range;           /* If-Range is there */
} http_request;

/* How many empty lines (CRLF) to skip before a request line: their bytes. */
size_t http_leading_blank(const char *data, size_t length);

/* The length of the head, up to and including its empty line; 0 while it is not
 * complete. The first `searched` bytes were searched before. */
size_t http_head_length(const char *data, size_t length, size_t searched);

/* Parses one complete head. 0, or the status to refuse it with: 400, 501, 505. */
int http_parse(const char *head, size_t length, http_request *out);

/* `Range: bytes=...` for a representation of `size` bytes.
 * 206: *first and *last are set. 416: it cannot be satisfied. 200: no Range, or
 * none that is understood (several ranges, other units): send everything. */
int http_range(http_slice range, uint64_t size, uint64_t *first, uint64_t *last);

/* The path of a request target: percent-decoded, dot segments removed, always
 * starting with '/', '\0'-terminated, without the query. 0, or the status to
 * refuse it with: 400 (malformed, or above the root), 414 (longer than `capacity`). */
int http_path(http_slice target, char *path, size_t capacity);

bool http_slice_is(http_slice slice, const char *text); /* exactly */

#endif
