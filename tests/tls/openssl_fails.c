#include "openssl_fails.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

/* The peer's thread calls OpenSSL as well, and is not to fail. */
static _Thread_local bool counting, spared, with_error;
static _Thread_local unsigned calls_left;
static _Thread_local const char *failed;

void fail_openssl(unsigned n, bool queued) {
  calls_left = n;
  with_error = queued;
  failed = NULL;
  counting = true;
}

void spare_openssl(bool on) { spared = on; }

const char *openssl_failed(void) {
  counting = false;
  return failed;
}

static bool fails(const char *name) {
  if (!counting || spared || failed || calls_left-- > 0) return false;
  failed = name;
  if (with_error) ERR_raise(ERR_LIB_SSL, ERR_R_INTERNAL_ERROR);
  return true;
}

/* tests/tls/meson.build wraps what is listed here. */
#define FAILS(type, name, parameters, arguments, failure) \
  type __real_##name parameters;                          \
  type __wrap_##name parameters;                          \
  type __wrap_##name parameters { return fails(#name) ? (failure) : __real_##name arguments; }

#define CTX_FILE(name) FAILS(int, name, (SSL_CTX *c, const char *f), (c, f), 0)

/* contexts */
FAILS(SSL_CTX *, SSL_CTX_new, (const SSL_METHOD *m), (m), NULL)
FAILS(long, SSL_CTX_ctrl, (SSL_CTX *c, int command, long n, void *p), (c, command, n, p), 0)
CTX_FILE(SSL_CTX_set_cipher_list)
CTX_FILE(SSL_CTX_use_certificate_chain_file)
CTX_FILE(SSL_CTX_load_verify_file)
FAILS(int, SSL_CTX_use_PrivateKey_file, (SSL_CTX *c, const char *f, int type), (c, f, type), 0)
FAILS(int, SSL_CTX_check_private_key, (const SSL_CTX *c), (c), 0)
FAILS(int, SSL_CTX_set_default_verify_paths, (SSL_CTX *c), (c), 0)
FAILS(int, SSL_CTX_set_ex_data, (SSL_CTX *c, int i, void *p), (c, i, p), 0)
FAILS(int, SSL_CTX_set_session_id_context, (SSL_CTX *c, const unsigned char *id, unsigned n),
      (c, id, n), 0)
FAILS(int, RAND_bytes, (unsigned char *bytes, int n), (bytes, n), 0)
/* tickets */
FAILS(int, SSL_CTX_set_tlsext_ticket_key_evp_cb,
      (SSL_CTX *c, int (*answer)(SSL *, unsigned char *, unsigned char *, EVP_CIPHER_CTX *,
                                 EVP_MAC_CTX *, int)), (c, answer), 0)
FAILS(int, EVP_CipherInit_ex,
      (EVP_CIPHER_CTX *c, const EVP_CIPHER *type, ENGINE *e, const unsigned char *key,
       const unsigned char *iv, int encrypt), (c, type, e, key, iv, encrypt), 0)
FAILS(int, EVP_MAC_CTX_set_params, (EVP_MAC_CTX *c, const OSSL_PARAM *p), (c, p), 0)
/* streams */
FAILS(BIO *, BIO_new, (const BIO_METHOD *m), (m), NULL)
FAILS(SSL *, SSL_new, (SSL_CTX *c), (c), NULL)
FAILS(long, SSL_ctrl, (SSL *s, int command, long n, void *p), (s, command, n, p), 0)
FAILS(int, SSL_set_alpn_protos, (SSL *s, const unsigned char *names, unsigned n), (s, names, n), 1)
FAILS(int, SSL_set_session, (SSL *s, SSL_SESSION *session), (s, session), 0)
FAILS(int, X509_VERIFY_PARAM_set1_host, (X509_VERIFY_PARAM *p, const char *name, size_t n),
      (p, name, n), 0)
FAILS(int, X509_VERIFY_PARAM_set1_ip_asc, (X509_VERIFY_PARAM *p, const char *address),
      (p, address), 0)
FAILS(int, SSL_do_handshake, (SSL *s), (s), -1)
FAILS(int, SSL_read_ex, (SSL *s, void *to, size_t n, size_t *done), (s, to, n, done), 0)
FAILS(int, SSL_peek_ex, (SSL *s, void *to, size_t n, size_t *done), (s, to, n, done), 0)
FAILS(int, SSL_write_ex, (SSL *s, const void *from, size_t n, size_t *done), (s, from, n, done), 0)
FAILS(int, SSL_key_update, (SSL *s, int type), (s, type), 0)
FAILS(int, SSL_shutdown, (SSL *s), (s), -1)
FAILS(SSL_SESSION *, SSL_get1_session, (SSL *s), (s), NULL)
