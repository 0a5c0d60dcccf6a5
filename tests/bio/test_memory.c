/* Memory mode: two SSLs that meet in memory, in any chunks, without a reactor. */
#include "support.h"

SUITE(memory);

typedef struct side {
  SSL *ssl;
  BIO *bio;
} side;

static side make(SSL_CTX *ctx, bool server) {
  side s = {SSL_new(ctx), BIO_new_uring_memory(-1)};
  CHECK(s.ssl && s.bio);
  SSL_set_bio(s.ssl, s.bio, s.bio);
  if (server) SSL_set_accept_state(s.ssl);
  else SSL_set_connect_state(s.ssl);
  return s;
}

/* Carries at most `chunk` bytes at a time; whether any were there. */
static bool carry(side *from, side *to, size_t chunk) {
  const void *data;
  size_t length = BIO_uring_output(from->bio, &data);
  if (length > chunk) length = chunk;
  if (length) CHECK_EQ(BIO_uring_feed(to->bio, data, length), 0);
  BIO_uring_sent(from->bio, length);
  return length;
}

static void wants_more(SSL *ssl, int result) {
  CHECK_EQ(SSL_get_error(ssl, result), SSL_ERROR_WANT_READ);
  CHECK_EQ(BIO_get_uring_error(SSL_get_rbio(ssl)), 0);
}

static void shake(side *a, side *b, size_t chunk) {
  int done = 0;
  while (done != 3) {
    int result = SSL_do_handshake(a->ssl);
    if (result == 1) done |= 1;
    else wants_more(a->ssl, result);
    result = SSL_do_handshake(b->ssl);
    if (result == 1) done |= 2;
    else wants_more(b->ssl, result);
    carry(a, b, chunk);
    carry(b, a, chunk);
  }
}

#define TOTAL 100000u

/* One way, with as many bytes in flight as the writer likes. */
static void transfer(side *a, side *b, size_t chunk) {
  static char out[TOTAL], in[TOTAL];
  size_t written = 0, have = 0, n;
  pattern(out, TOTAL, 3);
  memset(in, 0, TOTAL);
  while (have < TOTAL) {
    if (written < TOTAL) {
      CHECK_EQ(SSL_write_ex(a->ssl, out + written, TOTAL - written < 7000 ? TOTAL - written : 7000, &n), 1);
      written += n;
    }
    for (int i = 0; i < 2000 && carry(a, b, chunk); i++) {
      int result = SSL_read_ex(b->ssl, in + have, TOTAL - have, &n);
      if (result == 1) have += n;
      else wants_more(b->ssl, result);
      if (have == TOTAL) break;
    }
    carry(b, a, chunk);
  }
  CHECK(is_pattern(in, TOTAL, 3));
}

static void talk(int version, size_t chunk) {
  SSL_CTX *server = plain_server_ctx("server", version), *client = plain_client_ctx(version);
  side a = make(client, false), b = make(server, true);
  char byte;
  shake(&a, &b, chunk);
  transfer(&a, &b, chunk);
  transfer(&b, &a, chunk);
  while (carry(&a, &b, chunk) | carry(&b, &a, chunk)) continue;
  CHECK_EQ(SSL_shutdown(a.ssl), 0);
  while (carry(&a, &b, chunk)) continue;
  int result = SSL_read(b.ssl, &byte, 1);
  CHECK_EQ(SSL_get_error(b.ssl, result), SSL_ERROR_ZERO_RETURN);
  CHECK_EQ(SSL_shutdown(b.ssl), 1);
  while (carry(&b, &a, chunk)) continue;
  CHECK_EQ(SSL_shutdown(a.ssl), 1);
  SSL_free(a.ssl);
  SSL_free(b.ssl);
  SSL_CTX_free(server);
  SSL_CTX_free(client);
}

Test(memory, any_chunks) {
  size_t chunks[] = {1, 2, 5, 17, 1000, 16384, 1000000};
  for (unsigned i = 0; i < sizeof chunks / sizeof *chunks; i++) {
    talk(TLS1_2_VERSION, chunks[i]);
    talk(TLS1_3_VERSION, chunks[i]);
  }
}

