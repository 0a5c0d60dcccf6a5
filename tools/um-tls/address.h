/* "HOST:PORT" as the user writes it, and as we print it. */
#ifndef UM_TLS_ADDRESS_H
#define UM_TLS_ADDRESS_H

#include <stdbool.h>
#include <stddef.h>

typedef struct host_port {
  char host[256], port[32];
} host_port;

/* "name:443", "192.0.2.1:443", "[2001:db8::1]:443". 0 or -1 when malformed. */
int address_split(const char *text, host_port *out);

/* Whether what follows the last ':' may be a port: 0 to 65535, or a service's name. */
bool address_has_port(const char *text);

/* Prints the local (or the peer's) address of a socket: "127.0.0.1:443", "[::1]:443". */
enum { ADDRESS_LOCAL, ADDRESS_PEER };
void address_of_socket(int fd, int which, char *out, size_t capacity);

#endif
