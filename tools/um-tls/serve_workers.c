/* Reactors of the server, one a thread, and their life: start together, serve
 * until a signal, drain, end. The first runs on the main thread and holds the
 * fiber that reads signals. */
#include "address.h"
#include "exit_codes.h"
#include "privileges.h"
#include "say.h"
#include "serve.h"
#include "serve_observe.h"

#include <bio_uring.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

/* ---- sockets ---- */

/* SO_REUSEPORT would let us join a port that another server of ours holds: so
 * see first that it is free. */
static int check_port_free(const char *address, um_error *error) {
  int fd = um_tcp_listen(address, 0, error);
  if (fd < 0) return fd;
  close(fd);
  return 0;
}

static int listen_on(server *s, const char *address, int *fd) {
  um_error error;
  unsigned flags = s->count > 1 ? UM_TCP_REUSEPORT : 0;
  int result = address == s->options.listen && flags ? check_port_free(address, &error) : 0;
  if (!result) *fd = result = um_tcp_listen(address, flags, &error);
  if (result < 0)
    return fail(result == UM_ERESOLVE ? EXIT_RESOLVE : EXIT_LISTEN, "%s", error.message);
  if (s->options.cubic && setsockopt(*fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5))
    say("--cubic: this kernel does not offer it: %s", um_strerror(-errno));
  return EXIT_OK;
}

static int bind_workers(server *s) {
  int code = EXIT_OK;
  for (unsigned i = 0; i < s->count && code == EXIT_OK; i++) {
    code = listen_on(s, i ? s->address : s->options.listen, &s->workers[i].fd);
    if (!i && code == EXIT_OK)
      address_of_socket(s->workers[0].fd, ADDRESS_LOCAL, s->address, sizeof s->address);
  }
  return code == EXIT_OK ? serve_metrics_bind(s) : code;
}

static int create_worker(server *s, serve_worker *w) {
  um_error error;
  um_reactor_config config = {.receive_total = (unsigned)s->options.receive_total,
                              .send_total = (unsigned)s->options.send_total};
  int result = um_reactor_create(&w->reactor, &config, &error);
  if (result) return fail(EXIT_NO_REACTOR, "%s", error.message);
  w->http = http_service_create(&s->site);
  return w->http ? EXIT_OK : fail(EXIT_FAILED, "out of memory: try a smaller --body");
}

int serve_workers_create(server *s) {
  s->count = (unsigned)s->options.threads;
  s->workers = calloc(s->count, sizeof *s->workers);
  if (!s->workers) return fail(EXIT_FAILED, "out of memory");
  um_event_init(&s->drain);
  um_semaphore_init(&s->drained, 0);
  atomic_store(&s->starting, s->count);
  for (unsigned i = 0; i < s->count; i++) {
    s->workers[i].fd = -1;
    s->workers[i].server = s;
    um_semaphore_init(&s->workers[i].copying, 0);
    s->workers[i].log.verbose = s->options.verbose;
  }
  int code = bind_workers(s);
  if (code == EXIT_OK) code = privileges_drop(s->options.user);
  if (code == EXIT_OK) code = privileges_core(s->options.core);
  for (unsigned i = 0; i < s->count && code == EXIT_OK; i++)
    code = create_worker(s, &s->workers[i]);
  return code;
}

void serve_workers_destroy(server *s) {
  for (unsigned i = 0; s->workers && i < s->count; i++) {
    serve_worker *w = &s->workers[i];
    if (w->reactor) um_reactor_destroy(w->reactor);
    http_service_destroy(w->http);
    SSL_CTX_free(atomic_load(&w->fresh));
    if (w->fd >= 0) close(w->fd);
  }
  if (s->metrics_fd >= 0) close(s->metrics_fd);
  free(s->workers);
}

/* ---- a worker's life ---- */

static void connection_closed(um_tls *tls, void *data, void *arg, int reason) {
  serve_worker *w = arg;
  serve_log_end(&w->log, tls, reason, data != NULL);
}

static int handle_http(um_tls *tls, void **data, void *arg) {
  serve_worker *w = arg;
  return http_service_handle(tls, data, w->http);
}

static int handle_echo(um_tls *tls, void **data, void *arg) {
  serve_worker *w = arg;
  return echo_service_handle(tls, data, &w->server->echo);
}

/* The host as it was given, so that it fits the certificate; the real port. */
static void announce(server *s) {
  if (atomic_fetch_sub(&s->starting, 1) != 1) return;
  const char *listen = s->options.listen, *real_port = strrchr(s->address, ':');
  int host = (int)(strrchr(listen, ':') - listen);
  if (host > 0) printf("listening on %.*s%s\n", host, listen, real_port);
  else printf("listening on %s\n", s->address);
  if (!fflush(stdout)) return;
  say("listening on %s, which standard output does not take: %s", s->address, strerror(errno));
  clearerr(stdout);
}

static void ask_to_drain(server *s) {
  atomic_store(&s->site.draining, true);
  um_event_set(&s->drain);
}

static void drain(serve_worker *w, um_tls_listener *listener) {
  int64_t patience = w->server->options.drain_timeout;
  /* Who connects now is refused at once, and a successor may have the port already. */
  shutdown(w->fd, SHUT_RDWR);
  if (um_tls_listener_stop(listener, um_after(patience)))
    say("connections still busy after %g seconds were cut", (double)patience / 1000);
}

/* Limits of the whole process are shared out. */
static unsigned share(const server *s, uint64_t all) {
  return (unsigned)((all + s->count - 1) / s->count);
}

