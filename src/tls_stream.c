/* TLS streams: making them and shaking hands; tls_close.c ends them. Every SSL_* call is pure
 * computation on the shared stack; fibers park outside OpenSSL. */
#include "log.h"
#include "tls_internal.h"

#include "ablation.h"
#include "error.h"
#include "reactor/alloc.h"
#include "reactor/stack.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- one OpenSSL call ---- */

/* Reads of the BIO in one call. Data ends a call after its first record; only records without
 * data (KeyUpdate, tickets) make OpenSSL go on. */
#define READS_A_RECORD 2
#define HANDSHAKE_BUDGET 512

/* One unit: nothing else may run between clearing the queue and reading it. */
void um__ssl_run(void *argument) {
  um_ssl_call *call = argument;
  SSL *ssl = call->ssl;
  if (ERR_peek_error()) ERR_clear_error();
  call->result = call->function(ssl, call->buffer, call->length, &call->done);
  call->error = call->result > 0 ? SSL_ERROR_NONE : SSL_get_error(ssl, call->result);
  /* WANT_READ tells that the queue is empty. What a call that went well may leave there is the
   * next call's to clear: a look costs 200 instructions. */
  if (call->error == SSL_ERROR_NONE || call->error == SSL_ERROR_WANT_READ) return;
  call->reason = ERR_peek_last_error();
  if (call->reason) ERR_clear_error();
}

/* Fibers keep small stacks: OpenSSL's deep frames go to one stack for all, hot in
 * cache. A runtime's own fibers (bio_uring/host.h) stay on theirs. */
static void on_shared_stack(um_reactor *r, void (*fn)(void *), void *argument) {
  if (!um_fiber_self() || r->must_not_wait || UM_ABLATED(SHARED_STACK)) {
    fn(argument);
    return;
  }
  r->must_not_wait = true;
  um__call_on(r->shared_stack, fn, argument);
  r->must_not_wait = false;
}

int um__tls_fail(um_tls *tls, int code, const char *what) {
  const char *name = tls->hostname ? tls->hostname : tls->server ? "client" : "server";
  snprintf(tls->message, sizeof tls->message, "%s: %s", name, what);
  um__log(UM_LOG_INFO, "fd %d: %s", tls->conn.fd, tls->message);
  return tls->failed = code;
}

static int explain_verify(um_tls *tls, long verdict) {
  char what[160];
  snprintf(what, sizeof what, "certificate not accepted: %s", X509_verify_cert_error_string(verdict));
  return um__tls_fail(tls, UM_EVERIFY, what);
}

/* How the input or the output ended, whatever OpenSSL makes of it: a reset may be found
 * by a send, and the receive then sees only the end. */
static int explain_transport(um_tls *tls) {
  int error = tls->conn.output_error ? tls->conn.output_error : tls->conn.received_end;
  if (error == 1 || error == 0) error = UM_ETRUNCATED;
  return um__tls_fail(tls, error, um_strerror(error));
}

static int explain_protocol(um_tls *tls, unsigned long reason) {
  char what[160];
  long verdict = SSL_get_verify_result(tls->ssl);
  switch (ERR_GET_LIB(reason) == ERR_LIB_SSL ? ERR_GET_REASON(reason) : 0) {
    case SSL_R_UNEXPECTED_EOF_WHILE_READING:
      return explain_transport(tls);
    case SSL_R_WRONG_VERSION_NUMBER:
      if (!tls->shaken && !tls->server)
        return um__tls_fail(tls, UM_ETLS, "the server does not speak TLS on this port: is it plain HTTP, "
                       "or a protocol with STARTTLS?");
      break;
    case SSL_R_HTTP_REQUEST:
    case SSL_R_HTTPS_PROXY_REQUEST:
      return um__tls_fail(tls, UM_EPLAINTEXT, um_strerror(UM_EPLAINTEXT));
    case SSL_R_CERTIFICATE_VERIFY_FAILED:
      if (verdict != X509_V_OK) return explain_verify(tls, verdict);
  }
  const char *text = reason ? ERR_reason_error_string(reason) : NULL;
  snprintf(what, sizeof what, "TLS failure%s: %s", tls->shaken ? "" : " in the handshake",
           text ? text : "unknown");
  return um__tls_fail(tls, UM_ETLS, what);
}

