/* um-tls load: command line, one connection to see that all is well, then the
 * workers, and a line about them each second. */
#include "load.h"

#include "commands.h"
#include "exit_codes.h"
#include "in_reactor.h"
#include "limits.h"
#include "options.h"
#include "say.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/random.h>
#include <unistd.h>

#define OPENING_AT_A_TIME 64

/* ---- command line ---- */

#define AT(field) offsetof(load_options, field)
static const option known[] = {
  {"echo", NULL, "send, receive the same bytes, compare each", OPTION_FLAG, AT(echo), 0},
  {"size", "BYTES", "of an echoed message (default: 64)", OPTION_SIZE, AT(size), 1 << 28},
  {"http", "PATH", "GET PATH over HTTP keep-alive", OPTION_TEXT, AT(http), 0},
  {"connections", "N", "at the same time (default: 64)", OPTION_COUNT, AT(connections),
   1000000},
  {"threads", "N", "a reactor each, sharing the connections (default: 1)", OPTION_COUNT,
   AT(threads), 256},
  {"duration", "SECONDS", "how long (default: 10, or until --requests are done)",
   OPTION_SECONDS, AT(duration), 0},
  {"requests", "N", "stop after so many operations", OPTION_COUNT, AT(requests), 0},
  {"pipeline", "N", "operations sent at once (default: 1)", OPTION_COUNT, AT(pipeline), 65536},
  {"rate", "N",
   "start so many operations a second, not as many as go;\nlatency counts from when "
   "each was due",
   OPTION_COUNT, AT(rate), 100000000},
  {"new-connections", NULL,
   "a new connection, with a full handshake, for each\noperation; without "
   "--echo or --http: the handshake is it",
   OPTION_FLAG, AT(new_connections), 0},
  {"resume", NULL, "with --new-connections: resume sessions", OPTION_FLAG, AT(resume), 0},
  {"idle", NULL,
   "open the connections, hold them for the duration, see\nthat they remain open and, "
   "with --echo or --http, work",
   OPTION_FLAG, AT(idle), 0},
  {"timeout", "SECONDS", "for one operation, or a handshake (default: 30)", OPTION_SECONDS,
   AT(timeout), 0},
  {"cubic", NULL, "congestion control cubic (for benchmarks)", OPTION_FLAG, AT(cubic), 0},
  {"json", NULL, "the result as one JSON object", OPTION_FLAG, AT(json), 0},
  CLIENT_OPTIONS(load_options),
  {NULL, NULL, NULL, OPTION_FLAG, 0, 0},
};

static const command_line command = {
  .name = "load",
  .synopsis = "HOST:PORT (--echo | --http PATH | --new-connections | --idle) [OPTION...]",
  .about =
    "Loads a TLS server from many connections and reports rate, latencies (the time from\n"
    "the start of an operation, or of its pipeline, to the last byte of its answer),\n"
    "bytes and errors by kind. Connections open before the clock starts; one that\n"
    "fails is counted and opened again. Progress goes to standard error.\n"
    "Exits with 1 when anything failed. CPU of ours a request is reported so that it can\n"
    "be seen whether the server or we were the limit.",
  .examples =
    "  um-tls load localhost:8443 --ca ca.pem --echo --size 1k --connections 512\n"
    "  um-tls load localhost:8443 --ca ca.pem --http /index.html --duration 30 --json\n"
    "  um-tls load localhost:8443 --ca ca.pem --new-connections --resume --requests 10000\n"
    "  um-tls load localhost:8443 --ca ca.pem --idle --echo --connections 10000",
  .options = known,
  .positional = AT(client.peer),
  .positional_name = "HOST:PORT",
};

static int check(load_options *o) {
  if (o->echo && o->http)
    return fail(EXIT_USAGE, "--echo and --http exclude each other; see um-tls load --help");
  if (o->idle && o->new_connections)
    return fail(EXIT_USAGE,
                "--idle and --new-connections exclude each other; see um-tls load --help");
  if (!o->echo && !o->http && !o->idle && !o->new_connections)
    return fail(EXIT_USAGE, "nothing to do: say --echo, --http PATH, --new-connections or --idle");
  if (o->resume && !o->new_connections)
    return fail(EXIT_USAGE, "--resume needs --new-connections");
  if (o->http && *o->http != '/')
    return fail(EXIT_USAGE, "--http %s: wanted is a path that starts with /", o->http);
  if (o->pipeline * o->size > UINT64_C(1) << 30)
    return fail(EXIT_USAGE, "--size times --pipeline is more than 1 GiB");
  if (o->threads > o->connections) o->threads = o->connections;
  return EXIT_OK;
}

