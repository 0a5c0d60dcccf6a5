/* um-tls serve: its options, and the server they make. */
#ifndef UM_TLS_SERVE_H
#define UM_TLS_SERVE_H

#include "alpn.h"
#include "echo_service.h"
#include "http_service.h"
#include "serve_log.h"

#include <bio_uring/sync.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct serve_options {
  const char *listen, *cert, *key, *client_ca, *alpn, *min_tls, *root, *metrics, *ticket_keys, *user, *offload;
  uint64_t threads, max_connections, max_per_address, body, hsts, min_rate;
  uint64_t receive_total, send_total, handshake_bytes, max_floods;
  int64_t handshake_timeout, idle_timeout, request_timeout, drain_timeout; /* ms */
  bool echo, wipe, cubic, verbose, core;
} serve_options;

struct server;

typedef struct serve_worker {
  struct server *server;
  um_reactor *reactor;
  _Atomic(SSL_CTX *) fresh;  /* for its listener, from a reload */
  um_tls_listener *listener; /* while it serves; its reactor's thread only */
  http_service *http;
  serve_log log;
  pthread_t thread;
  int fd; /* listening */
  /* For the metrics' fiber: a copy of the listener's counters is asked for, was made, and
   * the one that was shown last. */
  bool asked;
  um_semaphore copying;
  um_tls_listener_stats copied, shown;
} serve_worker;

/* The whole program; its workers run a reactor each, the first on the main thread. */
typedef struct server {
  serve_options options;
  SSL_CTX *ctx;          /* of the signals' fiber, once all have started */
  um_ticket_keys *tickets;
  alpn_list alpn;
  http_site site;
  echo_service echo;
  serve_worker *workers;
  unsigned count;
  char address[160];     /* of the socket, with the real port */
  atomic_uint starting;  /* workers that do not accept yet */
  um_event drain;        /* set by the first signal, or when a worker cannot start */
  um_semaphore drained;  /* one for each worker whose connections have ended */
  pthread_barrier_t ended; /* every reactor's run is over */
  int metrics_fd;        /* -1: none */
  atomic_int exit_code;
} server;

/* Makes the context from the options. EXIT_OK, or a code after saying why. */
int serve_tls_setup(server *s);
/* The same again, from the files as they are now; on failure all stays as it was. */
int serve_tls_reload(server *s);
void serve_tls_free(server *s);
/* Those that would end a server that is still starting and are not meant to: they wait. */
void serve_block_signals(void);
/* Binds `count` sockets, gives up what --user says, and then creates as many reactors: rings
 * keep the rights that they were made with. The same. */
int serve_workers_create(server *s);
void serve_workers_destroy(server *s);
/* Runs until drained; the code to exit with. */
int serve_workers_run(server *s);

/* --offload as UM_TLS_OFFLOAD_* or a number; NULL is never. False: it is neither. */
bool serve_offload(const char *text, int *policy);

#endif
