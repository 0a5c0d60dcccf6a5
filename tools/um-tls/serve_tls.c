/* The server's SSL_CTX. */
#include "exit_codes.h"
#include "say.h"
#include "serve.h"
#include "tls_messages.h"

#include <openssl/err.h>
#include <string.h>

/* Certificates of clients are asked for, required, and verified against the file. */
static int require_clients(SSL_CTX *ctx, const char *file) {
  ERR_clear_error();
  STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(file);
  if (!names || !SSL_CTX_load_verify_file(ctx, file)) {
    sk_X509_NAME_pop_free(names, X509_NAME_free);
    return fail(EXIT_FILE, "cannot use --client-ca %s: %s; wanted is a PEM file of CA certificates",
                file, openssl_reason());
  }
  SSL_CTX_set_client_CA_list(ctx, names);
  SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
  return EXIT_OK;
}

static int set_alpn(server *s) {
  const char *list = s->options.alpn;
  s->alpn.strict = list != NULL;
  if (!list && s->options.echo) return EXIT_OK;
  if (alpn_parse(&s->alpn, list ? list : "http/1.1"))
    return fail(EXIT_USAGE, "--alpn %s: wanted are names with commas between, such as h2,http/1.1",
                list);
  alpn_serve(s->ctx, &s->alpn);
  return EXIT_OK;
}

int serve_tls_setup(server *s) {
  const serve_options *o = &s->options;
  um_error error;
  int result = um_tls_ctx_server(&s->ctx, o->cert, o->key, &error);
  if (result) return fail(exit_code_for(result), "%s", error.message);
  if ((result = um_tls_ctx_keylog(s->ctx, NULL, &error)) < 0) return fail(EXIT_FILE, "%s", error.message);
  if (result > 0) say("SSLKEYLOGFILE is set: whoever reads that file can decrypt every connection");
  if (o->min_tls && !strcmp(o->min_tls, "1.3"))
    SSL_CTX_set_min_proto_version(s->ctx, TLS1_3_VERSION);
  int code = o->client_ca ? require_clients(s->ctx, o->client_ca) : EXIT_OK;
  return code == EXIT_OK ? set_alpn(s) : code;
}