int um__ssl_judge(um_tls *tls, const um_ssl_call *call) {
  switch (call->error) {
    case SSL_ERROR_NONE:
      return 1;
    case SSL_ERROR_ZERO_RETURN:
      return 0;
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_CLIENT_HELLO_CB:
    case SSL_ERROR_WANT_X509_LOOKUP:
      return UM_WANT_INPUT;
    case SSL_ERROR_SYSCALL:
      return call->reason ? explain_protocol(tls, call->reason) : explain_transport(tls);
    default:
      return explain_protocol(tls, call->reason);
  }
}

int um__ssl_call(um_tls *tls, um_ssl_function function, void *buffer, size_t length, size_t *done) {
  um_ssl_call call = {.ssl = tls->ssl, .function = function, .buffer = buffer, .length = length};
  unsigned reads = READS_A_RECORD * tls->reactor->config.turn_records;
  um__bio_budget(tls->bio, tls->shaken ? reads : HANDSHAKE_BUDGET);
  on_shared_stack(tls->reactor, um__ssl_run, &call);
  if (unlikely(um__reactor_forked(tls->reactor))) return UM_EFORKED; /* by a callback */
  if (done) *done = call.done;
  return um__ssl_judge(tls, &call);
}

/* Answers to the peer's own messages (KeyUpdate) are not writers' output and have no
 * writer to hold back: a peer that makes us answer and never reads stops being
 * read. */
bool um__tls_output_too_long(const um_tls *tls) {
  return tls->conn.output > 2 * (size_t)tls->reactor->config.send_limit;
}

int um__tls_wait_input(um_tls *tls, um_time deadline) {
  if (um__tls_output_too_long(tls)) {
    size_t limit = 2 * (size_t)tls->reactor->config.send_limit;
    return um__conn_wait_output(&tls->conn, limit, deadline);
  }
  if (!um__bio_budget_spent(tls->bio)) return um__tls_wait_readable(tls, deadline);
  UM_COUNT(tls->reactor, floods, 1);
  if (tls->flood_limit && ++tls->floods > tls->flood_limit)
    return um__tls_fail(tls, UM_ETOOLONG, "too many records without data in a row");
  int result = um__tls_give_way(tls);
  return result == 0 && um_now() >= deadline ? -ETIMEDOUT : result;
}

/* Until another fiber of the stream is through, or the stream is being closed. */
static int wait_in(um_tls *tls, um_waitq *queue, um_time deadline) {
  int result = um__waitq_wait(queue, deadline);
  return result == 0 && tls->conn.closing ? UM_ECLOSED : result;
}

int um__tls_wait_readable(um_tls *tls, um_time deadline) {
  if (tls->awaited) return wait_in(tls, &tls->input, deadline);
  tls->awaited = true;
  int result = um__conn_wait_readable(&tls->conn, deadline);
  tls->awaited = false;
  um__waitq_wake_all(&tls->input);
  return result;
}

/* As the connection's reader: what it has not read yet may stay where it is. */
int um__tls_give_way(um_tls *tls) {
  UM_COUNT(tls->reactor, turns, 1);
  if (tls->awaited) return um__yield(tls->reactor, true);
  tls->conn.reader = um__task();
  int result = um__yield(tls->reactor, true);
  if (!tls->awaited) tls->conn.reader = NULL;
  return result;
}

/* ---- entry and exit ---- */

int um__tls_check_caller(const um_tls *tls) {
  const um_task *task = um__task();
  if (unlikely(um__reactor_forked(tls->reactor))) return UM_EFORKED;
  if (!task) return UM_ENOTFIBER;
  return task->reactor == tls->reactor ? 0 : UM_EWRONGTHREAD;
}

