/* https_get HOST PORT PATH [CA.pem]: prints what an HTTPS server answers. */
#include <bio_uring.h>
#include <stdio.h>

static int get(void *arg) {
  char **argv = arg, buffer[8192];
  um_time deadline = um_after(30000);
  um_error error = {0};
  um_tls *tls = NULL;
  SSL_CTX *ctx = NULL;

  int result = um_tls_ctx_client(&ctx, argv[4], &error);
  if (result == 0) result = um_tls_connect(&tls, argv[1], argv[2], ctx, NULL, deadline, &error);
  SSL_CTX_free(ctx); /* the connection keeps a reference */
  if (result < 0) {
    fprintf(stderr, "https_get: %s\n", error.message);
    return 1;
  }

  int length = snprintf(buffer, sizeof buffer, "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", argv[3],
                        argv[1]);
  ssize_t n = -EINVAL;
  if (length < (int)sizeof buffer) n = um_tls_write(tls, buffer, (size_t)length, deadline);
  while (n > 0 && (n = um_tls_read(tls, buffer, sizeof buffer, deadline)) > 0)
    fwrite(buffer, 1, (size_t)n, stdout);
  if (n < 0) fprintf(stderr, "https_get: %s: %s\n", argv[1], um_strerror((int)n));
  um_tls_close(tls, deadline);
  return n < 0;
}

int main(int argc, char **argv) {
  if (argc == 4 || argc == 5) return um_run(get, argv) != 0;
  fprintf(stderr, "usage: https_get HOST PORT PATH [CA.pem]\n");
  return 2;
}
