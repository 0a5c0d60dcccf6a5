/* SSL_CTX defaults, in one place. */
#include "error.h"

#include <bio_uring/tls.h>

#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <unistd.h>

/* TLS 1.3 has AEAD suites only; these are TLS 1.2's with forward secrecy. */
#define CIPHERS "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:!PSK"

int um_tls_ctx_defaults(SSL_CTX *ctx) {
  SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                               SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
  /* The chain is built once when it is loaded, not searched for in each handshake. */
  SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_NO_AUTO_CHAIN);
  SSL_CTX_set_timeout(ctx, 7200);
  SSL_CTX_set_num_tickets(ctx, 1); /* a client resumes with one; each costs 10-14 us */
  SSL_CTX_set_max_early_data(ctx, 0);
  if (SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) != 1) return UM_ETLS;
  return SSL_CTX_set_cipher_list(ctx, CIPHERS) == 1 ? 0 : UM_ETLS;
}

/* What OpenSSL said first, which is the cause, and an empty queue. */
static const char *reason(void) {
  unsigned long error = ERR_peek_error();
  const char *text = error ? ERR_reason_error_string(error) : NULL;
  if (error && ERR_SYSTEM_ERROR(error)) text = um_strerror(-(int)ERR_GET_REASON(error));
  ERR_clear_error();
  return text ? text : "unknown reason";
}

static int bad_file(um_error *error, const char *what, const char *file) {
  if (access(file, R_OK) < 0)
    return um__fail(error, UM_ECERT, "%s %s: %s", what, file, strerror(errno));
  return um__fail(error, UM_ECERT, "%s %s: %s: is it a PEM file?", what, file, reason());
}

static int load_pair(SSL_CTX *ctx, const char *chain, const char *key, um_error *error) {
  if (SSL_CTX_use_certificate_chain_file(ctx, chain) != 1)
    return bad_file(error, "certificate", chain);
  if (SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1) {
    unsigned long code = ERR_peek_error();
    if (ERR_GET_REASON(code) != X509_R_KEY_VALUES_MISMATCH) return bad_file(error, "key", key);
  } else if (SSL_CTX_check_private_key(ctx) == 1) {
    return 0;
  }
  ERR_clear_error();
  return um__fail(error, UM_ECERT, "key %s does not belong to certificate %s", key, chain);
}

static int make(SSL_CTX **out, const SSL_METHOD *method, um_error *error) {
  if (error) *error = (um_error){0};
  *out = SSL_CTX_new(method);
  if (!*out) return um__fail(error, -ENOMEM, "no memory for a TLS context");
  int result = um_tls_ctx_defaults(*out);
  return result < 0 ? um__fail(error, result, "TLS defaults refused: %s", reason()) : 0;
}

static int finish(SSL_CTX **out, int result) {
  if (result == 0) return 0;
  SSL_CTX_free(*out);
  *out = NULL;
  return result;
}

int um_tls_ctx_server(SSL_CTX **out, const char *chain_file, const char *key_file, um_error *error) {
  static const unsigned char session_id_context[] = "bio_uring";
  int result = make(out, TLS_server_method(), error);
  if (result == 0) result = load_pair(*out, chain_file, key_file, error);
  if (result == 0 && SSL_CTX_set_session_id_context(*out, session_id_context,
                                                   sizeof session_id_context - 1) != 1)
    result = um__fail(error, UM_ETLS, "sessions: %s", reason());
  return finish(out, result);
}

int um_tls_ctx_client(SSL_CTX **out, const char *ca_file, um_error *error) {
  int result = make(out, TLS_client_method(), error);
  if (result < 0) return finish(out, result);
  SSL_CTX_set_verify(*out, SSL_VERIFY_PEER, NULL);
  if (ca_file) {
    if (SSL_CTX_load_verify_file(*out, ca_file) != 1) result = bad_file(error, "CA file", ca_file);
  } else if (SSL_CTX_set_default_verify_paths(*out) != 1) {
    result = um__fail(error, UM_ECERT, "the system's trust store: %s", reason());
  }
  ERR_clear_error();
  return finish(out, result);
}
