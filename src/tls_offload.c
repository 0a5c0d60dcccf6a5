/* Handshakes on worker threads: one step of SSL_do_handshake() with input and output of
 * its own, because the connection's queues are the reactor's. While it is out the stream
 * has no SSL, so nothing can touch it; a stream that ends meanwhile leaves it to done(). */
#include "tls_internal.h"

#include "reactor/alloc.h"
#include "reactor/worker.h"

struct um_offload {
  um__work work;
  um_tls *tls; /* NULL: it has ended */
  um_conn conn;
  BIO *bio;
  um_ssl_call call;
};

/* ---- policy ---- */

/* ECDSA with P-256 and Ed25519 take less time than the way to another thread and back is
 * worth; RSA-2048 takes ten times as long. */
static bool is_slow(const SSL_CTX *ctx) {
  EVP_PKEY *key = SSL_CTX_get0_privatekey(ctx);
  return key && EVP_PKEY_get_bits(key) > 256;
}

#define AUTO_IN_FLIGHT 32

bool um__offload_wanted(int policy, const SSL_CTX *ctx, uint64_t in_flight) {
  switch (policy) {
    case UM_TLS_OFFLOAD_NEVER: return false;
    case UM_TLS_OFFLOAD_ALWAYS: return true;
    case UM_TLS_OFFLOAD_AUTO: return is_slow(ctx) || in_flight > AUTO_IN_FLIGHT;
    default: return in_flight > (uint64_t)policy;
  }
}

/* Of those that OpenSSL can tell of. */
static bool has_callbacks(const SSL *ssl) {
  SSL_CTX *ctx = SSL_get_SSL_CTX(ssl);
  void (*keylog)(const SSL *, const char *) = SSL_CTX_get_keylog_callback(ctx);
  int (*status)(SSL *, void *) = NULL;
  SSL_CTX_get_tlsext_status_cb(ctx, &status);
  return SSL_get_verify_callback(ssl) || SSL_get_info_callback(ssl) || SSL_CTX_get_info_callback(ctx) ||
         SSL_CTX_get_client_cert_cb(ctx) || SSL_CTX_sess_get_new_cb(ctx) ||
         SSL_CTX_sess_get_get_cb(ctx) || SSL_CTX_sess_get_remove_cb(ctx) || status ||
         (keylog && keylog != um__keylog_line);
}

/* Without input there is next to nothing to compute. */
static bool is_offloaded(const um_tls *tls) {
  return tls->flags & UM_TLS_OFFLOAD && tls->conn.received &&
         (tls->flags & UM_TLS_THREADSAFE_CALLBACKS || !has_callbacks(tls->ssl));
}

/* ---- one step ---- */

static void run(um__work *work) { um__ssl_run(&((um_offload *)work)->call); }

static void take_back(um_offload *o) {
  um_tls *tls = o->tls;
  um__conn_return(&tls->conn, &o->conn);
  um__bio_use(o->bio, &tls->conn);
  tls->ssl = o->call.ssl;
  tls->bio = o->bio;
  tls->offload = NULL;
}

static void done(um__work *work) {
  um_offload *o = (um_offload *)work;
  um_tls *tls = o->tls;
  if (tls) {
    take_back(o);
    tls->step_taken = true;
    tls->step_result = um__ssl_judge(tls, &o->call);
    um__waitq_wake_all(&tls->input);
    if (tls->conn.owner && tls->step_ended) tls->step_ended(tls);
  } else {
    SSL_free(o->call.ssl);
    um__conn_discard_received(&o->conn);
    um__conn_discard_output(&o->conn);
  }
  um__free(o);
}

bool um__offload_step(um_tls *tls, um_ssl_function function) {
  um_offload *o = is_offloaded(tls) ? um__alloc(sizeof *o) : NULL;
  if (!o) return false;
  um__conn_init(&o->conn, -1);
  if (!um__conn_lend(&tls->conn, &o->conn)) {
    um__free(o);
    return false;
  }
  o->work = (um__work){.run = run, .done = done};
  o->tls = tls;
  o->bio = tls->bio;
  o->call = (um_ssl_call){.ssl = tls->ssl, .function = function};
  um__bio_use(o->bio, &o->conn);
  tls->ssl = NULL;
  tls->bio = NULL;
  tls->offload = o;
  if (um__work_submit(tls->reactor, &o->work) == 0) return true;
  take_back(o);
  um__free(o);
  return false;
}

void um__offload_orphan(um_tls *tls) {
  if (tls->offload) tls->offload->tls = NULL;
  tls->offload = NULL;
}
