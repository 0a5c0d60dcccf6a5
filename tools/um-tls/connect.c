/* um-tls connect: standard input and output over TLS, both ways at once. */
#include "client.h"
#include "commands.h"
#include "exit_codes.h"
#include "in_reactor.h"
#include "options.h"
#include "say.h"
#include "session_file.h"

#include <bio_uring.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK (64 * 1024)
#define CLOSE_MS 5000

typedef struct connection {
  client_options client;
  const char *session_file;
  int64_t timeout, idle_timeout; /* ms; idle_timeout < 0: none */
  bool verbose, keep_open;
  host_port peer;
  SSL_CTX *ctx;
  SSL_SESSION *session;
  um_tls *tls;
  char *input, *output; /* CHUNK bytes each */
  int input_error;      /* of standard input */
} connection;

/* ---- after the handshake: what was agreed ---- */

static void say_peer(um_tls *tls) {
  X509 *certificate = um_tls_peer_certificate(tls);
  char subject[256];
  if (!certificate) return;
  X509_NAME_oneline(X509_get_subject_name(certificate), subject, sizeof subject);
  say("peer certificate: %s", subject);
  X509_free(certificate);
}

static void say_connection(connection *c) {
  char address[160];
  unsigned length;
  SSL *ssl = um_tls_ssl(c->tls);
  const char *alpn = um_tls_alpn(c->tls, &length);
  address_of_socket(um_tls_fd(c->tls), ADDRESS_PEER, address, sizeof address);
  say("connected to %s (%s)", c->client.peer, address);
  say("protocol: %s, cipher: %s, ALPN: %.*s, resumed: %s, verified: %s", SSL_get_version(ssl),
      SSL_get_cipher_name(ssl), length ? (int)length : 4, length ? alpn : "none",
      SSL_session_reused(ssl) ? "yes" : "no", c->client.insecure ? "no (--insecure)" : "yes");
  say_peer(c->tls);
}

/* ---- the two directions ---- */

/* Standard input to the peer; its end is sent as ours (close_notify, FIN), which some
 * servers take for the end of everything. */
static int send_input(void *arg) {
  connection *c = arg;
  ssize_t n;
  while ((n = um_read(STDIN_FILENO, c->input, CHUNK, -1, UM_FOREVER)) > 0) {
    ssize_t sent = um_tls_write(c->tls, c->input, (size_t)n, UM_FOREVER);
    if (sent != n) return sent < 0 ? (int)sent : -EPIPE; /* the reading side meets the reason */
  }
  if (n < 0 && n != -ECANCELED) c->input_error = (int)n;
  if (n == -ECANCELED || c->keep_open) return (int)n;
  return um_tls_shutdown(c->tls, UM_FOREVER);
}

/* The peer to standard output, until its close_notify. */
static int receive_output(connection *c) {
  for (;;) {
    ssize_t n = um_tls_read(c->tls, c->output, CHUNK, um_after(c->idle_timeout));
    if (n == 0) return EXIT_OK;
    if (n == -ETIMEDOUT)
      return fail(EXIT_TIMEOUT, "%s: nothing arrived for %g seconds (--idle-timeout)",
                  c->client.peer, (double)c->idle_timeout / 1000);
    if (n < 0) {
      const char *words = um_tls_error(c->tls); /* they name the peer */
      if (*words) return fail(exit_code_for((int)n), "%s", words);
      return fail(exit_code_for((int)n), "%s: %s", c->client.peer, um_strerror((int)n));
    }
    ssize_t written = um_write(STDOUT_FILENO, c->output, (size_t)n, -1, UM_FOREVER);
    if (written != n)
      return fail(EXIT_LOST, "cannot write to standard output: %s",
                  um_strerror(written < 0 ? (int)written : -EPIPE));
  }
}