/* ---- what is sent ---- */

static int make_random(load *l) {
  l->message_length = l->options.size * l->options.pipeline;
  size_t length = l->message_length + LOAD_SHIFTS;
  l->message = malloc(length);
  for (size_t done = 0; l->message && done < length;) {
    ssize_t n = getrandom(l->message + done, length - done, 0);
    if (n < 0 && errno != EINTR) return fail(EXIT_FAILED, "getrandom: %s", um_strerror(-errno));
    if (n > 0) done += (size_t)n;
  }
  return l->message ? EXIT_OK : fail(EXIT_FAILED, "out of memory");
}

static int make_requests(load *l) {
  char request[4096];
  const char *name = l->options.client.servername ? l->options.client.servername : l->peer.host;
  int n = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", l->options.http,
                   name);
  if (n >= (int)sizeof request) return fail(EXIT_USAGE, "--http: the path is too long");
  l->message_length = (size_t)n * l->options.pipeline;
  l->message = malloc(l->message_length);
  if (!l->message) return fail(EXIT_FAILED, "out of memory");
  for (uint64_t i = 0; i < l->options.pipeline; i++)
    memcpy(l->message + (size_t)n * i, request, (size_t)n);
  return EXIT_OK;
}

static int make_message(load *l) {
  if (l->options.echo) return make_random(l);
  return l->options.http ? make_requests(l) : EXIT_OK;
}

/* ---- the first connection: resolves, and meets what would fail in all of them ---- */

static int try_first(void *arg) {
  load *l = arg;
  um_tls *tls;
  um_error error;
  um_tls_options options = client_tls_options(&l->options.client, &l->peer, NULL);
  um_time deadline = um_after(l->options.timeout);
  int result = um_tls_connect(&tls, l->peer.host, l->peer.port, l->ctx, &options, deadline, &error);
  if (result) return fail(exit_code_for(result), "%s%s", error.message, client_hint(result));
  l->address_length = sizeof l->address;
  result =
      getpeername(um_tls_fd(tls), (struct sockaddr *)&l->address, &l->address_length) ? -errno : 0;
  X509 *certificate = um_tls_peer_certificate(tls);
  load_trust(l, certificate);
  X509_free(certificate);
  if (!result && l->options.resume) { /* a session of TLS 1.3 comes after the handshake */
    char byte;
    um_tls_shutdown(tls, deadline);
    um_tls_read(tls, &byte, 1, deadline);
    l->session = um_tls_session(tls);
  }
  um_tls_close(tls, deadline);
  return result ? fail(exit_code_for(result), "%s: %s", l->options.client.peer, um_strerror(result))
                : EXIT_OK;
}

/* ---- workers ---- */

static int spawn_connection(load_worker *w, unsigned index) {
  load_connection *c = calloc(1, sizeof *c);
  char *buffer = malloc(LOAD_BUFFER);
  int result = -ENOMEM;
  if (c && buffer) {
    *c = (load_connection){.worker = w, .index = index, .buffer = buffer};
    result = um_fiber_spawn(w->reactor, NULL, load_connection_run, c, NULL);
  }
  if (result) free(buffer), free(c);
  return result;
}

static int create_worker(load *l, uint64_t i) {
  load_worker *w = &l->workers[i];
  const load_options *o = &l->options;
  um_error error;
  w->load = l;
  w->connections = (unsigned)(o->connections / o->threads + (i < o->connections % o->threads));
  w->quota = o->requests ? o->requests / o->threads + (i < o->requests % o->threads) : UINT64_MAX;
  um_semaphore_init(&w->opening, OPENING_AT_A_TIME);
  if (l->session && SSL_SESSION_up_ref(l->session)) w->session = l->session;
  if (um_reactor_create(&w->reactor, NULL, &error))
    return fail(EXIT_NO_REACTOR, "%s", error.message);
  for (unsigned n = 0; n < w->connections; n++) {
    int result = spawn_connection(w, n);
    if (result) return fail(EXIT_FAILED, "connection %u: %s", n, um_strerror(result));
  }
  return EXIT_OK;
}

static void *run_worker(void *arg) {
  load_worker *w = arg;
  int result = um_reactor_run(w->reactor);
  if (result) _exit(fail(EXIT_FAILED, "a reactor failed: %s", um_strerror(result)));
  pthread_barrier_wait(&w->load->ended);
  um_reactor_destroy(w->reactor);
  SSL_SESSION_free(w->session);
  return NULL;
}

/* ---- watching ---- */