/* The fiber that owns the listener. */
static int serve_and_drain(void *arg) {
  serve_worker *w = arg;
  server *s = w->server;
  um_tls_listener *listener;
  um_tls_server_config config = {
    .ctx = s->ctx, .handler = s->options.echo ? handle_echo : handle_http, .arg = w,
    .closed = connection_closed,
    .handshake_timeout_ms = (unsigned)s->options.handshake_timeout,
    .idle_timeout_ms = (unsigned)s->options.idle_timeout,
    .max_connections = share(s, s->options.max_connections),
    .max_per_address = share(s, s->options.max_per_address),
    .handshake_limit = (unsigned)s->options.handshake_bytes,
    .max_floods = (unsigned)s->options.max_floods,
  };
  serve_offload(s->options.offload, &config.offload);
  int result = um_tls_serve(&listener, w->fd, &config);
  if (result) {
    atomic_store(&s->exit_code,
                 fail(exit_code_for(result), "cannot serve: %s", um_strerror(result)));
    ask_to_drain(s);
  } else {
    w->listener = listener;
    announce(s);
    um_event_wait(&s->drain, UM_FOREVER);
    drain(w, listener);
    w->listener = NULL;
  }
  um_semaphore_release(&s->drained);
  return 0;
}

static void *run_worker(void *arg) {
  serve_worker *w = arg;
  um_fiber_options options = {.name = "server"};
  int result = um_fiber_spawn(w->reactor, NULL, serve_and_drain, w, &options);
  if (!result) result = um_reactor_run(w->reactor);
  if (result) {
    atomic_store(&w->server->exit_code,
                 fail(exit_code_for(result), "a reactor failed: %s", um_strerror(result)));
    ask_to_drain(w->server);
    um_semaphore_release(&w->server->drained);
  }
  /* By the thread that ran it, and when no other can be waking a fiber of it. */
  pthread_barrier_wait(&w->server->ended);
  um_reactor_destroy(w->reactor);
  w->reactor = NULL;
  return NULL;
}

/* ---- signals ---- */

static sigset_t our_signals(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGHUP);
  return set;
}

/* On a worker's thread. */
static int take_context(void *arg) {
  serve_worker *w = arg;
  SSL_CTX *fresh = atomic_exchange(&w->fresh, NULL);
  int result = fresh && w->listener ? um_tls_listener_set_ctx(w->listener, fresh) : 0;
  SSL_CTX_free(fresh);
  return result;
}

static bool has_started(server *s) {
  while (atomic_load(&s->starting))
    if (um_fiber_sleep(um_after(10)) < 0) return false;
  return true;
}

/* Connections that are there keep the certificate they were made with. */
static void reload(server *s) {
  if (!has_started(s)) return;
  if (serve_tls_reload(s) != EXIT_OK) {
    say("nothing was reloaded: the certificate, keys and CAs in use stay");
    return;
  }
  for (unsigned i = 0; i < s->count; i++) {
    SSL_CTX_up_ref(s->ctx);
    SSL_CTX_free(atomic_exchange(&s->workers[i].fresh, s->ctx));
    um_post(s->workers[i].reactor, take_context, &s->workers[i]);
  }
  say("certificate, keys and CAs reloaded");
}

static int read_signals(void *arg) {
  server *s = arg;
  sigset_t set = our_signals();
  struct signalfd_siginfo info;
  int fd = signalfd(-1, &set, SFD_CLOEXEC);
  if (fd < 0) return fail(EXIT_FAILED, "signalfd: %s", um_strerror(-errno));
  for (bool again = false; um_read(fd, &info, sizeof info, -1, UM_FOREVER) > 0;) {
    if (info.ssi_signo == SIGUSR1) {
      serve_list_fibers(s);
      continue;
    }
    if (info.ssi_signo == SIGHUP) {
      reload(s);
      continue;
    }
    if (again) {
      say("stopped at once by a second signal");
      _exit(EXIT_OK);
    }
    ask_to_drain(s);
    again = true;
  }
  um_close(fd);
  return 0;
}

/* Signals are read until the last worker has drained: the second may come then. */
static int supervise(void *arg) {
  server *s = arg;
  um_group helpers;
  um_fiber_options signals = {.name = "signals"}, scrapes = {.name = "metrics listener"};
  um_group_init(&helpers);
  int result = um_group_spawn(&helpers, read_signals, s, &signals);
  if (!result && s->metrics_fd >= 0) result = um_group_spawn(&helpers, serve_metrics, s, &scrapes);
  if (result) say("cannot read signals or show metrics: %s", um_strerror(result));
  for (unsigned i = 0; i < s->count; i++) um_semaphore_acquire(&s->drained, UM_FOREVER);
  um_group_cancel(&helpers);
  return um_group_join(&helpers, UM_FOREVER);
}

void serve_block_signals(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static void block_signals(void) {
  sigset_t set = our_signals();
  pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static void start_threads(server *s) {
  for (unsigned i = 1; i < s->count; i++)
    if (pthread_create(&s->workers[i].thread, NULL, run_worker, &s->workers[i]))
      _exit(fail(EXIT_FAILED, "cannot start thread %u of %u", i + 1, s->count));
}

int serve_workers_run(server *s) {
  block_signals(); /* before any thread starts, so that all inherit it */
  um_fiber_options options = {.name = "supervisor"};
  int result = um_fiber_spawn(s->workers[0].reactor, NULL, supervise, s, &options);
  if (result) return fail(EXIT_FAILED, "cannot start: %s", um_strerror(result));
  pthread_barrier_init(&s->ended, NULL, s->count);
  start_threads(s);
  run_worker(&s->workers[0]);
  for (unsigned i = 1; i < s->count; i++) pthread_join(s->workers[i].thread, NULL);
  return atomic_load(&s->exit_code);
}
