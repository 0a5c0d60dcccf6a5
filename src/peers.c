#include "peers.h"

#include "reactor/alloc.h"

#include <errno.h>
#include <netinet/in.h>
#include <search.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

/* False: the socket has no address that could be counted. */
static bool address_of(int fd, um_peer *peer) {
  struct sockaddr_storage name = {0};
  socklen_t length = sizeof name;
  if (getpeername(fd, (struct sockaddr *)&name, &length) < 0) return false;
  const struct sockaddr_in6 *six = (const void *)&name;
  const struct sockaddr_in *four = (const void *)&name;
  const uint8_t *bytes = six->sin6_addr.s6_addr;
  peer->family = name.ss_family;
  if (name.ss_family == AF_INET) {
    bytes = (const uint8_t *)&four->sin_addr;
  } else if (name.ss_family != AF_INET6) {
    return false;
  } else if (IN6_IS_ADDR_V4MAPPED(&six->sin6_addr)) {
    peer->family = AF_INET;
    bytes += 12;
  }
  memcpy(&peer->address, bytes, peer->family == AF_INET ? 4 : 8);
  return true;
}

static int compare(const void *left, const void *right) {
  const um_peer *a = left, *b = right;
  if (a->family != b->family) return a->family < b->family ? -1 : 1;
  return (a->address > b->address) - (a->address < b->address);
}

static um_peer *add(um_peers *peers, const um_peer *key) {
  um_peer *peer = um__alloc_raw(sizeof *peer);
  if (!peer) return NULL;
  *peer = *key;
  if (tsearch(peer, &peers->tree, compare)) return peer;
  um__free(peer);
  return NULL;
}

int um__peers_enter(um_peers *peers, int fd, unsigned most, um_peer **out) {
  um_peer key = {0};
  *out = NULL;
  if (!address_of(fd, &key)) return 0;
  um_peer **found = tfind(&key, &peers->tree, compare);
  um_peer *peer = found ? *found : add(peers, &key);
  if (!peer) return -ENOMEM;
  if (peer->connections >= most) return -EUSERS;
  peer->connections++;
  *out = peer;
  return 0;
}

void um__peers_leave(um_peers *peers, um_peer *peer) {
  if (!peer || --peer->connections) return;
  tdelete(peer, &peers->tree, compare);
  um__free(peer);
}