static void say_progress(const load *l, const load_sum *before, const char *state) {
  load_sum s = load_count(l);
  char line[160];
  uint64_t done = s.operations - before->operations;
  int n = snprintf(line, sizeof line,
                   "%s: %" PRIu64 " open, %" PRIu64 " operations/s, %" PRIu64 " errors", state,
                   s.open, done, s.errors);
  if (isatty(STDERR_FILENO)) fprintf(stderr, "\r%-*s", n > 70 ? n : 70, line);
  else fprintf(stderr, "%s\n", line);
}

static void end_progress(void) {
  if (isatty(STDERR_FILENO)) fprintf(stderr, "\r%70s\r", "");
}

/* Until the event; says each second how it goes. */
static void watch(const load *l, um_event *event, const char *state) {
  load_sum before = load_count(l);
  while (um_event_wait(event, um_after(1000)) == -ETIMEDOUT) {
    say_progress(l, &before, state);
    before = load_count(l);
  }
}

static double cpu_seconds(void) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
         (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void start(load *l) {
  const load_options *o = &l->options;
  load_sum none = {0};
  if (o->idle) say_progress(l, &none, "all connected, holding");
  l->started = um_now();
  l->ends = o->duration ? l->started + o->duration * UM_MS : UM_FOREVER;
  um_event_set(&l->go);
}

/* Until the last operation ended: closing thousands of connections takes a while. */
static double seconds_worked(const load *l) {
  um_time last = l->started;
  for (uint64_t i = 0; i < l->options.threads; i++)
    if (l->workers[i].last > last) last = l->workers[i].last;
  return (double)((last > l->started ? last : um_now()) - l->started) / 1e9;
}

static void measure(load *l) {
  watch(l, &l->settled, "connecting");
  double cpu = cpu_seconds();
  start(l);
  watch(l, &l->finished, l->options.idle ? "holding" : "running");
  pthread_barrier_wait(&l->ended);
  end_progress();
  load_report(l, seconds_worked(l), cpu_seconds() - cpu);
}

static int run_workers(load *l) {
  uint64_t count = l->options.threads;
  l->workers = calloc(count, sizeof *l->workers);
  if (!l->workers) return fail(EXIT_FAILED, "out of memory");
  pthread_barrier_init(&l->ended, NULL, (unsigned)count + 1);
  um_event_init(&l->settled);
  um_event_init(&l->go);
  um_event_init(&l->finished);
  atomic_store(&l->unsettled, (unsigned)l->options.connections);
  atomic_store(&l->running, (unsigned)l->options.connections);
  int code = EXIT_OK;
  for (uint64_t i = 0; i < count && code == EXIT_OK; i++) code = create_worker(l, i);
  if (code != EXIT_OK) _exit(code); /* fibers that never ran cannot be ended in order */
  for (uint64_t i = 0; i < count; i++)
    if (pthread_create(&l->workers[i].thread, NULL, run_worker, &l->workers[i]))
      _exit(fail(EXIT_FAILED, "cannot start thread %" PRIu64 " of %" PRIu64, i + 1, count));
  measure(l);
  for (uint64_t i = 0; i < count; i++) pthread_join(l->workers[i].thread, NULL);
  code = load_count(l).errors ? EXIT_FAILED : EXIT_OK;
  free(l->workers);
  return code;
}

static int check_files(const load_options *o) {
  uint64_t wanted = o->connections + 16 * o->threads + 32, got = limits_raise_files(wanted);
  if (got >= wanted) return EXIT_OK;
  return fail(EXIT_FAILED, "--connections %" PRIu64 " needs %" PRIu64 " descriptors, only %" PRIu64
              " are allowed: raise the limit with ulimit -Hn", o->connections, wanted, got);
}

int command_load(int argc, char **argv) {
  load l = {.options = {.size = 64, .connections = 64, .threads = 1, .pipeline = 1,
                        .timeout = 30000}};
  int code = options_parse(&command, &l.options, argc, argv);
  if (code != OPTIONS_GO_ON) return code;
  if ((code = check(&l.options)) != EXIT_OK) return code;
  if (!l.options.duration && (!l.options.requests || l.options.idle)) l.options.duration = 10000;
  if ((code = check_files(&l.options)) == EXIT_OK &&
      (code = client_setup(&l.options.client, &l.peer, &l.ctx)) == EXIT_OK &&
      (code = make_message(&l)) == EXIT_OK && (code = in_reactor(try_first, &l)) == EXIT_OK)
    code = run_workers(&l);
  if (l.ctx) SSL_CTX_free(l.ctx);
  if (l.session) SSL_SESSION_free(l.session);
  OPENSSL_free(l.certificate);
  free(l.message);
  return code;
}
