/* Keys of session tickets: one set for any number of contexts and threads, so that a session
 * is resumed by whichever reactor, context or (from a file) host it comes to. */
#include "error.h"
#include "reactor/alloc.h"

#include <bio_uring/tls.h>

#include <fcntl.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#define KEYS_MOST 8u
#define KEYS_ROTATING 3u /* one in use, and two that tickets of the last two periods need */
#define STANDARD_PERIOD 3600u

/* As it is in files. */
typedef struct ticket_key {
  unsigned char name[16], hmac[32], aes[32];
} ticket_key;

struct um_ticket_keys {
  atomic_uint references;
  pthread_mutex_t lock; /* for what follows: contexts are used by several threads */
  ticket_key keys[KEYS_MOST]; /* the first encrypts, all decrypt */
  unsigned count;
  um_time period, born; /* period 0: from a file, which says when to change */
};

static int slot = -1; /* of the context's data */

/* ---- the keys ---- */

/* With the lock held. */
static int rotate(um_ticket_keys *k) {
  ticket_key fresh;
  if (RAND_bytes((unsigned char *)&fresh, sizeof fresh) != 1) return UM_ETLS;
  memmove(&k->keys[1], &k->keys[0], (KEYS_ROTATING - 1) * sizeof *k->keys);
  k->keys[0] = fresh;
  if (k->count < KEYS_ROTATING) k->count++;
  k->born = um_now();
  OPENSSL_cleanse(&fresh, sizeof fresh);
  return 0;
}

/* The newest, changed when its time is over; or the one of that name. Its number, -1. */
static int copy_key(um_ticket_keys *k, const unsigned char *name, ticket_key *out) {
  int found = -1;
  pthread_mutex_lock(&k->lock);
  if (k->period && um_now() - k->born >= k->period) rotate(k);
  for (unsigned i = 0; i < k->count && found < 0; i++)
    if (!name || !CRYPTO_memcmp(k->keys[i].name, name, sizeof k->keys[i].name)) found = (int)i;
  if (found >= 0) *out = k->keys[found];
  pthread_mutex_unlock(&k->lock);
  return found;
}

static int prepare(const ticket_key *key, unsigned char *iv, EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac,
                   int encrypt) {
  OSSL_PARAM parameters[] = {
    OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_KEY, (void *)(uintptr_t)key->hmac, sizeof key->hmac),
    OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)(uintptr_t)"SHA256", 0),
    OSSL_PARAM_construct_end(),
  };
  return EVP_CipherInit_ex(cipher, EVP_aes_256_cbc(), NULL, key->aes, iv, encrypt) == 1 &&
         EVP_MAC_CTX_set_params(mac, parameters) == 1;
}

/* OpenSSL's question, on whatever thread shakes hands. 0: no such key, so a full handshake.
 * 2: resumed, and to be given a new ticket: tickets are good once in TLS 1.3 (RFC 8446
 * appendix C.4). */
static int answer(SSL *ssl, unsigned char *name, unsigned char *iv, EVP_CIPHER_CTX *cipher,
                  EVP_MAC_CTX *mac, int encrypt) {
  um_ticket_keys *k = SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), slot);
  ticket_key key;
  int number = k ? copy_key(k, encrypt ? NULL : name, &key) : -1;
  if (number < 0) return 0;
  bool good = true;
  if (encrypt) {
    memcpy(name, key.name, sizeof key.name);
    good = RAND_bytes(iv, EVP_CIPHER_get_iv_length(EVP_aes_256_cbc())) == 1;
  }
  good = good && prepare(&key, iv, cipher, mac, encrypt);
  OPENSSL_cleanse(&key, sizeof key);
  if (!good) return -1;
  return !encrypt && (number > 0 || SSL_version(ssl) >= TLS1_3_VERSION) ? 2 : 1;
}

/* ---- files ---- */

static int read_all(const char *file, unsigned char *buffer, size_t room, size_t *length) {
  int fd = open(file, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -errno;
  ssize_t n = 1;
  for (*length = 0; *length < room && n > 0; *length += n > 0 ? (size_t)n : 0)
    n = read(fd, buffer + *length, room - *length);
  int result = n < 0 ? -errno : 0;
  close(fd);
  return result;
}

int um_ticket_keys_load(um_ticket_keys *k, const char *file, um_error *error) {
  ticket_key keys[KEYS_MOST + 1]; /* one too many is noticed */
  size_t length = 0;
  if (error) *error = (um_error){0};
  int result = read_all(file, (unsigned char *)keys, sizeof keys, &length);
  if (result < 0) {
    um__fail(error, UM_ECERT, "ticket keys %s: %s", file, um_strerror(result));
    result = UM_ECERT;
  } else if (!length || length % sizeof *keys || length > KEYS_MOST * sizeof *keys) {
    result = um__fail(error, UM_ECERT, "ticket keys %s: wanted are 1 to %u keys of %zu random bytes; "
                      "'openssl rand %zu' makes one", file, KEYS_MOST, sizeof *keys, sizeof *keys);
  } else {
    pthread_mutex_lock(&k->lock);
    OPENSSL_cleanse(k->keys, sizeof k->keys);
    memcpy(k->keys, keys, length);
    k->count = (unsigned)(length / sizeof *keys);
    k->period = 0;
    pthread_mutex_unlock(&k->lock);
  }
  OPENSSL_cleanse(keys, sizeof keys);
  return result;
}

/* ---- life ---- */

int um_ticket_keys_rotate(um_ticket_keys *k) {
  pthread_mutex_lock(&k->lock);
  int result = rotate(k);
  pthread_mutex_unlock(&k->lock);
  return result;
}

int um_ticket_keys_create(um_ticket_keys **out, unsigned period_seconds) {
  *out = NULL;
  um_ticket_keys *k = um__alloc(sizeof *k);
  if (!k) return -ENOMEM;
  k->period = (period_seconds ? period_seconds : STANDARD_PERIOD) * UM_SECOND;
  atomic_init(&k->references, 1);
  pthread_mutex_init(&k->lock, NULL);
  int result = rotate(k);
  if (result < 0) um_ticket_keys_free(k);
  else *out = k;
  return result;
}

void um_ticket_keys_free(um_ticket_keys *k) {
  if (!k || atomic_fetch_sub(&k->references, 1) > 1) return;
  OPENSSL_cleanse(k->keys, sizeof k->keys);
  pthread_mutex_destroy(&k->lock);
  um__free(k);
}

static void free_with_ctx(void *parent, void *data, CRYPTO_EX_DATA *all, int index, long argl,
                          void *argp) {
  (void)parent, (void)all, (void)index, (void)argl, (void)argp;
  um_ticket_keys_free(data);
}

static void take_slot(void) { slot = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, free_with_ctx); }

int um_tls_ctx_tickets(SSL_CTX *ctx, um_ticket_keys *k) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, take_slot);
  um_ticket_keys *before = slot < 0 ? NULL : SSL_CTX_get_ex_data(ctx, slot);
  if (slot < 0 || SSL_CTX_set_ex_data(ctx, slot, k) != 1) return -ENOMEM;
  atomic_fetch_add(&k->references, 1);
  um_ticket_keys_free(before);
  return SSL_CTX_set_tlsext_ticket_key_evp_cb(ctx, answer) == 1 ? 0 : UM_ETLS;
}
