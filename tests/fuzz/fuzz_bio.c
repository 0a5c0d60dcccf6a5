/* libFuzzer target: the memory BIO under an SSL, fed and drained in any order. The first
 * byte is who we are and the TLS version; then come steps, a byte each with its argument. */
#include "harness.h"
#include "memory_peer.h"
#include "stream_run.h"

#include <bio_uring/bio.h>
#include <openssl/err.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc, (void)argv;
  stream_init();
  return 0;
}

/* All of the output, or a part, as a kernel would take it. */
static void drain(BIO *bio, size_t most) {
  const void *bytes;
  size_t length = BIO_uring_output(bio, &bytes);
  if (length > most) length = most;
  unsigned sum = 0;
  /* All of it can be read. */
  for (size_t i = 0; i < length; i++) sum += ((const uint8_t *)bytes)[i];
  if (length && sum != UINT32_MAX) BIO_uring_sent(bio, length);
}

static void ask(BIO *bio, uint8_t what) {
  static const int questions[] = {
    BIO_CTRL_PENDING, BIO_CTRL_WPENDING, BIO_CTRL_EOF, BIO_CTRL_FLUSH, BIO_CTRL_GET_CLOSE,
    BIO_CTRL_DUP, BIO_CTRL_PUSH, BIO_CTRL_POP, 73, 76, BIO_C_GET_FD, 9999};
  BIO_ctrl(bio, questions[what % (sizeof questions / sizeof *questions)], 0, NULL);
}

static void update_keys(SSL *ssl, bool both) {
  SSL_key_update(ssl, both ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED);
}

static const uint8_t *step(SSL *ssl, BIO *bio, const uint8_t *at, const uint8_t *end) {
  uint8_t what = *at++, amount = at < end ? *at++ : 1;
  char bytes[4096];
  size_t length = (size_t)amount * 16 + 1;
  ERR_clear_error();
  switch (what % 8) {
    case 0: case 1:
      if (length > (size_t)(end - at)) length = (size_t)(end - at);
      CHECK_EQ(BIO_uring_feed(bio, at, length), 0);
      return at + length;
    case 2: case 3: {
      int n = SSL_read(ssl, bytes, amount + 1);
      CHECK(n <= amount + 1);
      break;
    }
    case 4: memset(bytes, 'w', length < sizeof bytes ? length : sizeof bytes);
      SSL_write(ssl, bytes, (int)(length < sizeof bytes ? length : sizeof bytes));
      break;
    case 5: drain(bio, length); break;
    case 6: ask(bio, amount); break;
    default:
      if (amount == 255) BIO_uring_feed_end(bio, 0);
      else if (amount & 1) SSL_shutdown(ssl);
      else update_keys(ssl, amount & 2);
  }
  return at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 1) return -1;
  static bool ready;
  if (!ready) stream_peers_turn(false), ready = true;
  bool server = data[0] & 1;
  SSL *ssl = SSL_new(memory_peer_ctx(server, data[0] & 2 ? TLS1_3_VERSION : TLS1_2_VERSION, true));
  BIO *bio = BIO_new_uring_memory(-1);
  CHECK(ssl && bio);
  SSL_set_bio(ssl, bio, bio);
  if (server) SSL_set_accept_state(ssl);
  else SSL_set_connect_state(ssl);
  for (const uint8_t *at = data + 1; at < data + size;) at = step(ssl, bio, at, data + size);
  SSL_free(ssl);
  ERR_clear_error();
  return 0;
}
