/* How many connections each address has: IPv4 by the whole address, IPv6 by the /64 that one
 * customer gets. */
#ifndef UM_PEERS_H
#define UM_PEERS_H

#include <stddef.h>
#include <stdint.h>

typedef struct um_peer {
  struct um_peer *next; /* in its bucket */
  uint64_t address;
  unsigned family, connections;
} um_peer;

/* Zero at first. */
typedef struct um_peers {
  um_peer **buckets;
  size_t capacity, count; /* capacity: a power of two, or 0 */
  uint64_t multiplier;    /* random, so that nobody can choose addresses of one bucket */
} um_peers;

/* Counts a connected socket in; *out goes to um__peers_leave(). It is NULL for a socket
 * without an address, which has no limit. -EUSERS when the address has `most`, -ENOMEM. */
int um__peers_enter(um_peers *peers, int fd, unsigned most, um_peer **out);
void um__peers_leave(um_peers *peers, um_peer *peer);
/* When all have left. */
void um__peers_free(um_peers *peers);

#endif
