/* Reading: waits for ciphertext first, so that an idle connection holds no buffer
 * of OpenSSL's, then decrypts. */
#include "tls_internal.h"

#include "reactor/alloc.h"

#include <openssl/crypto.h>
#include <string.h>

static int ssl_read(SSL *ssl, void *buffer, size_t length, size_t *done) {
  return SSL_read_ex(ssl, buffer, length, done);
}

/* Ciphertext may be in OpenSSL already (a record read and not processed), and after
 * close_notify no more will come. */
static bool worth_trying(const um_tls *tls) {
  return tls->conn.received || tls->conn.received_end || SSL_has_pending(tls->ssl) ||
         SSL_get_shutdown(tls->ssl) & SSL_RECEIVED_SHUTDOWN;
}

/* A fiber that has had its share of the turn lets others go first. */
static int take_turn(um_tls *tls) {
  bool used_up = um__task()->turn_used >= tls->reactor->config.turn_bytes;
  return used_up ? um__tls_give_way(tls) : 0;
}

static ssize_t read_ssl(um_tls *tls, void *buffer, size_t length, um_time deadline) {
  size_t count;
  int result = tls->failed ? tls->failed : take_turn(tls);
  if (result == 0 && !worth_trying(tls)) result = um__tls_wait_readable(tls, deadline);
  while (result == 0) {
    result = um__ssl_call(tls, ssl_read, buffer, length, &count);
    if (result > 0) {
      tls->floods = 0;
      um__task()->turn_used += (unsigned)count;
      return (ssize_t)count;
    }
    if (result == 0) return 0;
    if (result == UM_WANT_INPUT) result = um__tls_wait_input(tls, deadline);
  }
  return result;
}

static size_t unread(const um_tls *tls) { return tls->unread_end - tls->unread_start; }

void um__tls_drop_unread(um_tls *tls) {
  if (tls->unread) OPENSSL_cleanse(tls->unread, tls->unread_end);
  if (!tls->unread_lent) um__free(tls->unread);
  tls->unread = NULL;
  tls->unread_start = tls->unread_end = 0;
  tls->unread_lent = false;
}

static size_t take_unread(um_tls *tls, void *buffer, size_t length) {
  size_t count = unread(tls) < length ? unread(tls) : length;
  memcpy(buffer, tls->unread + tls->unread_start, count);
  tls->unread_start += count;
  if (!unread(tls)) um__tls_drop_unread(tls);
  return count;
}

/* Puts plaintext back in front of what is to be read. Without memory it is lost, so the
 * stream ends there: what came after it is no use. */
static int give_back(um_tls *tls, const char *bytes, size_t length) {
  size_t total = length + unread(tls);
  if (!length) return 0;
  char *joined = um__alloc_raw(total);
  if (!joined) {
    um__tls_drop_unread(tls);
    return um__tls_fail(tls, -ENOMEM, "no memory for what was received: it is lost");
  }
  memcpy(joined, bytes, length);
  if (tls->unread) memcpy(joined + length, tls->unread + tls->unread_start, unread(tls));
  um__tls_drop_unread(tls);
  tls->unread = joined;
  tls->unread_end = total;
  return 0;
}

int um__tls_keep_unread(um_tls *tls) {
  if (!tls->unread_lent) return 0;
  char *lent = tls->unread;
  size_t start = tls->unread_start, end = tls->unread_end;
  tls->unread_end = tls->unread_start = 0;
  tls->unread = NULL;
  tls->unread_lent = false;
  int result = give_back(tls, lent + start, end - start);
  OPENSSL_cleanse(lent, end); /* also what was read: another connection's fiber gets the stack */
  return result;
}

/* What was read for a handler counts as read by it, with what OpenSSL has of the same record, so
 * that the record is read whole. */
