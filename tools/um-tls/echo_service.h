/* Sends back what arrives. Parked whenever nothing is there to be read. */
#ifndef UM_TLS_ECHO_SERVICE_H
#define UM_TLS_ECHO_SERVICE_H

#include <bio_uring/tls.h>

/* How long a peer may take to accept any of its own bytes back. */
typedef struct echo_service {
  int64_t wait_ms;
} echo_service;

/* um_tls_handler; `service` is the echo_service. */
int echo_service_handle(um_tls *tls, void **data, void *service);

#endif
