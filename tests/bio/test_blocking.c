/* Outside fibers the BIO is a plain blocking socket BIO. */
#include "support.h"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>

SUITE(blocking);

static SSL *client_on(SSL_CTX *ctx, BIO *bio) {
  SSL *ssl = SSL_new(ctx);
  CHECK(ssl && bio);
  SSL_set_bio(ssl, bio, bio);
  SSL_set_connect_state(ssl);
  return ssl;
}

static void echo(int version, bool nonblocking) {
  SSL_CTX *ctx = plain_client_ctx(version), *theirs = plain_server_ctx("server", version);
  int fds[2];
  peer p;
  static char out[200000], in[200000];
  size_t n;
  tcp_pair(fds);
  if (nonblocking) fcntl(fds[0], F_SETFL, O_NONBLOCK);
  peer_start(&p, fds[1], theirs, true, peer_echo, NULL);
  SSL *ssl = client_on(ctx, BIO_new_uring(fds[0], BIO_CLOSE));
  CHECK_EQ(SSL_connect(ssl), 1);
  CHECK_EQ(SSL_get_fd(ssl), fds[0]);
  for (size_t at = 0; at < sizeof out; at += 20000) {
    pattern(out + at, 20000, at);
    CHECK_EQ(SSL_write(ssl, out + at, 20000), 20000);
    for (size_t have = 0; have < 20000; have += n)
      CHECK_EQ(SSL_read_ex(ssl, in + at + have, 20000 - have, &n), 1);
  }
  CHECK(is_pattern(in, sizeof in, 0));
  CHECK_EQ(SSL_shutdown(ssl), 0);
  CHECK_EQ(SSL_shutdown(ssl), 1);
  SSL_free(ssl);
  CHECK_EQ(fcntl(fds[0], F_GETFD), -1);
  peer_join(&p);
  SSL_CTX_free(ctx);
  SSL_CTX_free(theirs);
}

Test(blocking, echo) {
  echo(TLS1_2_VERSION, false);
  echo(TLS1_3_VERSION, false);
  echo(TLS1_3_VERSION, true);
}