int um__tls_enter(um_tls *tls) {
  int result = um__tls_check_caller(tls);
  if (result < 0) return result;
  if (tls->conn.closing) return UM_ECLOSED;
  tls->users++;
  return 0;
}

void um__tls_leave(um_tls *tls) {
  if (--tls->users == 0 && tls->closer) um__task_wake(tls->closer, 0);
}

int um__tls_lock_write(um_tls *tls, um_time deadline) {
  if (tls->conn.closing) return UM_ECLOSED;
  if (!tls->writing) {
    tls->writing = true;
    return 0;
  }
  int result = um__waitq_wait(&tls->writers, deadline);
  if (result < 0 || !tls->conn.closing) return result;
  um__tls_unlock_write(tls);
  return UM_ECLOSED;
}

/* Handed over: a fiber that writes in a loop would never let another one in. */
void um__tls_unlock_write(um_tls *tls) {
  if (tls->writers.first) um__waitq_wake_one(&tls->writers);
  else tls->writing = false;
}

/* ---- handshake ---- */

static int do_handshake(SSL *ssl, void *buffer, size_t length, size_t *done) {
  (void)buffer, (void)length, (void)done;
  return SSL_do_handshake(ssl);
}

static void shaken(um_tls *tls) {
  um_time duration = um_now() - tls->begun;
  tls->shaken = true;
  um__histogram_add(&tls->reactor->histograms.handshake, duration);
  UM_PROBE2(handshake, tls, duration);
  um__log(UM_LOG_DEBUG, "fd %d: %s, %s%s", tls->conn.fd, SSL_get_version(tls->ssl),
          SSL_get_cipher_name(tls->ssl), SSL_session_reused(tls->ssl) ? ", resumed" : "");
}

/* Here, or on a worker, whose result the next call returns. */
static int compute_step(um_tls *tls) {
  if (tls->step_taken) {
    tls->step_taken = false;
    return tls->step_result;
  }
  int result = tls->ssl ? 0 : um__tls_make_ssl(tls);
  if (result < 0) return result;
  um__bio_budget(tls->bio, HANDSHAKE_BUDGET);
  if (um__offload_step(tls, do_handshake)) return UM_OFFLOADED;
  return um__ssl_call(tls, do_handshake, NULL, 0, NULL);
}

int um__tls_handshake_step(um_tls *tls) {
  if (tls->shaken) return 1;
  if (tls->offload) return UM_OFFLOADED;
  if (tls->failed) return tls->failed;
  int result = compute_step(tls);
  if (result > 0) shaken(tls);
  return result == 0 ? um__tls_fail(tls, UM_ETRUNCATED, "closed during the handshake") : result;
}

static int wait_step(um_tls *tls, int why, um_time deadline) {
  if (why == UM_WANT_INPUT) return um__tls_wait_input(tls, deadline);
  um__waits_for(tls->reactor, "handshake", tls->conn.fd);
  return wait_in(tls, &tls->input, deadline);
}

/* Reader and writer may both find it undone: the first does it. Not under the write
 * side's lock, or a reader would wait behind what is written right after. */
int um__tls_handshake(um_tls *tls, um_time deadline) {
  int result;
  while (tls->shaking)
    if ((result = wait_in(tls, &tls->shakers, deadline)) < 0) return result;
  if (tls->shaken) return 0;
  tls->shaking = true;
  while ((result = um__tls_handshake_step(tls)) == UM_WANT_INPUT || result == UM_OFFLOADED)
    if ((result = wait_step(tls, result, deadline)) < 0) break;
  tls->shaking = false;
  um__waitq_wake_all(&tls->shakers);
  return result < 0 ? result : 0;
}

