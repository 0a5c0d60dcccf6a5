/* How many connections each address has: IPv4 by the whole address, IPv6 by the /64 that one
 * customer gets. */
#ifndef UM_PEERS_H
#define UM_PEERS_H

#include <stdint.h>

typedef struct um_peer {
  uint64_t address;
  unsigned family, connections;
} um_peer;

/* Zero at first, and again when all have left. */
typedef struct um_peers {
  void *tree; /* of tsearch(3): balanced, so that no choice of addresses makes it slow */
} um_peers;

/* Counts a connected socket in; *out goes to um__peers_leave(). It is NULL for a socket
 * without an address, which has no limit. -EUSERS when the address has `most`, -ENOMEM. */
int um__peers_enter(um_peers *peers, int fd, unsigned most, um_peer **out);
void um__peers_leave(um_peers *peers, um_peer *peer);

#endif