Test(blocking, ends_and_errors) {
  int fds[2];
  char bytes[10];
  tcp_pair(fds);
  BIO *bio = BIO_new_uring(fds[0], BIO_CLOSE);
  CHECK_EQ(BIO_puts(bio, "hello"), 5);
  CHECK_EQ(recv(fds[1], bytes, 10, 0), 5);
  CHECK_EQ(BIO_set_uring_deadline(bio, um_after(10)), 1);
  CHECK_EQ(BIO_read(bio, bytes, 10), -1);
  CHECK(BIO_should_retry(bio) && BIO_should_read(bio));
  CHECK_EQ(BIO_get_uring_error(bio), -ETIMEDOUT);
  BIO_set_uring_deadline(bio, 0); /* passed: tries */
  CHECK_EQ(send(fds[1], "abc", 3, 0), 3);
  usleep(1000);
  CHECK_EQ(BIO_read(bio, bytes, 10), 3);
  BIO_set_uring_deadline(bio, UM_FOREVER);
  shutdown(fds[1], SHUT_WR);
  CHECK_EQ(BIO_read(bio, bytes, 10), 0);
  CHECK(BIO_eof(bio) && !BIO_should_retry(bio));
  CHECK_EQ(BIO_get_uring_error(bio), 0);
  struct linger hard = {1, 0};
  setsockopt(fds[1], SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  close(fds[1]);
  CHECK_EQ(BIO_write(bio, "x", 1), -1);
  CHECK(!BIO_should_retry(bio));
  CHECK(BIO_get_uring_error(bio) == -ECONNRESET || BIO_get_uring_error(bio) == -EPIPE);
  BIO_free(bio);

  tcp_pair(fds);
  bio = BIO_new_uring(fds[0], BIO_NOCLOSE);
  setsockopt(fds[1], SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  close(fds[1]);
  CHECK_EQ(BIO_read(bio, bytes, 10), -1);
  CHECK_EQ(BIO_get_uring_error(bio), -ECONNRESET);
  CHECK(!BIO_eof(bio) && !BIO_should_retry(bio));
  BIO_free(bio);
  CHECK_EQ(close(fds[0]), 0); /* ours */
}

/* A write that ran out of time goes on with the next call, whichever that is. */
static void *reads_everything(void *argument) {
  size_t *total = argument;
  int fd = (int)*total;
  static char bytes[100000];
  *total = 0;
  usleep(30000);
  for (ssize_t n; (n = recv(fd, bytes, sizeof bytes, 0)) > 0; *total += (size_t)n)
    CHECK(is_pattern(bytes, (size_t)n, *total));
  return NULL;
}

static void late_write(int how) {
  int fds[2];
  static char bytes[8 << 20];
  char byte;
  size_t total, at = 0;
  pthread_t thread;
  tcp_pair(fds);
  set_buffers(fds[0], 20000);
  BIO *bio = BIO_new_uring(fds[0], BIO_CLOSE);
  pattern(bytes, sizeof bytes, 0);
  BIO_set_uring_deadline(bio, um_after(5));
  for (int n; at < sizeof bytes; at += (size_t)n)
    if ((n = BIO_write(bio, bytes + at, 500000 < sizeof bytes - at ? 500000 : (int)(sizeof bytes - at))) < 0) break;
  CHECK(at > 0 && at < sizeof bytes);
  CHECK_EQ(BIO_get_uring_error(bio), -ETIMEDOUT);
  CHECK(BIO_should_retry(bio) && BIO_should_write(bio));
  CHECK(BIO_wpending(bio) > 0);
  total = (size_t)fds[1];
  CHECK_EQ(pthread_create(&thread, NULL, reads_everything, &total), 0);
  BIO_set_uring_deadline(bio, UM_FOREVER);
  if (how == 0) {
    CHECK_EQ(BIO_write(bio, bytes + at, 1), 1);
    at++;
  }
  if (how == 1) CHECK_EQ(BIO_flush(bio), 1);
  if (how == 2) {
    BIO_set_uring_deadline(bio, um_after(2000)); /* a read waits for an answer to all of it */
    CHECK_EQ(BIO_read(bio, &byte, 1), -1);
  }
  if (how < 3) CHECK_EQ(BIO_wpending(bio), 0);
  BIO_free(bio);
  pthread_join(thread, NULL);
  CHECK_EQ(total, at);
  close(fds[1]);
}
Test(blocking, a_late_write_goes_on_in_a_write) { late_write(0); }
Test(blocking, a_late_write_goes_on_in_a_flush) { late_write(1); }
Test(blocking, a_late_write_goes_on_in_a_read) { late_write(2); }
Test(blocking, a_late_write_goes_on_in_free) { late_write(3); }

/* ---- chains ---- */

Test(blocking, chains) {
  SSL_CTX *ctx = plain_client_ctx(0), *theirs = plain_server_ctx("server", 0);
  int fds[2];
  peer p;
  char bytes[100];
  tcp_pair(fds);
  peer_start(&p, fds[1], theirs, true, peer_echo, NULL);
  BIO *ssl = BIO_new_ssl(ctx, 1), *buffer = BIO_new(BIO_f_buffer());
  BIO *chain = BIO_push(buffer, BIO_push(ssl, BIO_new_uring(fds[0], BIO_CLOSE)));
  CHECK_EQ(BIO_do_handshake(chain), 1);
  CHECK_EQ(BIO_puts(chain, "one\n"), 4);
  CHECK_EQ(BIO_puts(chain, "two\n"), 4);
  CHECK_EQ(BIO_flush(chain), 1);
  CHECK_EQ(BIO_gets(chain, bytes, sizeof bytes), 4);
  CHECK(!memcmp(bytes, "one\n", 4));
  CHECK_EQ(BIO_gets(chain, bytes, sizeof bytes), 4);
  BIO_ssl_shutdown(chain);
  BIO_free_all(chain);
  peer_join(&p);
  SSL_CTX_free(ctx);
  SSL_CTX_free(theirs);
}

/* ---- ctrls ---- */

Test(blocking, ctrls) {
  int fds[2], fd = -1;
  char byte;
  local_pair(fds);
  BIO *bio = BIO_new_uring(fds[0], BIO_NOCLOSE);
  CHECK_EQ(BIO_get_fd(bio, &fd), fds[0]);
  CHECK_EQ(fd, fds[0]);
  CHECK_EQ(BIO_get_close(bio), BIO_NOCLOSE);
  CHECK_EQ(BIO_set_close(bio, BIO_CLOSE), 1);
  CHECK_EQ(BIO_get_close(bio), BIO_CLOSE);
  CHECK_EQ(BIO_pending(bio), 0);
  CHECK_EQ(BIO_wpending(bio), 0);
  CHECK_EQ(BIO_eof(bio), 0);
  CHECK_EQ(BIO_flush(bio), 1);
  CHECK_EQ(BIO_ctrl(bio, 12345, 0, NULL), 0);
  CHECK(BIO_method_type(bio) & BIO_TYPE_SOURCE_SINK);
  CHECK(BIO_find_type(bio, BIO_TYPE_DESCRIPTOR) == bio);
  CHECK_EQ(BIO_read(bio, &byte, 0), 0);
  CHECK(BIO_s_uring() == BIO_s_uring());
  BIO_free(bio);
  CHECK_EQ(fcntl(fds[0], F_GETFD), -1);

  CHECK(bio = BIO_new(BIO_s_uring())); /* OpenSSL's own way */
  CHECK(BIO_read(bio, &byte, 1) < 0);
  ERR_clear_error();
  CHECK_EQ(BIO_set_fd(bio, fds[1], BIO_CLOSE), 1);
  CHECK_EQ(BIO_get_fd(bio, NULL), fds[1]);
  BIO_free(bio);
  CHECK_EQ(fcntl(fds[1], F_GETFD), -1);

  CHECK(bio = BIO_new(BIO_s_uring()));
  BIO_free(bio); /* never had one */
}

/* OpenSSL gives us no way to tell the copy its descriptor; it is harmless. */
Test(blocking, a_duplicate_has_no_descriptor) {
  int fds[2];
  char byte;
  local_pair(fds);
  BIO *bio = BIO_new_uring(fds[0], BIO_NOCLOSE), *copy = BIO_dup_chain(bio);
  CHECK(copy);
  CHECK_EQ(BIO_get_fd(copy, NULL), -1);
  CHECK_EQ(BIO_read(copy, &byte, 1), -1);
  CHECK_EQ(BIO_get_uring_error(copy), -EBADF);
  BIO_free(copy);
  BIO_free(bio);
  close(fds[0]), close(fds[1]);
}

Test(blocking, ssl_set_uring_fd) {
  SSL_CTX *ctx = plain_client_ctx(0);
  int fds[2];
  local_pair(fds);
  SSL *ssl = SSL_new(ctx);
  CHECK_EQ(SSL_set_uring_fd(ssl, fds[0]), 1);
  CHECK_EQ(SSL_get_fd(ssl), fds[0]);
  SSL_free(ssl);
  CHECK_EQ(close(fds[0]), 0);
  close(fds[1]);
  SSL_CTX_free(ctx);
}
