/* echo_server HOST:PORT CHAIN.pem KEY.pem: sends back what it receives over TLS.
 *
 * One thread. A connection that waits for data is parked: it holds no fiber.
 * SIGINT and SIGTERM let running replies finish, then end the program. */
#include <bio_uring.h>
#include <poll.h>
#include <stdio.h>
#include <sys/signalfd.h>

static int echo(um_tls *tls, void **data, void *arg) {
  char buffer[16384];
  (void)data, (void)arg;
  do {
    ssize_t got = um_tls_read(tls, buffer, sizeof buffer, um_after(10000));
    if (got <= 0) return (int)got; /* 0, the peer's close_notify, is UM_TLS_CLOSE */
    ssize_t sent = um_tls_write(tls, buffer, (size_t)got, um_after(10000));
    if (sent < got) return sent < 0 ? (int)sent : -ETIMEDOUT;
  } while (um_tls_pending(tls) > 0);
  return UM_TLS_PARK;
}

/* A descriptor that becomes readable at SIGINT and SIGTERM. */
static int signal_fd(void) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  sigprocmask(SIG_BLOCK, &signals, NULL);
  return signalfd(-1, &signals, SFD_CLOEXEC);
}

static int serve(void *arg) {
  char **argv = arg;
  um_error error = {0};
  um_tls_server_config config = {.handler = echo};
  um_tls_listener *listener;
  int fd = -1, signals = signal_fd();

  int result = um_tls_ctx_server(&config.ctx, argv[2], argv[3], &error);
  if (result == 0) result = fd = um_tcp_listen(argv[1], 0, &error);
  if (fd >= 0) result = um_tls_serve(&listener, fd, &config);
  if (result == 0) {
    printf("echo on %s\n", argv[1]), fflush(stdout);
    um_poll(signals, POLLIN, UM_FOREVER);
    result = um_tls_listener_stop(listener, um_after(5000));
  }
  if (result < 0) fprintf(stderr, "%s\n", error.code ? error.message : um_strerror(result));
  if (fd >= 0) um_close(fd);
  um_close(signals);
  SSL_CTX_free(config.ctx);
  return result < 0;
}

int main(int argc, char **argv) {
  if (argc == 4) return um_run(serve, argv) != 0;
  fprintf(stderr, "usage: echo_server HOST:PORT CHAIN.pem KEY.pem\n");
  return 2;
}
