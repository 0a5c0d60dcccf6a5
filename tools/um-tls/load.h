/* um-tls load: what its parts share.
 *
 * The main thread watches; each worker thread runs a reactor with a fiber for each
 * of its connections. Counters of a worker are written by its thread alone and
 * read by the main thread for the progress line: relaxed atomics. */
#ifndef UM_TLS_LOAD_H
#define UM_TLS_LOAD_H

#include "client.h"
#include "histogram.h"

#include <bio_uring.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/socket.h>

typedef struct load_options {
  client_options client;
  const char *http; /* path; NULL: not HTTP */
  uint64_t size, connections, threads, requests, pipeline, rate;
  int64_t duration, timeout; /* ms */
  bool echo, new_connections, resume, idle, json, cubic;
} load_options;

/* Why operations failed. */
enum load_error {
  LOAD_CONNECT, LOAD_TIMEOUT, LOAD_RESET, LOAD_TRUNCATED, LOAD_CLOSED, LOAD_TLS, LOAD_VERIFY,
  LOAD_MISMATCH, LOAD_STATUS, LOAD_OTHER, LOAD_ERRORS
};
extern const char *const load_error_names[LOAD_ERRORS];

typedef struct load_counters {
  _Atomic uint64_t operations, sent, received, handshakes, resumed, open, errors[LOAD_ERRORS];
} load_counters;

#define LOAD_COUNT(counter, n)                                                                 \
  atomic_store_explicit(&(counter), atomic_load_explicit(&(counter), memory_order_relaxed) + (n), \
                        memory_order_relaxed)

struct load;

typedef struct load_worker {
  struct load *load;
  um_reactor *reactor;
  pthread_t thread;
  unsigned connections;
  uint64_t quota;       /* operations it may still start */
  um_semaphore opening; /* handshakes at a time: more only make each other late */
  SSL_SESSION *session; /* newest, with --resume */
  load_counters counters;
  histogram latencies;
  um_time last;         /* when its newest operation ended */
  char first_error[256];
} load_worker;

typedef struct load {
  load_options options;
  host_port peer;
  SSL_CTX *ctx;
  struct sockaddr_storage address; /* where the first connection got through */
  socklen_t address_length;
  SSL_SESSION *session;  /* of that connection */
  unsigned char *certificate; /* of its peer, DER */
  int certificate_length;
  char *message;         /* the requests of a batch; echo: LOAD_SHIFTS random bytes more */
  size_t message_length; /* of one batch */
  load_worker *workers;
  um_time started, ends; /* set before `go` */
  um_event settled, go, finished;
  pthread_barrier_t ended; /* no thread can be waking another's fiber any more */
  atomic_uint unsettled; /* connections that have neither opened nor failed yet */
  atomic_uint running;   /* connections that have not ended */
} load;

/* load_connection.c: the life of one connection; a fiber's function. */
typedef struct load_connection {
  load_worker *worker;
  unsigned index; /* in the worker */
  uint64_t round;
  um_tls *tls;
  um_time now;       /* when the last operation ended */
  um_time due;       /* with --rate: when the next one is to start */
  char *buffer;      /* LOAD_BUFFER bytes */
  size_t start, end; /* HTTP: bytes of it not used yet */
  bool settled;
} load_connection;
#define LOAD_BUFFER (32 * 1024)
/* Each echoed message starts elsewhere in the random bytes: a stale one, or another
 * connection's, then shows. */
#define LOAD_SHIFTS 4093
int load_connection_run(void *connection);

/* One batch of --pipeline operations. 0, a negative code of the library, or a
 * LOAD_* with FAILED() around it. */
#define LOAD_FAILED(kind) (-30000 - (int)(kind))
int load_echo(load_connection *c, um_time deadline);
int load_http(load_connection *c, um_time deadline);

/* load_verify.c: from now on, this certificate of a peer needs no verification. */
void load_trust(load *l, X509 *certificate);

/* load_report.c */
typedef struct load_sum {
  uint64_t operations, sent, received, handshakes, resumed, open, errors, errors_of[LOAD_ERRORS];
} load_sum;
load_sum load_count(const load *l);
void load_report(const load *l, double seconds, double cpu_seconds);

#endif
