#include "peers.h"

#include "reactor/alloc.h"

#include <errno.h>
#include <netinet/in.h>
#include <openssl/rand.h>
#include <string.h>
#include <sys/socket.h>

#define FIRST_CAPACITY 64u

static um_peer **bucket_of(const um_peers *peers, uint64_t address) {
  uint64_t mixed = address * peers->multiplier;
  return &peers->buckets[(mixed >> 32) & (peers->capacity - 1)];
}

static int start(um_peers *peers) {
  if (peers->buckets) return 0;
  if (RAND_bytes((unsigned char *)&peers->multiplier, sizeof peers->multiplier) != 1) return -ENOMEM;
  peers->multiplier |= 1;
  peers->buckets = um__alloc(FIRST_CAPACITY * sizeof *peers->buckets);
  if (!peers->buckets) return -ENOMEM;
  peers->capacity = FIRST_CAPACITY;
  return 0;
}

/* Without memory the chains are longer, and that is all. */
static void grow(um_peers *peers) {
  size_t old = peers->capacity;
  um_peer **from = peers->buckets, **wider = um__alloc(2 * old * sizeof *wider);
  if (!wider) return;
  peers->buckets = wider;
  peers->capacity = 2 * old;
  for (size_t i = 0; i < old; i++)
    for (um_peer *peer = from[i], *next; peer; peer = next) {
      um_peer **bucket = bucket_of(peers, peer->address);
      next = peer->next;
      peer->next = *bucket;
      *bucket = peer;
    }
  um__free(from);
}

/* False: the socket has no address that could be counted. */
static int address_of(int fd, unsigned *family, uint64_t *address) {
  struct sockaddr_storage name = {0};
  socklen_t length = sizeof name;
  if (getpeername(fd, (struct sockaddr *)&name, &length) < 0) return 0;
  const struct sockaddr_in6 *six = (const void *)&name;
  const struct sockaddr_in *four = (const void *)&name;
  uint32_t word = 0;
  *family = name.ss_family;
  if (name.ss_family == AF_INET) {
    word = four->sin_addr.s_addr;
  } else if (name.ss_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&six->sin6_addr)) {
    *family = AF_INET;
    memcpy(&word, six->sin6_addr.s6_addr + 12, sizeof word);
  } else if (name.ss_family == AF_INET6) {
    memcpy(address, six->sin6_addr.s6_addr, sizeof *address);
    return 1;
  } else {
    return 0;
  }
  *address = word;
  return 1;
}

static um_peer *find(const um_peers *peers, unsigned family, uint64_t address) {
  um_peer *peer = *bucket_of(peers, address);
  while (peer && (peer->address != address || peer->family != family)) peer = peer->next;
  return peer;
}

static um_peer *add(um_peers *peers, unsigned family, uint64_t address) {
  um_peer *peer = um__alloc(sizeof *peer);
  if (!peer) return NULL;
  if (peers->count >= peers->capacity) grow(peers);
  um_peer **bucket = bucket_of(peers, address);
  *peer = (um_peer){.next = *bucket, .address = address, .family = family};
  peers->count++;
  return *bucket = peer;
}

int um__peers_enter(um_peers *peers, int fd, unsigned most, um_peer **out) {
  unsigned family;
  uint64_t address;
  *out = NULL;
  if (!address_of(fd, &family, &address)) return 0;
  if (start(peers) < 0) return -ENOMEM;
  um_peer *peer = find(peers, family, address);
  if (peer && peer->connections >= most) return -EUSERS;
  if (!peer && !(peer = add(peers, family, address))) return -ENOMEM;
  peer->connections++;
  *out = peer;
  return 0;
}

void um__peers_leave(um_peers *peers, um_peer *peer) {
  if (!peer || --peer->connections) return;
  um_peer **link = bucket_of(peers, peer->address);
  while (*link != peer) link = &(*link)->next;
  *link = peer->next;
  peers->count--;
  um__free(peer);
}

void um__peers_free(um_peers *peers) {
  um__free(peers->buckets);
  *peers = (um_peers){0};
}
