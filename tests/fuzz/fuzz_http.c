/* libFuzzer target: request heads, their paths and ranges.
 *
 * The input is copied to a block of exactly its size, so that one byte too far is
 * seen. Besides memory errors it checks what the callers rely on: slices lie
 * inside the head, paths stay below the root, ranges inside the file. */
#include "../../tools/um-tls/http.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool holds) {
  if (!holds) abort();
}

static void check_inside(http_slice s, const char *head, size_t length) {
  check(!s.at || (s.at >= head && s.length <= length && s.at + s.length <= head + length));
}

static void check_path(http_slice target) {
  char path[48];
  if (http_path(target, path, sizeof path)) return;
  check(path[0] == '/' && strlen(path) < sizeof path);
  check(!strstr(path, "/../") && !strstr(path, "//"));
  size_t n = strlen(path);
  check(n < 3 || strcmp(path + n - 3, "/.."));
}

static void check_range(http_slice range, uint64_t size) {
  uint64_t first, last;
  int status = http_range(range, size, &first, &last);
  check(status == 200 || status == 206 || status == 416);
  if (status == 206) check(first <= last && last < size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char *head = malloc(size ? size : 1);
  if (!head) return 0;
  memcpy(head, data, size);
  size_t blank = http_leading_blank(head, size);
  size_t length = http_head_length(head + blank, size - blank, 0);
  http_request request;
  if (length && !http_parse(head + blank, length, &request)) {
    check_inside(request.method, head, size);
    check_inside(request.target, head, size);
    check_inside(request.range, head, size);
    check(!(request.chunked && request.content_length));
    check_path(request.target);
    check_range(request.range, 10);
  }
  check_path((http_slice){head, size});
  check_range((http_slice){head, size}, size);
  http_parse(head, size, &request);
  free(head);
  return 0;
}
