/* duplex_chat HOST PORT [CA.pem]: what you type goes to the peer while what it says is shown.
 *
 * One connection, two fibers: main_fiber() reads it, say() writes it. The end of the
 * input closes only the writing half; the program ends when the peer closes. */
#include <bio_uring.h>
#include <stdio.h>
#include <unistd.h>

static int say(void *arg) {
  um_tls *tls = arg;
  char buffer[4096];
  ssize_t n;
  while ((n = um_read(STDIN_FILENO, buffer, sizeof buffer, -1, UM_FOREVER)) > 0)
    if ((n = um_tls_write(tls, buffer, (size_t)n, UM_FOREVER)) < 0) return (int)n;
  return n < 0 ? (int)n : um_tls_shutdown(tls, UM_FOREVER);
}

static int listen_to(um_tls *tls) {
  char buffer[4096];
  ssize_t n;
  while ((n = um_tls_read(tls, buffer, sizeof buffer, UM_FOREVER)) > 0) {
    ssize_t shown = um_write(STDOUT_FILENO, buffer, (size_t)n, -1, UM_FOREVER);
    if (shown < n) return shown < 0 ? (int)shown : -EIO;
  }
  return (int)n;
}

static int main_fiber(void *arg) {
  char **argv = arg;
  um_error error = {0};
  um_tls *tls;
  SSL_CTX *ctx = NULL;
  um_fiber *writer;

  int result = um_tls_ctx_client(&ctx, argv[3], &error);
  if (result == 0)
    result = um_tls_connect(&tls, argv[1], argv[2], ctx, NULL, um_after(30000), &error);
  SSL_CTX_free(ctx); /* the connection keeps a reference */
  if (result < 0) {
    fprintf(stderr, "duplex_chat: %s\n", error.message);
    return 1;
  }

  result = um_fiber_spawn(NULL, &writer, say, tls, NULL);
  if (result == 0) {
    result = listen_to(tls);
    um_fiber_cancel(writer); /* it may be waiting for the keyboard */
    um_fiber_join(writer, NULL, UM_FOREVER);
  }
  if (result < 0) fprintf(stderr, "duplex_chat: %s\n", um_strerror(result));
  um_tls_close(tls, um_after(5000));
  return result < 0;
}

int main(int argc, char **argv) {
  if (argc == 3 || argc == 4) return um_run(main_fiber, argv) != 0;
  fprintf(stderr, "usage: duplex_chat HOST PORT [CA.pem]\n");
  return 2;
}