/* ---- the BIO itself ---- */

Test(memory, copies_in_order) {
  BIO *bio = BIO_new_uring_memory(-1);
  static char out[700000], in[700000];
  const void *data;
  size_t have = 0, length;
  pattern(out, sizeof out, 0);
  for (size_t at = 0, i = 1; at < sizeof out; i = i * 3 % 70001) {
    size_t part = i < sizeof out - at ? i : sizeof out - at;
    CHECK_EQ(BIO_write(bio, out + at, (int)part), part);
    at += part;
  }
  CHECK_EQ(BIO_wpending(bio), sizeof out);
  while ((length = BIO_uring_output(bio, &data))) {
    if (length > 1000) length = length / 2 + 1;
    memcpy(in + have, data, length);
    have += length;
    BIO_uring_sent(bio, length);
  }
  CHECK_EQ(have, sizeof out);
  CHECK(is_pattern(in, have, 0));
  CHECK_EQ(BIO_wpending(bio), 0);
  BIO_uring_sent(bio, 0); /* nothing of nothing */
  CHECK_EQ(BIO_uring_output(bio, &data), 0);
  BIO_free(bio);
}

Test(memory, the_end) {
  BIO *bio = BIO_new_uring_memory(7);
  char bytes[10];
  CHECK_EQ(BIO_read(bio, bytes, 10), -1);
  CHECK(BIO_should_retry(bio) && BIO_should_read(bio));
  CHECK(!BIO_eof(bio));
  CHECK_EQ(BIO_get_fd(bio, NULL), 7);
  CHECK_EQ(BIO_uring_feed(bio, "abc", 3), 0);
  CHECK_EQ(BIO_uring_feed(bio, "", 0), 0);
  BIO_uring_feed_end(bio, 0);
  CHECK(!BIO_eof(bio)); /* not while bytes are there */
  CHECK_EQ(BIO_pending(bio), 3);
  CHECK_EQ(BIO_read(bio, bytes, 2), 2);
  CHECK_EQ(BIO_read(bio, bytes, 2), 1);
  CHECK_EQ(BIO_read(bio, bytes, 2), 0);
  CHECK(BIO_eof(bio) && !BIO_should_retry(bio));
  CHECK_EQ(BIO_get_uring_error(bio), 0);
  BIO_free(bio);
}

Test(memory, the_end_with_an_error) {
  BIO *bio = BIO_new_uring_memory(-1);
  char byte;
  CHECK_EQ(BIO_uring_feed(bio, "x", 1), 0);
  BIO_uring_feed_end(bio, -ECONNRESET);
  CHECK_EQ(BIO_read(bio, &byte, 1), 1);
  CHECK_EQ(BIO_read(bio, &byte, 1), -1);
  CHECK(!BIO_should_retry(bio) && !BIO_eof(bio));
  CHECK_EQ(BIO_get_uring_error(bio), -ECONNRESET);
  CHECK_EQ(BIO_get_fd(bio, NULL), -1);
  BIO_free(bio);
}

/* EOF without close_notify is OpenSSL's unexpected EOF. */
Test(memory, truncation) {
  SSL_CTX *server = plain_server_ctx("server", 0), *client = plain_client_ctx(0);
  side a = make(client, false), b = make(server, true);
  char byte;
  shake(&a, &b, 100);
  BIO_uring_feed_end(b.bio, 0);
  while (carry(&a, &b, 100)) continue;
  int result = SSL_read(b.ssl, &byte, 1);
  CHECK_EQ(SSL_get_error(b.ssl, result), SSL_ERROR_SSL);
  CHECK_EQ(ERR_GET_REASON(ERR_peek_error()), SSL_R_UNEXPECTED_EOF_WHILE_READING);
  ERR_clear_error();
  SSL_free(a.ssl);
  SSL_free(b.ssl);
  SSL_CTX_free(server);
  SSL_CTX_free(client);
}
