/* No I/O: what the server's side of libssl costs over a pair of memory BIOs, all of it hot in
 * cache. Only the server's calls are timed. Together with plain-uring it is the floor: what a
 * server on io_uring and this OpenSSL cannot go below.
 *
 * Prints one line: cpu_us=..., of an operation as bench-load counts them. */
#define _GNU_SOURCE
#include "server.h"

#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SECONDS 0.4
#define WARM_UP 64           /* batches */
#define PIPE (256 << 10)     /* of ciphertext, each way */
#define SMALL_BATCH 32       /* messages between two looks at the clock */
#define REQUEST_MAX (1 << 20)

static bool handshakes, resume, tls12;
static SSL_CTX *server_ctx, *client_ctx;
static SSL *server, *client;
static SSL_SESSION *session;
static const char *request;
static size_t request_length, response_length, echo_size = 64;
static char input[SSL3_RT_MAX_PLAIN_LENGTH], message[REQUEST_MAX];
static int64_t used;

/* This thread's time: who else uses the CPU does not count. */
static int64_t cpu_now_ns(void) {
  struct timespec used_by_thread;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used_by_thread);
  return used_by_thread.tv_sec * INT64_C(1000000000) + used_by_thread.tv_nsec;
}

/* ---- a pair ---- */

static int keep_session(SSL *ssl, SSL_SESSION *fresh) {
  (void)ssl;
  SSL_SESSION_free(session);
  session = fresh;
  return 1;
}

static void make_contexts(void) {
  server_ctx = server_context();
  SSL_CTX_set_read_ahead(server_ctx, 1);
  SSL_CTX_set_num_tickets(server_ctx, 1);
  SSL_CTX_set_mode(server_ctx, SSL_MODE_NO_AUTO_CHAIN);
  client_ctx = SSL_CTX_new(TLS_client_method());
  if (!client_ctx || !use_one_cipher(client_ctx)) fail("no client context");
  SSL_CTX_set_mode(client_ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  if (tls12) SSL_CTX_set_max_proto_version(client_ctx, TLS1_2_VERSION);
  SSL_CTX_set_session_cache_mode(client_ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
  SSL_CTX_sess_set_new_cb(client_ctx, keep_session);
}

static void make_pair(void) {
  BIO *near, *far;
  int64_t start = cpu_now_ns();
  server = SSL_new(server_ctx);
  used += cpu_now_ns() - start;
  client = SSL_new(client_ctx);
  if (!server || !client || !BIO_new_bio_pair(&near, PIPE, &far, PIPE)) fail("no memory");
  SSL_set_bio(server, near, near);
  SSL_set_bio(client, far, far);
  SSL_set_accept_state(server);
  SSL_set_connect_state(client);
  if (resume && session) SSL_set_session(client, session);
}

static void check(SSL *ssl, int result) {
  int error = result > 0 ? SSL_ERROR_NONE : SSL_get_error(ssl, result);
  if (error != SSL_ERROR_NONE && error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE)
    fail("libssl over memory: error %d", error);
}

static void shake_hands(void) {
  while (!SSL_is_init_finished(server) || !SSL_is_init_finished(client)) {
    check(client, SSL_do_handshake(client));
    int64_t start = cpu_now_ns();
    int result = SSL_do_handshake(server);
    used += cpu_now_ns() - start;
    check(server, result);
  }
}

/* ---- requests ---- */

/* Each message its own records, as the load sends them; as many as fit. */
static void push(size_t *left) {
  while (*left) {
    size_t part = *left % request_length ? *left % request_length : request_length;
    int written = SSL_write(client, request, (int)part);
    check(client, written);
    if (written <= 0) return;
    *left -= (size_t)written;
  }
}

static void pull(size_t *left) {
  for (int length; *left && (length = SSL_read(client, input, sizeof input)) > 0;)
    *left -= (size_t)length < *left ? (size_t)length : *left;
}

typedef struct answering {
  request_state state;
  size_t unread, unsent; /* bytes of the batch */
  size_t available;      /* of `unsent`, owed by requests already read */
} answering;

static void answer(answering *a) {
  while (a->available) {
    size_t part = setup.piece && setup.piece < a->available ? setup.piece : a->available;
    int written = SSL_write(server, setup.echo ? input : setup.response, (int)part);
    if (written <= 0) return;
    a->available -= (size_t)written;
    a->unsent -= (size_t)written;
  }
}

static void serve(answering *a) {
  answer(a);
  while (a->unread) {
    int length = SSL_read(server, input, sizeof input);
    if (length <= 0) return;
    a->unread -= (size_t)length;
    unsigned requests = setup.echo ? 0 : server_requests(&a->state, input, (size_t)length);
    a->available += setup.echo ? (size_t)length : requests * response_length;
    answer(a);
  }
}

static void run_batch(unsigned count) {
  size_t to_push = count * request_length, to_pull = count * response_length;
  answering a = { .unread = to_push, .unsent = to_pull };
  while (to_pull) {
    push(&to_push);
    int64_t start = cpu_now_ns();
    serve(&a);
    used += cpu_now_ns() - start;
    pull(&to_pull);
  }
}

static void run_connection(void) {
  bool offered = resume && session;
  make_pair();
  shake_hands();
  if (offered && SSL_session_reused(client) != 1)
    fail("a connection was not resumed");
  run_batch(1);
  SSL_shutdown(client);
  int64_t start = cpu_now_ns();
  SSL_read(server, input, sizeof input);
  SSL_shutdown(server);
  SSL_free(server);
  used += cpu_now_ns() - start;
  SSL_free(client);
  ERR_clear_error();
}

/* ---- measuring ---- */

static void choose_request(void) {
  request = setup.echo || setup.request ? message : http_request;
  request_length = setup.echo ? echo_size : setup.request ? setup.request : http_request_length;
  response_length = setup.echo ? echo_size : setup.response_length;
  if (request_length > REQUEST_MAX) fail("requests of at most %d bytes", REQUEST_MAX);
}

static double measure(void) {
  unsigned batch = request_length + response_length <= 4096 ? SMALL_BATCH : 1;
  uint64_t operations = 0;
  int64_t end = 0;
  if (!handshakes) make_pair(), shake_hands();
  for (unsigned round = 0; round < WARM_UP || now_ns() < end; round++) {
    if (round == WARM_UP - 1) operations = 0, used = 0, end = now_ns() + (int64_t)(SECONDS * 1e9);
    if (handshakes) run_connection(), operations++;
    else run_batch(batch), operations += batch;
  }
  return (double)used / (double)operations / 1e3;
}

int main(int argc, char **argv) {
  const char *size = getenv("BENCH_ECHO_SIZE");
  const server_flag flags[] = {
    { "handshakes", "an operation is a connection: handshake, one request, close", &handshakes },
    { "resume", "with --handshakes: resumed by ticket", &resume },
    { "tls12", "TLS 1.2", &tls12 },
    { NULL, NULL, NULL },
  };
  server_start(argc, argv,
               "libssl alone, over memory.\n--echo: messages of $BENCH_ECHO_SIZE bytes.",
               true, flags);
  if (size) echo_size = number("echo size", size);
  make_contexts();
  choose_request();
  printf("cpu_us=%.4f\n", measure());
  return 0;
}
