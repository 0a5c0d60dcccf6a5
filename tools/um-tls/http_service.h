/* HTTP/1.1 over TLS: one service a reactor, its handler once per connection.
 *
 * Between requests a connection is parked: it holds no fiber, no buffer and no
 * state of ours. */
#ifndef UM_TLS_HTTP_SERVICE_H
#define UM_TLS_HTTP_SERVICE_H

#include <bio_uring/tls.h>
#include <stdatomic.h>
#include <stdbool.h>

/* What is served; shared by all reactors. */
typedef struct http_site {
  int root;         /* directory, or -1 */
  bool has_body;    /* answer every GET with `body` bytes of our own */
  uint64_t body;
  char fields[128]; /* of every response's head, each with its CRLF */
  int64_t wait_ms;    /* for a peer to take a response's first bytes; then min_rate holds */
  int64_t request_ms; /* for a whole request, head and body */
  uint64_t min_rate;  /* bytes a second that a peer must take of a response on average */
  atomic_bool draining; /* each connection's next response is its last */
} http_site;

typedef struct http_service http_service;

/* `site` must outlive it. NULL without memory. */
http_service *http_service_create(http_site *site);
void http_service_destroy(http_service *service);
/* um_tls_handler; `service` is the http_service. */
int http_service_handle(um_tls *tls, void **data, void *service);

#endif
