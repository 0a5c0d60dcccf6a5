#include "alpn.h"

#include <string.h>

int alpn_parse(alpn_list *out, const char *text) {
  out->length = 0;
  for (;;) {
    size_t n = strcspn(text, ",");
    if (!n || n > 255 || out->length + n + 1 > sizeof out->wire) return -1;
    out->wire[out->length] = (unsigned char)n;
    memcpy(out->wire + out->length + 1, text, n);
    out->length += (unsigned)n + 1;
    if (!text[n]) return 0;
    text += n + 1;
  }
}

static int select_protocol(SSL *ssl, const unsigned char **out, unsigned char *length,
                           const unsigned char *offered, unsigned offered_length, void *arg) {
  const alpn_list *list = arg;
  unsigned char *chosen;
  (void)ssl;
  if (SSL_select_next_proto(&chosen, length, list->wire, list->length, offered, offered_length) !=
      OPENSSL_NPN_NEGOTIATED)
    return list->strict ? SSL_TLSEXT_ERR_ALERT_FATAL : SSL_TLSEXT_ERR_NOACK;
  *out = chosen;
  return SSL_TLSEXT_ERR_OK;
}

void alpn_serve(SSL_CTX *ctx, alpn_list *list) {
  SSL_CTX_set_alpn_select_cb(ctx, select_protocol, list);
}
