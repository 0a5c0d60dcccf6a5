/* This library's server, for what `um-tls serve` cannot do: answers in pieces, requests that
 * are thrown away, and design decisions switched off (bench ablate). Public headers only. */
#define _GNU_SOURCE
#include "server.h"

#include <bio_uring.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>

#define FOREVER_MS UINT32_MAX

static bool no_park, small_buffer, flush_each, sqpoll, two_tickets, auto_chain, no_turns, no_offload;
static SSL_CTX *context;
static int listen_fd;

static int write_piece(um_tls *tls, const char *data, size_t length) {
  ssize_t n = um_tls_write(tls, data, length, UM_FOREVER);
  if (n < 0) return (int)n;
  return flush_each ? um_tls_flush(tls, UM_FOREVER) : 0;
}

static int respond(um_tls *tls) {
  for (size_t sent = 0; sent < setup.response_length; sent += setup.piece) {
    size_t left = setup.response_length - sent;
    int result = write_piece(tls, setup.response + sent, left < setup.piece ? left : setup.piece);
    if (result < 0) return result;
  }
  return 0;
}

static int answer(um_tls *tls, request_state *state, const char *data, size_t length) {
  if (setup.echo) return write_piece(tls, data, length);
  int result = 0;
  for (unsigned owed = server_requests(state, data, length); owed && result == 0; owed--)
    result = respond(tls);
  return result;
}

static int serve_requests(um_tls *tls, void **data, char *buffer, size_t size) {
  if (!*data && !(*data = calloc(1, sizeof(request_state)))) return -ENOMEM;
  do {
    ssize_t n = um_tls_read(tls, buffer, size, UM_FOREVER);
    if (n <= 0) return n ? (int)n : UM_TLS_CLOSE;
    int result = answer(tls, *data, buffer, (size_t)n);
    if (result < 0) return result;
  } while (no_park || um_tls_pending(tls));
  return UM_TLS_PARK;
}

static int handle(um_tls *tls, void **data, void *arg) {
  char buffer[SSL3_RT_MAX_PLAIN_LENGTH];
  (void)arg;
  return serve_requests(tls, data, buffer, sizeof buffer);
}

/* For fibers that wait in it: what its frame and those below take of a stack is one page. */
static int handle_small(um_tls *tls, void **data, void *arg) {
  char buffer[1024];
  (void)arg;
  return serve_requests(tls, data, buffer, sizeof buffer);
}

static void closed(um_tls *tls, void *data, void *arg, int reason) {
  (void)tls, (void)arg, (void)reason;
  free(data);
}

static int wait_for_signal(void) {
  struct signalfd_siginfo info;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigprocmask(SIG_BLOCK, &set, NULL);
  int fd = signalfd(-1, &set, SFD_CLOEXEC);
  if (fd < 0) return -errno;
  um_read(fd, &info, sizeof info, -1, UM_FOREVER);
  return um_close(fd);
}

static int serve(void *arg) {
  um_tls_listener *listener;
  const um_tls_server_config config = {
    .ctx = context, .handler = small_buffer ? handle_small : handle, .closed = closed,
    .idle_timeout_ms = FOREVER_MS,
    .offload = no_offload ? UM_TLS_OFFLOAD_NEVER : UM_TLS_OFFLOAD_AUTO,
  };
  (void)arg;
  int result = um_tls_serve(&listener, listen_fd, &config);
  if (result < 0) fail("cannot serve: %s", um_strerror(result));
  server_announce(listen_fd);
  wait_for_signal();
  return um_tls_listener_stop(listener, um_after(200));
}

static void make_context(void) {
  um_error error;
  if (um_tls_ctx_server(&context, setup.certificate, setup.key, &error) < 0)
    fail("%s", error.message);
  if (two_tickets) SSL_CTX_set_num_tickets(context, 2);
  if (auto_chain) SSL_CTX_clear_mode(context, SSL_MODE_NO_AUTO_CHAIN);
}

int main(int argc, char **argv) {
  const server_flag flags[] = {
    { "small-buffer", "handlers read up to 1 KiB", &small_buffer },
    { "no-park", "handlers wait for the next request instead of parking", &no_park },
    { "flush-each", "wait for the kernel after every write", &flush_each },
    { "sqpoll", "UM_REACTOR_SQPOLL", &sqpoll },
    { "two-tickets", "OpenSSL's default of two session tickets", &two_tickets },
    { "auto-chain", "search the certificate chain in each handshake", &auto_chain },
    { "no-turns", "no limit to what a connection reads in one turn", &no_turns },
    { "no-offload", "no handshakes on worker threads", &no_offload },
    { NULL, NULL, NULL },
  };
  um_reactor *reactor;
  um_error error;
  server_start(argc, argv, "libbio_uring.", true, flags);
  um_reactor_config config = { .flags = sqpoll ? UM_REACTOR_SQPOLL : 0 };
  if (no_turns) config.turn_bytes = config.receive_limit = 16u << 20;
  make_context();
  listen_fd = server_listen(true);
  if (um_reactor_create(&reactor, &config, &error) < 0) fail("%s", error.message);
  um_fiber_spawn(reactor, NULL, serve, NULL, NULL);
  int result = um_reactor_run(reactor);
  return result < 0;
}
