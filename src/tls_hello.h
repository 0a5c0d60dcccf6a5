/* Whether a client's first message, the ClientHello, has arrived as a whole. Only lengths
 * are looked at, OpenSSL judges the rest: so that a peer who never finishes it costs its
 * bytes, and not an SSL object of 45-73 KB. */
#ifndef UM_TLS_HELLO_H
#define UM_TLS_HELLO_H

#include "reactor/conn.h"

/* How far it was looked at: zero at first. */
typedef struct um_hello {
  uint32_t records; /* bytes of the records seen so far, with their headers */
  uint32_t message; /* bytes of the message in them */
  uint8_t head[4];  /* type and length of the message */
} um_hello;

/* 1: all there, or nothing of TLS, about which OpenSSL has better words. -EAGAIN: not yet.
 * UM_ETOOLONG: longer than `limit` bytes. UM_ETLS: no TLS that OpenSSL should wait for.
 * The input's end comes as itself: an error, or UM_ETRUNCATED. */
int um__hello_look(um_hello *hello, const um_conn *conn, size_t limit);

#endif
