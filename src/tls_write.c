/* Writing: encrypts into the connection's output and returns; the loop sends. */
#include "tls_internal.h"

#include <openssl/crypto.h>
#include <openssl/ssl.h>

/* Encrypted between two looks at the limit: four records, but never so much that our
 * reader takes it for answers that the peer does not take (um__tls_output_too_long()). */
#define PART 65536u

static size_t part_of(const um_tls *tls, size_t length) {
  size_t most = tls->reactor->config.send_limit / 2;
  if (most > PART) most = PART;
  return length < most ? length : most;
}

static int ssl_write(SSL *ssl, void *buffer, size_t length, size_t *done) {
  return SSL_write_ex(ssl, buffer, length, done);
}

/* Above the limit writers park until half of it has left. */
static int wait_for_room(um_tls *tls, um_time deadline) {
  size_t limit = um__conn_send_limit(&tls->conn);
  if (tls->conn.output_error) return tls->conn.output_error;
  if (tls->conn.output < limit) return 0;
  return um__conn_wait_output(&tls->conn, limit / 2, deadline);
}

static int write_part(um_tls *tls, const char *bytes, size_t length, um_time deadline,
                      size_t *count) {
  if (tls->failed) return tls->failed;
  if (tls->notified) return -EPIPE;
  int result = wait_for_room(tls, deadline);
  if (result < 0) return result;
  result = um__ssl_call(tls, ssl_write, (void *)(uintptr_t)bytes, part_of(tls, length), count);
  if (result == UM_WANT_INPUT) return um__tls_wait_input(tls, deadline); /* see um__tls_settle() */
  return result > 0 ? 0 : result == 0 ? -EPIPE : result;
}

static int write_all(um_tls *tls, const char *bytes, size_t length, um_time deadline, size_t *done) {
  int result = 0;
  for (size_t offset = 0, count; result == 0 && offset < length; offset += count) {
    count = 0;
    result = write_part(tls, bytes + offset, length - offset, deadline, &count);
    *done += count;
  }
  return result;
}

static int enter_write(um_tls *tls, um_time deadline) {
  int result = um__tls_enter(tls);
  if (result < 0) return result;
  result = um__tls_handshake(tls, deadline);
  if (result == 0) result = um__tls_lock_write(tls, deadline);
  if (result < 0) um__tls_leave(tls);
  return result;
}

static void leave_write(um_tls *tls) {
  um__tls_unlock_write(tls);
  um__tls_leave(tls);
}

/* Small pieces are joined so that they share records: each costs a header, a tag and
 * a pass through the cipher's set-up. */
#define JOIN 4096

static int write_vector(um_tls *tls, const struct iovec *iov, int count, um_time deadline,
                        size_t *done) {
  char joined[JOIN];
  size_t length = 0;
  int result = 0;
  for (int i = 0; i < count && result == 0; i++) {
    if (length && iov[i].iov_len > JOIN - length) {
      result = write_all(tls, joined, length, deadline, done);
      length = 0;
    }
    if (result == 0 && iov[i].iov_len > JOIN) {
      result = write_all(tls, iov[i].iov_base, iov[i].iov_len, deadline, done);
    } else if (result == 0 && iov[i].iov_len) {
      __builtin_memcpy(joined + length, iov[i].iov_base, iov[i].iov_len);
      length += iov[i].iov_len;
    }
  }
  if (result == 0 && length) result = write_all(tls, joined, length, deadline, done);
  OPENSSL_cleanse(joined, sizeof joined); /* another connection's fiber may get this stack */
  return result;
}

ssize_t um_tls_writev(um_tls *tls, const struct iovec *iov, int count, um_time deadline) {
  size_t done = 0;
  int result = enter_write(tls, deadline);
  if (result < 0) return result;
  result = count == 1 ? write_all(tls, iov->iov_base, iov->iov_len, deadline, &done)
                      : write_vector(tls, iov, count, deadline, &done);
  leave_write(tls);
  return um__outcome(done, result);
}

ssize_t um_tls_write(um_tls *tls, const void *buffer, size_t length, um_time deadline) {
  struct iovec iov = {.iov_base = (void *)(uintptr_t)buffer, .iov_len = length};
  return um_tls_writev(tls, &iov, 1, deadline);
}

int um_tls_flush(um_tls *tls, um_time deadline) {
  int result = um__tls_enter(tls);
  if (result < 0) return result;
  result = um__conn_wait_output(&tls->conn, 0, deadline);
  um__tls_leave(tls);
  return result;
}

static int ssl_key_update(SSL *ssl, void *buffer, size_t length, size_t *done) {
  (void)buffer, (void)done;
  int result = SSL_key_update(ssl, length ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED);
  return result == 1 ? SSL_do_handshake(ssl) : result; /* into the output, before anything else */
}

int um_tls_key_update(um_tls *tls, int request_peer, um_time deadline) {
  int result = enter_write(tls, deadline);
  if (result < 0) return result;
  bool possible = SSL_version(tls->ssl) >= TLS1_3_VERSION && !tls->notified;
  result = possible ? um__tls_settle(tls, deadline) : UM_ETLS;
  if (result == 0) result = um__ssl_call(tls, ssl_key_update, NULL, request_peer != 0, NULL);
  leave_write(tls);
  return result > 0 ? 0 : result;
}
