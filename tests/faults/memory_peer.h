/* A TLS peer in memory, behind the scripted kernel: plain OpenSSL over memory BIOs. It checks
 * what it receives and sends a pattern of its own, all in the callback of our sends. */
#ifndef MEMORY_PEER_H
#define MEMORY_PEER_H

#include "backend_scripted.h"

#include <openssl/ssl.h>

enum peer_end {
  PEER_CLOSES,    /* close_notify and FIN, after its bytes */
  PEER_FOLLOWS,   /* the same, but only after our close_notify */
  PEER_TRUNCATES, /* FIN without close_notify, at some point */
  PEER_RESETS,    /* ECONNRESET, at some point */
  PEER_ENDS
};

typedef struct memory_peer {
  SSL *ssl;
  BIO *in, *out;
  bool server, shaken, ended, failed;
  int version;
  enum peer_end end;
  size_t to_send, sent, received, taken, fed, cut_after;
  bool saw_end, said_end; /* close_notify */
  uint64_t dice;
} memory_peer;

void memory_peer_init(memory_peer *p, bool server, int version, size_t to_send, enum peer_end end,
                      uint64_t dice);
/* Takes what was sent on fd since last time, does what it can, feeds what it has to say. */
void memory_peer_turn(memory_peer *p, script *s, int fd);
void memory_peer_free(memory_peer *p);

/* Contexts that fit each other: ours have the library's defaults. Made once. */
SSL_CTX *memory_peer_ctx(bool server, int version, bool ours);
void memory_peer_ctx_free(void);

void peer_pattern(void *bytes, size_t length, uint64_t offset);
bool is_peer_pattern(const void *bytes, size_t length, uint64_t offset);

#endif