static ssize_t read_lent(um_tls *tls, char *buffer, size_t length) {
  int result = take_turn(tls);
  if (result < 0) return result;
  size_t count = take_unread(tls, buffer, length), more = 0;
  if (count < length && SSL_pending(tls->ssl))
    um__ssl_call(tls, ssl_read, buffer + count, length - count, &more);
  um__task()->turn_used += (unsigned)(count + more);
  return (ssize_t)(count + more);
}

static ssize_t read_some(um_tls *tls, void *buffer, size_t length, um_time deadline) {
  if (!length) return 0;
  if (tls->unread_lent) return read_lent(tls, buffer, length);
  if (unread(tls)) return (ssize_t)take_unread(tls, buffer, length);
  int result = um__tls_handshake(tls, deadline);
  return result < 0 ? result : read_ssl(tls, buffer, length, deadline);
}

static int enter_read(um_tls *tls) {
  int result = um__tls_enter(tls);
  if (result < 0) return result;
  if (tls->reading) {
    um__tls_leave(tls);
    return UM_EREENTRANT;
  }
  tls->reading = true;
  return 0;
}

static void leave_read(um_tls *tls) {
  tls->reading = false;
  um__tls_leave(tls);
}

ssize_t um_tls_read(um_tls *tls, void *buffer, size_t length, um_time deadline) {
  ssize_t result = enter_read(tls);
  if (result < 0) return result;
  result = read_some(tls, buffer, length, deadline);
  leave_read(tls);
  return result;
}

ssize_t um_tls_read_exact(um_tls *tls, void *buffer, size_t length, um_time deadline) {
  ssize_t result = enter_read(tls);
  if (result < 0) return result;
  size_t have = 0;
  while (have < length) {
    result = read_some(tls, (char *)buffer + have, length - have, deadline);
    if (result <= 0) break;
    have += (size_t)result;
  }
  if (have < length) {
    if (result == 0 && have) result = UM_ETRUNCATED;
    int kept = give_back(tls, buffer, have);
    if (kept < 0) result = kept;
  }
  leave_read(tls);
  return have == length ? (ssize_t)length : result;
}

ssize_t um_tls_read_until(um_tls *tls, void *buffer, size_t length, const void *delimiter,
                          size_t delimiter_length, um_time deadline) {
  if (!delimiter_length) return -EINVAL;
  ssize_t result = enter_read(tls);
  if (result < 0) return result;
  size_t have = 0, line = 0;
  while (!line && have < length) {
    result = read_some(tls, (char *)buffer + have, length - have, deadline);
    if (result <= 0) break;
    size_t from = have < delimiter_length ? 0 : have - delimiter_length + 1;
    have += (size_t)result;
    char *found = memmem((char *)buffer + from, have - from, delimiter, delimiter_length);
    if (found) line = (size_t)(found - (char *)buffer) + delimiter_length;
  }
  if (!line && have == length) result = UM_ETOOLONG;
  else if (!line && result == 0 && have) result = UM_ETRUNCATED;
  int kept = give_back(tls, (char *)buffer + line, have - line);
  if (kept < 0 && !line) result = kept;
  leave_read(tls);
  return line ? (ssize_t)line : result;
}

size_t um_tls_pending(const um_tls *tls) {
  return unread(tls) + (tls->ssl ? (size_t)SSL_pending(tls->ssl) : 0);
}

int um__tls_fill_step(um_tls *tls, char *buffer, size_t length) {
  size_t count;
  if (unread(tls)) return 1;
  if (tls->failed) return tls->failed;
  if (!worth_trying(tls)) {
    um__bio_budget(tls->bio, 0); /* of an earlier call: was not used up by this one */
    return UM_WANT_INPUT;
  }
  int result = um__ssl_call(tls, ssl_read, buffer, length, &count);
  if (result <= 0) return result;
  tls->floods = 0;
  tls->unread = buffer;
  tls->unread_start = 0;
  tls->unread_end = count;
  tls->unread_lent = true;
  return result;
}
