/* A client connection of the load: TLS, or plain TCP, over a raw io_uring of its own.
 *
 * The load must cost less than the servers it drives, or they would idle and be judged on
 * turns smaller than they could have. So it makes one io_uring_enter() for all that a turn
 * of all connections brings, and OpenSSL reads and writes memory. It shares no code with
 * libbio_uring: a fault or a favour there cannot show up on both ends. */
#ifndef BENCH_LOAD_CLIENT_H
#define BENCH_LOAD_CLIENT_H

#include "util.h"

#include <openssl/ssl.h>
#include <stdbool.h>

typedef struct client {
  /* transport */
  SSL *ssl;             /* NULL: plain */
  int fd;
  bool shaken, receiving, sending, closing;
  const char *in;       /* received, not yet read */
  size_t in_left;
  struct out_buffer *out;
  char *flood;          /* where OpenSSL writes instead of `out` */
  size_t flood_length, flood_room;
  SSL_SESSION *session; /* the newest ticket, for the next connection */

  /* exchange */
  bool connected;       /* had its first answer */
  unsigned id, turn;
  const char *message;
  size_t sent, received;
  int64_t started;
} client;

typedef struct transport {
  const char *address;
  bool plain, cubic, many_sources, resume, abrupt; /* abrupt: no close_notify */
  SSL_CTX *context;
  /* What the load does when something happened. */
  void (*connected)(client *c);
  void (*readable)(client *c); /* reads until client_read() has nothing */
  void (*room)(client *c);     /* everything written has left */
  void (*closed)(client *c);
} transport;

extern transport transport_setup;

void transport_start(unsigned connections);

/* Submits, waits for something to happen, at most so long, and handles it. */
void transport_turn(int64_t nanoseconds);

void client_connect(client *c);
/* How much was taken: less when the output is full; room() is called once it is not. */
size_t client_write(client *c, const char *data, size_t length);
/* Bytes, or 0: no more until readable() is called again. */
size_t client_read(client *c, char *buffer, size_t length);
/* What was written leaves with the next turn. */
void client_flush(client *c);
/* Sends raw bytes that must stay; room() is called when they are out. */
void client_send_raw(client *c, const char *data, size_t length);
/* close_notify, FIN, and waits for the peer's; then closed(). */
void client_close(client *c);

#endif
