/* um-tls serve: from its command line to a running server. */
#include "serve.h"

#include "address.h"
#include "commands.h"
#include "exit_codes.h"
#include "limits.h"
#include "options.h"
#include "say.h"
#include "static_files.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define AT(field) offsetof(serve_options, field)
#define OPT(name, argument, kind, field, help) {name, argument, help, kind, AT(field), 0}

static const option known[] = {
  OPT("listen", "HOST:PORT", OPTION_TEXT, listen,
      "where to listen: localhost:8443, [::1]:0, :443 (every\naddress); port 0 picks a free one. "
      "Default: localhost:8443"),
  OPT("cert", "FILE", OPTION_TEXT, cert, "certificate chain, PEM, leaf first (required)"),
  OPT("key", "FILE", OPTION_TEXT, key, "its private key, PEM (required)"),
  OPT("root", "DIR", OPTION_TEXT, root, "serve the files below DIR over HTTP/1.1"),
  {"body", "BYTES", "answer every GET with so many bytes from memory\n(for benchmarks)",
   OPTION_SIZE, AT(body), UINT64_C(1) << 30},
  OPT("echo", NULL, OPTION_FLAG, echo, "no HTTP: send back every byte received"),
  {"hsts", "SECONDS", "tell browsers to use only TLS to this host for so long\n"
   "(Strict-Transport-Security; 31536000 is a year).\nDefault: say nothing", OPTION_COUNT,
   AT(hsts), UINT32_MAX},
  {"threads", "N", "a reactor each, sharing the port (default: 1)", OPTION_COUNT, AT(threads),
   256},
  OPT("client-ca", "FILE", OPTION_TEXT, client_ca,
      "mutual TLS: require a client certificate of this CA (PEM)"),
  OPT("alpn", "LIST", OPTION_TEXT, alpn,
      "protocols, most wanted first: \"h2,http/1.1\"; clients\n"
      "that offer only others are refused. Default: http/1.1\n"
      "for HTTP (no one refused), none for --echo"),
  OPT("ticket-keys", "FILE", OPTION_TEXT, ticket_keys,
      "keys of session tickets, 80 random bytes each, the first\nin use: for several hosts, or "
      "restarts. Default: random\nones that change every hour"),
  OPT("min-tls", "VERSION", OPTION_TEXT, min_tls, "1.2 or 1.3 (default: 1.2)"),
  {"max-connections", "N", "accept no more than N at a time (default: 100000)", OPTION_COUNT,
   AT(max_connections), UINT32_MAX / 2},
  {"max-per-address", "N", "of those, from one IPv4 address or one IPv6 /64; more are\n"
   "closed at once (default: no limit)", OPTION_COUNT, AT(max_per_address), UINT32_MAX / 2},
  OPT("handshake-timeout", "SECONDS", OPTION_SECONDS, handshake_timeout,
      "for a peer's handshake (default: 10)"),
  OPT("idle-timeout", "SECONDS", OPTION_SECONDS, idle_timeout,
      "for the next request, or a peer that takes nothing of\nits response (default: 60)"),
  OPT("request-timeout", "SECONDS", OPTION_SECONDS, request_timeout,
      "for a whole request, head and body, from its first byte\non (default: 30)"),
  {"min-rate", "BYTES", "a second, on average, that a peer must take of a response,\n"
   "--idle-timeout after it began (default: 4k)", OPTION_SIZE, AT(min_rate), UINT32_MAX},
  {"handshake-bytes", "BYTES", "that a peer may send before its handshake is done\n"
   "(default: 64k)", OPTION_SIZE, AT(handshake_bytes), UINT32_MAX},
  {"max-floods", "N", "turns in a row that a peer may fill with records without\n"
   "data, such as KeyUpdates (default: any number)", OPTION_COUNT, AT(max_floods), UINT32_MAX},
  {"receive-total", "BYTES", "received by all connections of a thread and not handled\n"
   "yet, above which each may have 4k (default: 64M)", OPTION_SIZE, AT(receive_total), UINT32_MAX},
  {"send-total", "BYTES", "the same for what is to be sent, and 16k (default: 256M)",
   OPTION_SIZE, AT(send_total), UINT32_MAX},
  OPT("offload", "WHEN", OPTION_TEXT, offload,
      "handshakes on threads of their own, so that connections\nthat are there do not wait for "
      "them: never, always, auto\n(slow keys such as RSA; others above 32 at a time), or\n"
      "above N at a time (default: never)"),
  OPT("drain-timeout", "SECONDS", OPTION_SECONDS, drain_timeout,
      "for running requests after SIGTERM (default: 10)"),
  OPT("metrics", "HOST:PORT", OPTION_TEXT, metrics,
      "counters and histograms in Prometheus' text format,\nover plain HTTP at /metrics: "
      "keep that port private"),
  OPT("user", "NAME[:GROUP]", OPTION_TEXT, user,
      "become that user once the port is bound and the files\nare open; SIGHUP then reads "
      "files as that user"),
  OPT("wipe", NULL, OPTION_FLAG, wipe,
      "wipe OpenSSL's copies of what was received as well as our\nown: a microsecond a record"),
  OPT("core", NULL, OPTION_FLAG, core,
      "allow core dumps and debuggers: both see keys and\nplaintext"),
  OPT("cubic", NULL, OPTION_FLAG, cubic,
      "congestion control cubic on every connection\n(for benchmarks)"),
  OPT("verbose", NULL, OPTION_FLAG, verbose, "say more about connections that end early"),
  {NULL, NULL, NULL, OPTION_FLAG, 0, 0},
};

