/* A program that knows the library only through pkg-config. */
#include <bio_uring.h>
#include <stdio.h>
#include <string.h>

static int fiber(void *arg) {
  *(int *)arg = um_fiber_yield() == 0;
  return 0;
}

int main(void) {
  char expected[32];
  snprintf(expected, sizeof expected, "%d.%d.%d", UM_VERSION_MAJOR, UM_VERSION_MINOR, UM_VERSION_PATCH);
  if (strcmp(um_version(), expected) != 0) {
    fprintf(stderr, "headers are %s, library is %s\n", expected, um_version());
    return 1;
  }
  SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
  SSL *ssl = ctx ? SSL_new(ctx) : NULL;
  BIO *bio = BIO_new_uring_memory(-1);
  if (!ssl || !bio)
    return 1;
  SSL_set_bio(ssl, bio, bio);
  const void *hello;
  int wants = SSL_get_error(ssl, SSL_connect(ssl));
  if (wants != SSL_ERROR_WANT_READ || BIO_uring_output(bio, &hello) == 0) {
    fprintf(stderr, "no ClientHello in the BIO\n");
    return 1;
  }
  SSL_free(ssl);
  SSL_CTX_free(ctx);

  int ran = 0;
  int result = um_run(fiber, &ran);
  if (result != UM_ENOURING && (result < 0 || !ran)) {
    fprintf(stderr, "um_run: %s\n", um_strerror(result));
    return 1;
  }
  return 0;
}