int um__tls_settle(um_tls *tls, um_time deadline) {
  int result = tls->failed;
  while (result >= 0 && SSL_in_init(tls->ssl)) {
    result = um__ssl_call(tls, do_handshake, NULL, 0, NULL);
    if (result == UM_WANT_INPUT) result = um__tls_wait_input(tls, deadline);
  }
  return result < 0 ? result : 0;
}

int um_tls_handshake(um_tls *tls, um_time deadline) {
  int result = um__tls_enter(tls);
  if (result < 0) return result;
  result = um__tls_handshake(tls, deadline);
  um__tls_leave(tls);
  return result;
}

/* ---- making ---- */

/* "h2,http/1.1" in the wire's form: each name behind its length. */
static int set_alpn(SSL *ssl, const char *names) {
  unsigned char wire[256];
  size_t length = strlen(names), start = 0;
  if (length + 1 > sizeof wire) return -EINVAL;
  for (size_t i = 0; i <= length; i++) {
    if (i < length && names[i] != ',') continue;
    if (i == start) return -EINVAL;
    wire[start] = (unsigned char)(i - start);
    memcpy(wire + start + 1, names + start, i - start);
    start = i + 1;
  }
  return SSL_set_alpn_protos(ssl, wire, (unsigned)length + 1) == 0 ? 0 : -ENOMEM;
}

static bool is_address(const char *name) {
  unsigned char bytes[16];
  return inet_pton(AF_INET, name, bytes) == 1 || inet_pton(AF_INET6, name, bytes) == 1;
}

