/* um-tls serve: its options, and the server they make. */
#ifndef UM_TLS_SERVE_H
#define UM_TLS_SERVE_H

#include "alpn.h"
#include "echo_service.h"
#include "http_service.h"

#include <bio_uring/sync.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct serve_options {
  const char *listen, *cert, *key, *client_ca, *alpn, *min_tls, *root;
  uint64_t threads, max_connections, body;
  int64_t handshake_timeout, idle_timeout, drain_timeout; /* ms */
  bool echo, cubic, verbose;
} serve_options;

struct serve_worker;

/* The whole program; its workers run a reactor each, the first on the main thread. */
typedef struct server {
  serve_options options;
  SSL_CTX *ctx;
  alpn_list alpn;
  http_site site;
  echo_service echo;
  struct serve_worker *workers;
  unsigned count;
  char address[160];     /* of the socket, with the real port */
  atomic_uint starting;  /* workers that do not accept yet */
  um_event drain;        /* set by the first signal, or when a worker cannot start */
  um_semaphore drained;  /* one for each worker whose connections have ended */
  pthread_barrier_t ended; /* every reactor's run is over */
  atomic_int exit_code;
} server;

/* Makes the context from the options. EXIT_OK, or a code after saying why. */
int serve_tls_setup(server *s);
/* Binds `count` sockets and creates as many reactors. The same. */
int serve_workers_create(server *s);
void serve_workers_destroy(server *s);
/* Runs until drained; the code to exit with. */
int serve_workers_run(server *s);

#endif
