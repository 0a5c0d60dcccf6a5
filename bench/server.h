/* What every server of the benchmark shares: its command line, its listening socket, its
 * TLS context, and what it answers. Nothing of libbio_uring. */
#ifndef BENCH_SERVER_H
#define BENCH_SERVER_H

#include "util.h"

#include <openssl/ssl.h>
#include <signal.h>
#include <stdbool.h>

/* A switch of one server's own. */
typedef struct server_flag {
  const char *name, *help;
  bool *value;
} server_flag;

typedef struct server_setup {
  const char *listen, *certificate, *key;
  bool echo;             /* send back what arrives; else answer requests: */
  size_t request;        /* one every so many bytes, or 0: one every HTTP/1.1 blank line */
  char *response;        /* to each */
  size_t response_length;
  size_t piece;          /* one SSL_write() takes at most so much of it */
} server_setup;

extern server_setup setup;
extern volatile sig_atomic_t server_stopped; /* by SIGTERM or SIGINT, which interrupt waits */

/* Reads the command line, makes the response, sets up signals and limits. `flags` ends with a
 * NULL name and may be NULL. */
void server_start(int argc, char **argv, const char *purpose, bool tls, const server_flag *flags);

/* A listening socket with TCP_NODELAY, which accepted ones inherit. */
int server_listen(bool blocking);

/* Prints "listening on HOST:PORT": the benchmark waits for it. */
void server_announce(int fd);

/* The context every baseline starts from. What makes one contender differ from another is
 * in its own file. */
SSL_CTX *server_context(void);

/* How far a connection is in its next request. Zero at first. */
typedef struct request_state {
  unsigned matched; /* bytes of the blank line */
  size_t bytes;
} request_state;

/* How many requests these bytes complete. */
unsigned server_requests(request_state *state, const char *data, size_t length);

#endif
