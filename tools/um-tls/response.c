#include "response.h"

#include <inttypes.h>
#include <stdio.h>

bool http_date_renew(http_date *date) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME_COARSE, &now);
  if (now.tv_sec == date->second) return false;
  struct tm parts;
  date->second = now.tv_sec;
  strftime(date->text, sizeof date->text, "%a, %d %b %Y %H:%M:%S GMT",
           gmtime_r(&now.tv_sec, &parts));
  return true;
}

const char *response_reason(int status) {
  switch (status) {
  case 200: return "OK";
  case 206: return "Partial Content";
  case 400: return "Bad Request";
  case 403: return "Forbidden";
  case 404: return "Not Found";
  case 405: return "Method Not Allowed";
  case 408: return "Request Timeout";
  case 411: return "Length Required";
  case 413: return "Content Too Large";
  case 414: return "URI Too Long";
  case 416: return "Range Not Satisfiable";
  case 417: return "Expectation Failed";
  case 431: return "Request Header Fields Too Large";
  case 501: return "Not Implemented";
  case 503: return "Service Unavailable";
  case 505: return "HTTP Version Not Supported";
  default: return "Internal Server Error";
  }
}

static int extra_fields(char *out, size_t capacity, const response *r) {
  switch (r->status) {
  case 200: return r->size ? snprintf(out, capacity, "Accept-Ranges: bytes\r\n") : 0;
  case 206:
    return snprintf(out, capacity, "Content-Range: bytes %" PRIu64 "-%" PRIu64 "/%" PRIu64 "\r\n",
                    r->first, r->last, r->size);
  case 405:
  case 501: return snprintf(out, capacity, "Allow: GET, HEAD\r\n");
  case 416: return snprintf(out, capacity, "Content-Range: bytes */%" PRIu64 "\r\n", r->size);
  default: return 0;
  }
}

size_t response_head(char *out, const response *r, const http_date *date) {
  const char *connection = !r->keep_alive ? "Connection: close\r\n"
                           : r->http_1_0  ? "Connection: keep-alive\r\n" : "";
  int n = snprintf(out, RESPONSE_HEAD_MAX,
                   "HTTP/1.1 %d %s\r\nDate: %s\r\nContent-Type: %s\r\nContent-Length: %" PRIu64
                   "\r\n%s%s", r->status, response_reason(r->status), date->text, r->type, r->length,
                   connection, r->fields);
  n += extra_fields(out + n, RESPONSE_HEAD_MAX - (size_t)n, r);
  n += snprintf(out + n, RESPONSE_HEAD_MAX - (size_t)n, "\r\n");
  return (size_t)n;
}
