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

static int parse_alpn(server *s) {
  const char *list = s->options.alpn;
  s->alpn.strict = list != NULL;
  if (!list && s->options.echo) return EXIT_OK;
  if (alpn_parse(&s->alpn, list ? list : "http/1.1"))
    return fail(EXIT_USAGE, "--alpn %s: wanted are names with commas between, such as h2,http/1.1",
                list);
  return EXIT_OK;
}

/* Sessions outlive the context that made them: its keys are the process's. */
static int make_tickets(server *s) {
  um_error error;
  int result = um_ticket_keys_create(&s->tickets, 0);
  if (result) return fail(exit_code_for(result), "session ticket keys: %s", um_strerror(result));
  if (!s->options.ticket_keys) return EXIT_OK;
  result = um_ticket_keys_load(s->tickets, s->options.ticket_keys, &error);
  return result ? fail(exit_code_for(result), "%s", error.message) : EXIT_OK;
}

static int configure(server *s, SSL_CTX *ctx) {
  const serve_options *o = &s->options;
  um_error error;
  int result = um_tls_ctx_keylog(ctx, NULL, &error);
  if (result < 0) return fail(EXIT_FILE, "%s", error.message);
  if (result > 0) say("SSLKEYLOGFILE is set: whoever reads that file can decrypt every connection");
  if (o->min_tls && !strcmp(o->min_tls, "1.3")) SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
  if (s->alpn.length) alpn_serve(ctx, &s->alpn);
  if ((result = um_tls_ctx_tickets(ctx, s->tickets)))
    return fail(exit_code_for(result), "session ticket keys: %s", um_strerror(result));
  return o->client_ca ? require_clients(ctx, o->client_ca) : EXIT_OK;
}

/* A new context from the files as they are now. */
static int make_context(server *s, SSL_CTX **out) {
  um_error error;
  int result = um_tls_ctx_server(out, s->options.cert, s->options.key, &error);
  if (result) return fail(exit_code_for(result), "%s", error.message);
  if (s->options.wipe) SSL_CTX_set_options(*out, SSL_OP_CLEANSE_PLAINTEXT);
  int code = configure(s, *out);
  if (code == EXIT_OK) return EXIT_OK;
  SSL_CTX_free(*out);
  *out = NULL;
  return code;
}

int serve_tls_setup(server *s) {
  int code = parse_alpn(s);
  if (code == EXIT_OK) code = make_tickets(s);
  return code == EXIT_OK ? make_context(s, &s->ctx) : code;
}

int serve_tls_reload(server *s) {
  SSL_CTX *fresh;
  um_error error;
  int code = make_context(s, &fresh);
  if (code != EXIT_OK) return code;
  if (s->options.ticket_keys && um_ticket_keys_load(s->tickets, s->options.ticket_keys, &error)) {
    SSL_CTX_free(fresh);
    return fail(EXIT_FILE, "%s", error.message);
  }
  SSL_CTX_free(s->ctx);
  s->ctx = fresh;
  return EXIT_OK;
}

void serve_tls_free(server *s) {
  SSL_CTX_free(s->ctx);
  um_ticket_keys_free(s->tickets);
}
