/* The oldest way: a thread a connection, blocking SSL_read() and SSL_write(). The kernel's
 * scheduler is its event loop. */
#define _GNU_SOURCE
#include "server.h"

#include <errno.h>
#include <openssl/err.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#define STACK (128 << 10)

static SSL_CTX *context;

static bool write_pieces(SSL *ssl, const char *data, size_t length, size_t piece) {
  for (int written; length; data += written, length -= (size_t)written) {
    written = SSL_write(ssl, data, (int)(length < piece ? length : piece));
    if (written <= 0) return false;
  }
  return true;
}

static bool answer(SSL *ssl, request_state *state, const char *data, size_t length) {
  if (setup.echo) return write_pieces(ssl, data, length, length);
  for (unsigned owed = server_requests(state, data, length); owed; owed--)
    if (!write_pieces(ssl, setup.response, setup.response_length, setup.piece)) return false;
  return true;
}

static void *serve(void *argument) {
  char input[SSL3_RT_MAX_PLAIN_LENGTH];
  request_state state = { 0, 0 };
  int fd = (int)(intptr_t)argument, length;
  SSL *ssl = SSL_new(context);
  if (ssl && SSL_set_fd(ssl, fd) && SSL_accept(ssl) > 0) {
    while ((length = SSL_read(ssl, input, sizeof input)) > 0)
      if (!answer(ssl, &state, input, (size_t)length)) break;
    if (SSL_get_shutdown(ssl) & SSL_RECEIVED_SHUTDOWN) SSL_shutdown(ssl);
  }
  ERR_clear_error();
  SSL_free(ssl);
  close(fd);
  return NULL;
}

static void make_context(void) {
  context = server_context();
  /* Blocking: whole writes, and SSL_read() goes on after records without data. */
  SSL_CTX_clear_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE);
  SSL_CTX_set_mode(context, SSL_MODE_AUTO_RETRY | SSL_MODE_NO_AUTO_CHAIN |
                            SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_read_ahead(context, 1);
  SSL_CTX_set_num_tickets(context, 1);
}

int main(int argc, char **argv) {
  pthread_attr_t attributes;
  pthread_t thread;
  server_start(argc, argv, "Blocking OpenSSL, one thread a connection.", true, NULL);
  make_context();
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, STACK);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  int listener = server_listen(true);
  server_announce(listener);
  while (!server_stopped) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0 && errno != EINTR && errno != ECONNABORTED) fail("accept: %s", strerror(errno));
    if (fd >= 0 && pthread_create(&thread, &attributes, serve, (void *)(intptr_t)fd)) close(fd);
  }
  _exit(0); /* the threads hold what an orderly exit would free */
}