static int both_ways(connection *c) {
  um_fiber *sender;
  int result = um_fiber_spawn(NULL, &sender, send_input, c, NULL);
  if (result) return fail(EXIT_FAILED, "cannot start: %s", um_strerror(result));
  int code = receive_output(c);
  um_fiber_cancel(sender);
  um_fiber_join(sender, NULL, UM_FOREVER);
  if (code == EXIT_OK && c->input_error)
    code = fail(EXIT_LOST, "cannot read standard input: %s", um_strerror(c->input_error));
  return code;
}

/* ---- the connection ---- */

/* In TLS 1.3 sessions come after the handshake: so it is kept at the end. */
static int keep_session(connection *c, int code) {
  if (!c->session_file) return code;
  SSL_SESSION *session = um_tls_session(c->tls);
  if (!session || !SSL_SESSION_is_resumable(session)) {
    say("--session %s: the peer gave nothing to resume", c->session_file);
  } else {
    int saved = session_save(c->session_file, session);
    if (code == EXIT_OK) code = saved;
  }
  SSL_SESSION_free(session);
  return code;
}

static int run(void *arg) {
  connection *c = arg;
  um_error error;
  um_tls_options options = client_tls_options(&c->client, &c->peer, c->session);
  int result = um_tls_connect(&c->tls, c->peer.host, c->peer.port, c->ctx, &options,
                              um_after(c->timeout), &error);
  if (result) return fail(exit_code_for(result), "%s%s", error.message, client_hint(result));
  if (c->verbose) say_connection(c);
  int code = both_ways(c);
  code = keep_session(c, code);
  um_tls_close(c->tls, um_after(code == EXIT_OK ? CLOSE_MS : 0));
  return code;
}

#define AT(field) offsetof(connection, field)
static const option known[] = {
  CLIENT_OPTIONS(connection),
  {"session", "FILE", "resume the session in FILE, and keep the new one there", OPTION_TEXT,
   AT(session_file), 0},
  {"timeout", "SECONDS", "for connecting and the handshake (default: 30)", OPTION_SECONDS,
   AT(timeout), 0},
  {"idle-timeout", "SECONDS", "give up when nothing arrives for so long\n(default: never)",
   OPTION_SECONDS, AT(idle_timeout), 0},
  {"keep-open", NULL, "do not close our side at the end of standard input:\n"
   "for servers that give up when it is closed (nginx)", OPTION_FLAG, AT(keep_open), 0},
  {"verbose", NULL, "say what was agreed, on standard error", OPTION_FLAG, AT(verbose), 0},
  {NULL, NULL, NULL, OPTION_FLAG, 0, 0},
};

static const command_line command = {
  .name = "connect",
  .synopsis = "HOST:PORT [OPTION...]",
  .about =
    "Connects with TLS and copies standard input to the peer and the peer to standard\n"
    "output, both at once. The peer's certificate and name are verified. The end of\n"
    "standard input closes our side only: what the peer still sends is waited for,\n"
    "until it closes as well. Exits 0 only when it did so cleanly (close_notify).",
  .examples =
    "  printf 'GET / HTTP/1.0\\r\\n\\r\\n' | um-tls connect localhost:8443 --ca ca.pem\n"
    "  um-tls connect 127.0.0.1:8443 --servername localhost --ca ca.pem --verbose <file >copy\n"
    "  um-tls connect localhost:8443 --ca ca.pem --session s.pem --verbose   # twice: resumes",
  .options = known,
  .positional = AT(client.peer),
  .positional_name = "HOST:PORT",
};

int command_connect(int argc, char **argv) {
  connection c = {.timeout = 30000, .idle_timeout = -1};
  int code = options_parse(&command, &c, argc, argv);
  if (code != OPTIONS_GO_ON) return code;
  c.input = malloc(CHUNK);
  c.output = malloc(CHUNK);
  code = c.input && c.output ? client_setup(&c.client, &c.peer, &c.ctx) : EXIT_FAILED;
  if (code == EXIT_OK && c.session_file) code = session_load(c.session_file, &c.session);
  if (code == EXIT_OK) code = in_reactor(run, &c);
  if (c.session) SSL_SESSION_free(c.session);
  if (c.ctx) SSL_CTX_free(c.ctx);
  free(c.input);
  free(c.output);
  return code;
}
