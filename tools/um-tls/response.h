/* Response heads. */
#ifndef UM_TLS_RESPONSE_H
#define UM_TLS_RESPONSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define RESPONSE_HEAD_MAX 704 /* no head is longer */
#define HTTP_DATE_LENGTH 29   /* "Sun, 06 Nov 1994 08:49:37 GMT" */

/* The Date field's value, renewed when the second changes. */
typedef struct http_date {
  time_t second;
  char text[HTTP_DATE_LENGTH + 1];
} http_date;
/* Whether it changed. */
bool http_date_renew(http_date *date);

typedef struct response {
  int status;
  const char *type;
  uint64_t length;
  bool keep_alive, http_1_0; /* of the request */
  uint64_t first, last, size; /* of a file, for ranges; size 0: has none */
  const char *fields;         /* more of them, each with its CRLF */
} response;

const char *response_reason(int status);
/* Writes the head, '\0'-terminated, into RESPONSE_HEAD_MAX bytes; its length. */
size_t response_head(char *out, const response *r, const http_date *date);

#endif
