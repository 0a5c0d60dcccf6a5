/* SSLKEYLOGFILE, off unless asked for. The context owns the descriptor. */
#include "error.h"
#include "log.h"
#include "tls_internal.h"

#include <bio_uring/tls.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int slot = -1; /* of the context's data: the descriptor + 1, which is never NULL */

static void close_with_ctx(void *parent, void *data, CRYPTO_EX_DATA *all, int index, long argl,
                           void *argp) {
  (void)parent, (void)all, (void)index, (void)argl, (void)argp;
  if (data) close((int)(intptr_t)data - 1);
}

static void take_slot(void) {
  slot = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, close_with_ctx);
}

/* A full disk, or a pipe that nobody reads, is no reason to fail a handshake. */
static void tell_once(int error) {
  static atomic_flag told = ATOMIC_FLAG_INIT;
  if (!atomic_flag_test_and_set(&told))
    um__log(UM_LOG_WARNING, "key log: %s: secrets are dropped", um_strerror(error));
}

/* One write(2) to a file opened to append: lines of several processes do not mix. */
void um__keylog_line(const SSL *ssl, const char *secret) {
  void *data = SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), slot);
  char line[512];
  int length = snprintf(line, sizeof line, "%s\n", secret);
  int result = 0;
  if (length > 0 && length < (int)sizeof line)
    result = um__write_line((int)(intptr_t)data - 1, line, (size_t)length);
  if (result < 0) tell_once(result);
  OPENSSL_cleanse(line, sizeof line);
}

int um_tls_ctx_keylog(SSL_CTX *ctx, const char *file, um_error *error) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  if (error) *error = (um_error){0};
  if (!file) file = secure_getenv("SSLKEYLOGFILE");
  if (!file || !*file) return 0;
  pthread_once(&once, take_slot);
  /* O_NONBLOCK: a FIFO that nobody reads is an error now, instead of a wait. */
  int fd = open(file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600);
  if (fd < 0) return um__fail(error, -errno, "key log %s: %s", file, strerror(errno));
  void *old = slot < 0 ? NULL : SSL_CTX_get_ex_data(ctx, slot);
  if (slot < 0 || SSL_CTX_set_ex_data(ctx, slot, (void *)(intptr_t)(fd + 1)) != 1) {
    close(fd);
    return um__fail(error, -ENOMEM, "no memory for the key log %s", file);
  }
  if (old) close((int)(intptr_t)old - 1);
  SSL_CTX_set_keylog_callback(ctx, um__keylog_line);
  return 1;
}
