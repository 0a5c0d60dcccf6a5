#include "memory_peer.h"

#include "harness.h"

#include <bio_uring/tls.h>
#include <openssl/err.h>

static SSL_CTX *contexts[2][2][2]; /* server, TLS 1.3, ours */

static const char *file(const char *name) {
  static char path[512];
  const char *folder = getenv("UM_TEST_CERTS");
  snprintf(path, sizeof path, "%s/%s", folder ? folder : "build/certs", name);
  return path;
}

static SSL_CTX *make(bool server, int version, bool ours) {
  SSL_CTX *ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
  CHECK(ctx != NULL);
  if (ours) CHECK_EQ(um_tls_ctx_defaults(ctx), 0);
  if (server) {
    CHECK_EQ(SSL_CTX_use_certificate_chain_file(ctx, file("server.pem")), 1);
    CHECK_EQ(SSL_CTX_use_PrivateKey_file(ctx, file("server.key"), SSL_FILETYPE_PEM), 1);
  } else {
    CHECK_EQ(SSL_CTX_load_verify_file(ctx, file("ca.pem")), 1);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
  }
  SSL_CTX_set_min_proto_version(ctx, version);
  SSL_CTX_set_max_proto_version(ctx, version);
  return ctx;
}

SSL_CTX *memory_peer_ctx(bool server, int version, bool ours) {
  SSL_CTX **slot = &contexts[server][version == TLS1_3_VERSION][ours];
  if (!*slot) *slot = make(server, version, ours);
  return *slot;
}

void memory_peer_ctx_free(void) {
  SSL_CTX **all = &contexts[0][0][0];
  for (int i = 0; i < 8; i++) SSL_CTX_free(all[i]);
}

static uint8_t byte_at(uint64_t offset) { return (uint8_t)((offset * 0x9E3779B97F4A7C15u) >> 56); }

void peer_pattern(void *bytes, size_t length, uint64_t offset) {
  for (size_t i = 0; i < length; i++) ((uint8_t *)bytes)[i] = byte_at(offset + i);
}

bool is_peer_pattern(const void *bytes, size_t length, uint64_t offset) {
  for (size_t i = 0; i < length; i++)
    if (((const uint8_t *)bytes)[i] != byte_at(offset + i)) return false;
  return true;
}

static unsigned roll(memory_peer *p, unsigned sides) {
  p->dice = p->dice * 6364136223846793005u + 1442695040888963407u;
  return (unsigned)(p->dice >> 33) % sides;
}

void memory_peer_init(memory_peer *p, bool server, int version, size_t to_send, enum peer_end end,
                      uint64_t dice) {
  *p = (memory_peer){.server = server, .version = version, .to_send = to_send, .end = end,
                     .dice = dice};
  p->ssl = SSL_new(memory_peer_ctx(server, version, false));
  p->in = BIO_new(BIO_s_mem());
  p->out = BIO_new(BIO_s_mem());
  CHECK(p->ssl && p->in && p->out);
  BIO_set_mem_eof_return(p->in, -1);
  SSL_set_bio(p->ssl, p->in, p->out);
  if (server) SSL_set_accept_state(p->ssl);
  else SSL_set_connect_state(p->ssl);
  p->cut_after = roll(p, 2) ? roll(p, 4000) : roll(p, (unsigned)to_send + 8000);
}

/* Whether the call only wants more bytes of ours. */
static bool wants(memory_peer *p, int result) {
  int error = SSL_get_error(p->ssl, result);
  if (error == SSL_ERROR_ZERO_RETURN) p->saw_end = true;
  else if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) p->failed = true;
  ERR_clear_error();
  return !p->saw_end && !p->failed;
}

static void receive(memory_peer *p) {
  char bytes[4096];
  size_t n;
  int result;
  while (!p->saw_end && !p->failed) {
    if ((result = SSL_read_ex(p->ssl, bytes, sizeof bytes, &n)) != 1) break;
    CHECK(is_peer_pattern(bytes, n, p->received));
    p->received += n;
  }
  if (!p->saw_end && !p->failed) wants(p, result);
}

static void send_some(memory_peer *p) {
  char bytes[8192];
  size_t n;
  while (p->sent < p->to_send && !p->failed) {
    size_t length = 1 + roll(p, sizeof bytes);
    if (length > p->to_send - p->sent) length = p->to_send - p->sent;
    peer_pattern(bytes, length, p->sent);
    if (p->version == TLS1_3_VERSION && roll(p, 20) == 0) SSL_key_update(p->ssl, roll(p, 2));
    int result = SSL_write_ex(p->ssl, bytes, length, &n);
    if (result != 1 && !wants(p, result)) return;
    if (result == 1) p->sent += n;
  }
}

static void say_goodbye(memory_peer *p) {
  bool time = p->end == PEER_CLOSES ? p->sent == p->to_send : p->saw_end;
  if (!time || p->said_end || p->failed || p->end > PEER_FOLLOWS) return;
  SSL_shutdown(p->ssl);
  ERR_clear_error();
  p->said_end = true;
}

/* What it wrote goes out, cut where it is to be cut. */
static void feed(memory_peer *p, script *s, int fd) {
  char bytes[16384];
  int n;
  while (!p->ended && (n = BIO_read(p->out, bytes, sizeof bytes)) > 0) {
    size_t length = (size_t)n;
    bool cut = p->end > PEER_FOLLOWS && p->fed + length > p->cut_after;
    if (cut) length = p->cut_after > p->fed ? p->cut_after - p->fed : 0;
    script_feed(s, fd, bytes, length);
    p->fed += length;
    if (!cut) continue;
    script_end(s, fd, p->end == PEER_RESETS ? -ECONNRESET : 0);
    p->ended = true;
  }
}

/* No more will come from it: after its close_notify, when its TLS failed, or when the bytes
 * it was to cut were fewer. */
static void stop(memory_peer *p, script *s, int fd) {
  bool cuts = p->end > PEER_FOLLOWS && p->shaken && p->sent == p->to_send;
  if (p->ended || !(p->said_end || p->failed || p->saw_end || cuts)) return;
  script_end(s, fd, p->end == PEER_RESETS ? -ECONNRESET : 0);
  p->ended = true;
}

void memory_peer_turn(memory_peer *p, script *s, int fd) {
  size_t length;
  const char *sent = script_sent(s, fd, &length);
  if (length > p->taken) CHECK_EQ(BIO_write(p->in, sent + p->taken, (int)(length - p->taken)),
                                  (int)(length - p->taken));
  p->taken = length;
  if (!p->shaken && !p->failed) {
    int result = SSL_do_handshake(p->ssl);
    p->shaken = result == 1;
    if (result != 1) wants(p, result);
  }
  if (p->shaken && !p->failed) {
    receive(p);
    send_some(p);
    say_goodbye(p);
    receive(p);
  }
  feed(p, s, fd);
  stop(p, s, fd);
}

void memory_peer_free(memory_peer *p) { SSL_free(p->ssl); }
