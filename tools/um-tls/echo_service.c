#include "echo_service.h"

#include <openssl/crypto.h>

/* The patience with the peer begins anew with each piece that it takes. */
static int write_all(um_tls *tls, const char *data, size_t length, um_time until, int64_t wait_ms) {
  for (ssize_t n; length; data += n, length -= (size_t)n, until = um_after(wait_ms)) {
    n = um_tls_write(tls, data, length, until);
    if (n < 0) return (int)n;
    if ((size_t)n == length) break;
  }
  return 0;
}

int echo_service_handle(um_tls *tls, void **data, void *service) {
  const echo_service *s = service;
  char buffer[16384]; /* a whole record */
  *data = service;    /* tells a connection that got this far from one that did not */
  do {
    um_time until = um_after(s->wait_ms);
    ssize_t n = um_tls_read(tls, buffer, sizeof buffer, until);
    if (n <= 0) return n ? (int)n : UM_TLS_CLOSE;
    int result = write_all(tls, buffer, (size_t)n, until, s->wait_ms);
    OPENSSL_cleanse(buffer, (size_t)n); /* another connection's fiber will have this stack */
    if (result) return result;
  } while (um_tls_pending(tls));
  return UM_TLS_PARK;
}
