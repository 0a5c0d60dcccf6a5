/* The server's certificate is verified in full once, by the first connection. Later
 * ones compare: verifying a chain each time costs the client more than the whole
 * handshake costs the server, and it is the server that is measured. */
#include "load.h"

#include <openssl/x509.h>
#include <string.h>

/* Length 0 without a certificate or memory: equal to none. */
static void encode(X509 *certificate, unsigned char **der, int *length) {
  *der = NULL;
  *length = certificate ? i2d_X509(certificate, der) : 0;
  if (*length < 0) *length = 0;
}

static int verify(X509_STORE_CTX *store, void *arg) {
  const load *l = arg;
  unsigned char *der;
  int length;
  encode(X509_STORE_CTX_get0_cert(store), &der, &length);
  bool same =
      length && length == l->certificate_length && !memcmp(der, l->certificate, (size_t)length);
  OPENSSL_free(der);
  if (!same && !l->options.client.insecure) return X509_verify_cert(store);
  X509_STORE_CTX_set_error(store, X509_V_OK);
  return 1;
}

void load_trust(load *l, X509 *certificate) {
  encode(certificate, &l->certificate, &l->certificate_length);
  SSL_CTX_set_cert_verify_callback(l->ctx, verify, l);
}