/* Names are sent (SNI) and verified, addresses only verified (RFC 6066 section 3). */
static int set_identity(um_tls *tls, const char *name) {
  X509_VERIFY_PARAM *parameters = SSL_get0_param(tls->ssl);
  if (is_address(name)) return X509_VERIFY_PARAM_set1_ip_asc(parameters, name) == 1 ? 0 : -ENOMEM;
  X509_VERIFY_PARAM_set_hostflags(parameters, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
  if (SSL_set_tlsext_host_name(tls->ssl, name) != 1) return -EINVAL;
  return X509_VERIFY_PARAM_set1_host(parameters, name, 0) == 1 ? 0 : -ENOMEM;
}

static int set_up_client(um_tls *tls, const um_tls_options *options) {
  SSL *ssl = tls->ssl;
  int result = 0;
  SSL_set_connect_state(ssl);
  if (options->hostname) result = set_identity(tls, options->hostname);
  SSL_set_verify(ssl, tls->flags & UM_TLS_INSECURE ? SSL_VERIFY_NONE : SSL_VERIFY_PEER,
                 SSL_get_verify_callback(ssl));
  if (result == 0 && options->alpn) result = set_alpn(ssl, options->alpn);
  if (result == 0 && options->session && SSL_set_session(ssl, options->session) != 1) result = UM_ETLS;
  return result;
}

/* In memory mode a write must take whole records and never be asked twice; a read
 * gives its buffer back when idle. */
int um__tls_make_ssl(um_tls *tls) {
  tls->ssl = SSL_new(tls->ctx);
  tls->bio = tls->ssl ? um__bio_new(&tls->conn) : NULL;
  if (tls->bio) SSL_set_bio(tls->ssl, tls->bio, tls->bio);
  if (!tls->bio) {
    SSL_free(tls->ssl);
    tls->ssl = NULL;
    ERR_clear_error();
    return -ENOMEM;
  }
  SSL_set_mode(tls->ssl, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_AUTO_RETRY);
  SSL_clear_mode(tls->ssl, SSL_MODE_ENABLE_PARTIAL_WRITE);
  if (UM_ABLATED(RELEASE_BUFFERS)) SSL_clear_mode(tls->ssl, SSL_MODE_RELEASE_BUFFERS);
  SSL_set_read_ahead(tls->ssl, 0);
  if (tls->server) SSL_set_accept_state(tls->ssl);
  return 0;
}

int um__tls_new(um_tls **out, um_reactor *r, int fd, SSL_CTX *ctx, const um_tls_options *options,
                bool server) {
  um_tls *tls = um__alloc(sizeof *tls);
  if (!tls) return -ENOMEM;
  um__conn_init(&tls->conn, fd);
  um__conn_attach(&tls->conn, r);
  tls->reactor = r;
  tls->server = server;
  tls->begun = um_now();
  tls->ctx = ctx;
  SSL_CTX_up_ref(ctx);
  *out = tls;
  if (!options) return 0;
  tls->flags = options->flags;
  if (options->hostname && !(tls->hostname = um__strdup(options->hostname))) return -ENOMEM;
  return um__conn_feed(&tls->conn, options->received, options->received_length);
}

void um__tls_free(um_tls *tls) {
  um__offload_orphan(tls);
  um__conn_discard_received(&tls->conn);
  um__conn_discard_output(&tls->conn);
  SSL_free(tls->ssl);
  SSL_CTX_free(tls->ctx);
  um__tls_drop_unread(tls);
  um__free(tls->hostname);
  um__free(tls);
}

static int wrap(um_tls **out, int fd, SSL_CTX *ctx, const um_tls_options *options, bool server) {
  static const um_tls_options none;
  um_task *task = um__task();
  um_tls *tls = NULL;
  if (!options) options = &none;
  *out = NULL;
  int result = !task ? UM_ENOTFIBER : 0;
  if (!server && !options->hostname && !(options->flags & UM_TLS_INSECURE)) result = -EINVAL;
  if (result == 0) result = um__tls_new(&tls, task->reactor, fd, ctx, options, server);
  if (result == 0) result = um__tls_make_ssl(tls);
  if (result == 0 && !server) result = set_up_client(tls, options);
  if (result == 0) {
    *out = tls;
    return 0;
  }
  if (tls) um__tls_free(tls);
  if (!(options->flags & UM_TLS_KEEP_FD)) close(fd);
  return result;
}

int um_tls_client(um_tls **out, int fd, SSL_CTX *ctx, const um_tls_options *options) {
  return wrap(out, fd, ctx, options, false);
}

int um_tls_server(um_tls **out, int fd, SSL_CTX *ctx, const um_tls_options *options) {
  return wrap(out, fd, ctx, options, true);
}

/* ---- the end of what we write ---- */

static int shut(SSL *ssl, void *buffer, size_t length, size_t *done) {
  (void)buffer, (void)length, (void)done;
  int result = SSL_shutdown(ssl);
  return result == 0 ? 1 : result; /* 0: sent, the peer's is not here yet */
}

int um__tls_notify(um_tls *tls) {
  if (!tls->ssl || !tls->shaken || tls->notified || tls->failed || tls->conn.output_error) return 0;
  if (SSL_in_init(tls->ssl)) um__ssl_call(tls, do_handshake, NULL, 0, NULL);
  tls->notified = true;
  int result = SSL_in_init(tls->ssl) ? 0 : um__ssl_call(tls, shut, NULL, 0, NULL);
  tls->conn.output_over = true;
  return result < 0 ? result : 0;
}

/* ---- looking ---- */

SSL *um_tls_ssl(um_tls *tls) { return tls->ssl; }
int um_tls_fd(const um_tls *tls) { return tls->conn.fd; }
const char *um_tls_error(const um_tls *tls) { return tls->message; }

X509 *um_tls_peer_certificate(um_tls *tls) {
  return tls->ssl ? SSL_get1_peer_certificate(tls->ssl) : NULL;
}

const char *um_tls_alpn(const um_tls *tls, unsigned *length) {
  const unsigned char *name = NULL;
  *length = 0;
  if (tls->ssl) SSL_get0_alpn_selected(tls->ssl, &name, length);
  return (const char *)name;
}

SSL_SESSION *um_tls_session(um_tls *tls) { return tls->ssl ? SSL_get1_session(tls->ssl) : NULL; }
