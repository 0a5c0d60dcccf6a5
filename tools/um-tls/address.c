#include "address.h"

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static int copy(char *to, size_t capacity, const char *from, size_t length) {
  if (!length || length >= capacity) return -1;
  memcpy(to, from, length);
  to[length] = '\0';
  return 0;
}

int address_split(const char *text, host_port *out) {
  const char *colon = strrchr(text, ':'), *host = text, *end = colon;
  if (!address_has_port(text)) return -1;
  if (*text == '[') {
    host = text + 1;
    end = strchr(host, ']');
    if (!end || end + 1 != colon) return -1;
  } else if (memchr(text, ':', (size_t)(colon - text))) {
    return -1; /* an IPv6 literal without brackets: which colon is the port's? */
  }
  if (copy(out->host, sizeof out->host, host, (size_t)(end - host))) return -1;
  return copy(out->port, sizeof out->port, colon + 1, strlen(colon + 1));
}

bool address_has_port(const char *text) {
  const char *colon = strrchr(text, ':');
  if (!colon || !colon[1]) return false;
  size_t digits = strspn(colon + 1, "0123456789");
  return colon[1 + digits] || (digits <= 5 && atoi(colon + 1) <= 65535);
}

void address_of_socket(int fd, int which, char *out, size_t capacity) {
  struct sockaddr_storage address;
  socklen_t length = sizeof address;
  struct sockaddr *a = (struct sockaddr *)&address;
  char host[128], port[16];
  int failed = which == ADDRESS_PEER ? getpeername(fd, a, &length) : getsockname(fd, a, &length);
  if (failed || getnameinfo(a, length, host, sizeof host, port, sizeof port,
                            NI_NUMERICHOST | NI_NUMERICSERV)) {
    snprintf(out, capacity, "unknown address");
    return;
  }
  snprintf(out, capacity, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}
