#include "client.h"

#include "exit_codes.h"
#include "say.h"
#include "tls_messages.h"

#include <openssl/err.h>
#include <string.h>

static int use_certificate(SSL_CTX *ctx, const client_options *o) {
  const char *key = o->key ? o->key : o->cert;
  ERR_clear_error();
  if (SSL_CTX_use_certificate_chain_file(ctx, o->cert) != 1)
    return fail(EXIT_FILE, "cannot use --cert %s: %s; wanted is a PEM chain, leaf first", o->cert,
                openssl_reason());
  if (SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1)
    return fail(EXIT_FILE, "cannot use --key %s: %s; wanted is the PEM key of %s", key,
                openssl_reason(), o->cert);
  return EXIT_OK;
}

static int check(const client_options *o, host_port *peer) {
  if (address_split(o->peer, peer))
    return fail(EXIT_USAGE, "%s: wanted is HOST:PORT, as in localhost:443 or [::1]:443", o->peer);
  if (o->key && !o->cert) return fail(EXIT_USAGE, "--key without --cert");
  if (o->max_tls && strcmp(o->max_tls, "1.2") && strcmp(o->max_tls, "1.3"))
    return fail(EXIT_USAGE, "--max-tls %s: wanted is 1.2 or 1.3", o->max_tls);
  return EXIT_OK;
}

int client_setup(const client_options *o, host_port *peer, SSL_CTX **ctx) {
  um_error error;
  int code = check(o, peer);
  if (code != EXIT_OK) return code;
  int result = um_tls_ctx_client(ctx, o->ca, &error);
  if (result) return fail(exit_code_for(result), "%s", error.message);
  if (um_tls_ctx_keylog(*ctx, NULL, &error) < 0) return fail(EXIT_FILE, "%s", error.message);
  if (o->max_tls && !strcmp(o->max_tls, "1.2")) SSL_CTX_set_max_proto_version(*ctx, TLS1_2_VERSION);
  return o->cert ? use_certificate(*ctx, o) : EXIT_OK;
}

um_tls_options client_tls_options(const client_options *o, const host_port *peer,
                                  SSL_SESSION *session) {
  return (um_tls_options){.hostname = o->servername ? o->servername : peer->host,
                          .alpn = o->alpn, .session = session,
                          .flags = o->insecure ? UM_TLS_INSECURE : 0};
}

const char *client_hint(int error) {
  switch (error) {
  case UM_EVERIFY:
    return "; --ca FILE trusts another CA, --servername NAME expects another name, "
           "--insecure accepts anything";
  case -ECONNREFUSED: return "; is the server running, and on this port?";
  case -ETIMEDOUT: return "; --timeout SECONDS waits longer";
  default: return "";
  }
}