static const command_line command = {
  .name = "serve",
  .synopsis = "--cert FILE --key FILE [--root DIR | --body BYTES | --echo] [OPTION...]",
  .about =
    "A TLS 1.2 and 1.3 server. With --root it serves files over HTTP/1.1 (GET, HEAD,\n"
    "one byte range, keep-alive, pipelining); no path leads out of DIR, not through\n"
    "\"..\" and not through symbolic links. Directories answer with their index.html.\n\n"
    "Prints \"listening on HOST:PORT\" once it accepts. SIGTERM or SIGINT: accepts no\n"
    "more, finishes running requests (for at most --drain-timeout), closes idle\n"
    "connections with close_notify and exits 0. A second one stops at once, also with 0.\n"
    "SIGHUP: reads certificate, key, client CAs and ticket keys again, for connections from\n"
    "then on; when they are no good it says so and keeps those in use.\n"
    "SIGUSR1: lists every fiber, what it waits for and for how long, on standard error.\n"
    "Connections that fail are reported there, too, a few lines a second at most.",
  .examples =
    "  um-tls serve --cert cert.pem --key key.pem --root /srv/www --listen :8443\n"
    "  um-tls serve --cert cert.pem --key key.pem --echo --threads 2\n"
    "  um-tls serve --cert cert.pem --key key.pem --client-ca clients.pem --min-tls 1.3",
  .options = known,
};

bool serve_offload(const char *text, int *policy) {
  static const struct { const char *name; int policy; } names[] = {
    {"never", UM_TLS_OFFLOAD_NEVER}, {"auto", UM_TLS_OFFLOAD_AUTO}, {"always", UM_TLS_OFFLOAD_ALWAYS}};
  *policy = UM_TLS_OFFLOAD_NEVER;
  if (!text) return true;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (!strcmp(text, names[i].name)) {
      *policy = names[i].policy;
      return true;
    }
  char *end;
  long number = strtol(text, &end, 10);
  if (*end || number < 1 || number > 1000000) return false;
  *policy = (int)number;
  return true;
}

static int check(const serve_options *o) {
  if (!o->cert || !o->key)
    return fail(EXIT_USAGE, "--cert and --key are required; see um-tls serve --help");
  if (!address_has_port(o->listen))
    return fail(EXIT_USAGE, "--listen %s: wanted is HOST:PORT, [IPV6]:PORT or :PORT, "
                "with a port up to 65535", o->listen);
  if (o->metrics && !address_has_port(o->metrics))
    return fail(EXIT_USAGE, "--metrics %s: wanted is HOST:PORT, [IPV6]:PORT or :PORT", o->metrics);
  if (!!o->root + !!o->body + o->echo > 1)
    return fail(EXIT_USAGE,
                "--root, --body and --echo exclude each other; see um-tls serve --help");
  if (o->hsts && o->echo)
    return fail(EXIT_USAGE, "--hsts is a header of HTTP: --echo has none");
  if (o->min_tls && strcmp(o->min_tls, "1.2") && strcmp(o->min_tls, "1.3"))
    return fail(EXIT_USAGE, "--min-tls %s: wanted is 1.2 or 1.3", o->min_tls);
  if ((o->receive_total && o->receive_total < 65536) || (o->send_total && o->send_total < 65536))
    return fail(EXIT_USAGE, "--receive-total and --send-total are 64k at least");
  int policy;
  if (!serve_offload(o->offload, &policy))
    return fail(EXIT_USAGE, "--offload %s: wanted is never, auto, always or a number", o->offload);
  if (o->handshake_timeout <= 0 || o->idle_timeout <= 0 || o->request_timeout <= 0)
    return fail(EXIT_USAGE, "a timeout of 0 would end every connection; see um-tls serve --help");
  return EXIT_OK;
}

static int open_root(server *s) {
  const char *root = s->options.root;
  s->site.root = root ? static_root(root) : -1;
  if (root && s->site.root < 0)
    return fail(EXIT_FILE, "cannot serve --root %s: %s", root, um_strerror(s->site.root));
  return EXIT_OK;
}

/* No guessing of types other than the one told; and what --hsts asks for. */
static void set_fields(server *s) {
  char *out = s->site.fields;
  size_t room = sizeof s->site.fields;
  int n = s->site.has_body ? 0 : snprintf(out, room, "X-Content-Type-Options: nosniff\r\n");
  if (s->options.hsts)
    snprintf(out + n, room - (size_t)n, "Strict-Transport-Security: max-age=%" PRIu64 "\r\n",
             s->options.hsts);
}

static int run(server *s) {
  int code = serve_workers_create(s);
  if (code == EXIT_OK) code = serve_workers_run(s);
  serve_workers_destroy(s);
  return code;
}

int command_serve(int argc, char **argv) {
  server s = {.options = {.listen = "localhost:8443", .threads = 1, .handshake_timeout = 10000,
                          .idle_timeout = 60000, .request_timeout = 30000, .min_rate = 4096,
                          .drain_timeout = 10000,
                          .max_connections = 100000},
              .metrics_fd = -1};
  int code = options_parse(&command, &s.options, argc, argv);
  if (code != OPTIONS_GO_ON) return code;
  if ((code = check(&s.options)) != EXIT_OK) return code;
  serve_block_signals();
  s.site.has_body = s.options.body > 0;
  s.site.body = s.options.body;
  set_fields(&s);
  s.site.wait_ms = s.echo.wait_ms = s.options.idle_timeout;
  s.site.request_ms = s.options.request_timeout;
  s.site.min_rate = s.options.min_rate;
  limits_raise_files(s.options.max_connections + 64);
  if ((code = open_root(&s)) == EXIT_OK && (code = serve_tls_setup(&s)) == EXIT_OK) code = run(&s);
  serve_tls_free(&s);
  if (s.site.root >= 0) close(s.site.root);
  return code;
}
