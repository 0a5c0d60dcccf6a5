/* tls_stream: TLS connections for fibers.
 *
 * An um_tls is a connected socket, an SSL and their buffers. It belongs to the
 * reactor it was created on and is used from that reactor's fibers: one fiber may
 * read while others write. Writers take turns (their bytes never interleave), a
 * second reader gets UM_EREENTRANT.
 *
 * Writing is write-behind: um_tls_write() encrypts into a buffer and returns; the
 * bytes leave when a fiber next waits. Above the reactor's send_limit writers
 * park until the peer has taken some. An error found later is kept and returned
 * by the next write, flush, shutdown or close.
 *
 * OpenSSL runs on a stack shared by the whole reactor, so fibers need only small
 * stacks. Callbacks of the SSL_CTX (ALPN, SNI, verify, session, keylog, info) run
 * there too: they must not wait (waiting calls return UM_ENOTFIBER there) nor use
 * this um_tls.
 *
 * After -ETIMEDOUT or -ECANCELED a connection is as usable as before the call.
 * After UM_ETLS, UM_EVERIFY or a socket error only close makes sense.
 * 0-RTT (early data) is off: it can be replayed (RFC 8446 section 8).
 *
 * In the child of a fork(2) every call that may wait returns UM_EFORKED; close and abort
 * then free the child's copy and close its descriptor. The parent's connection goes on.
 */
#ifndef BIO_URING_TLS_H
#define BIO_URING_TLS_H

#include <bio_uring/base.h>
#include <bio_uring/reactor.h>
#include <openssl/ssl.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct um_tls um_tls;

/* ---- contexts ---- */

/* The defaults this library stands behind, on a context of the caller's: TLS 1.2
 * and 1.3, AEAD ciphers only, server preference, no renegotiation, no compression,
 * one session ticket a handshake, good for two hours and with forward secrecy
 * (um_tls_ctx_tickets() for its keys), chain built once (SSL_MODE_NO_AUTO_CHAIN), buffers
 * released when idle. SSL_OP_CLEANSE_PLAINTEXT, which also wipes OpenSSL's copies of what was
 * received, is not among them: it wipes 16 KiB for each record (docs/decisions/0012).
 * Effect on a full TLS 1.3 handshake, measured by the prototypes on another machine (OpenSSL
 * 3.0, 173 us of CPU): the chain built once -72 us where the CA is in the trust store, one ticket
 * in place of two -10 to -14 us.
 * 0 or UM_ETLS. */
UM_API int um_tls_ctx_defaults(SSL_CTX *ctx);

/* A server context with those defaults and a certificate chain and key (PEM).
 * The message names the file and what is wrong. UM_ECERT, -ENOMEM. */
UM_API int um_tls_ctx_server(SSL_CTX **out, const char *chain_file, const char *key_file,
                             um_error *error);
/* A client context that verifies against `ca_file` (PEM), or the system's trust
 * store for NULL. UM_ECERT, -ENOMEM. */
UM_API int um_tls_ctx_client(SSL_CTX **out, const char *ca_file, um_error *error);

/* Keys of session tickets, to be shared by contexts, reactors and threads, so that a session
 * is resumed wherever its client comes back to. Without, each context has keys of its own
 * that never change: who steals them can read all that was ever resumed with them by TLS 1.2. */
typedef struct um_ticket_keys um_ticket_keys;
/* A random key; after each period (in seconds; 0: 3,600) another one is used, and the two
 * before it still open tickets. -ENOMEM, UM_ETLS. */
UM_API int um_ticket_keys_create(um_ticket_keys **out, unsigned period_seconds);
/* Takes the keys of a file instead, for several hosts, or across restarts: 1 to 8 keys of 80
 * random bytes each, as nginx has them. The first is used, all open tickets; they change
 * when they are loaded again and not by themselves. Any thread. On failure those that were
 * there stay. UM_ECERT; the message says why. */
UM_API int um_ticket_keys_load(um_ticket_keys *keys, const char *file, um_error *error);
/* Uses a new random key now; the two before it still open tickets. Any thread. UM_ETLS. */
UM_API int um_ticket_keys_rotate(um_ticket_keys *keys);
/* Drops the caller's reference; contexts that use the keys have their own. NULL is fine. */
UM_API void um_ticket_keys_free(um_ticket_keys *keys);
/* Makes a server's context use them; before its first connection. -ENOMEM, UM_ETLS. */
UM_API int um_tls_ctx_tickets(SSL_CTX *ctx, um_ticket_keys *keys);

/* ---- making connections ---- */

#define UM_TLS_INSECURE 0x1u   /* client: accept any certificate and any name */
#define UM_TLS_KEEP_FD 0x2u    /* closing leaves the descriptor open */
/* Computes the handshake on a worker thread (see um_tls_server_config.offload); meanwhile
 * only this stream's fibers wait and um_tls_ssl() is NULL. Callbacks of the SSL and its
 * context are called on that thread: with those that OpenSSL tells of (verify, info, client
 * certificate, session, status, and key log but for um_tls_ctx_keylog()) nothing is offloaded
 * unless UM_TLS_THREADSAFE_CALLBACKS says that they may be. OpenSSL does not tell of ALPN, SNI,
 * ClientHello, certificate, PSK, ticket, cookie and message callbacks: asking for offload says
 * that those may be called on any thread. */
#define UM_TLS_OFFLOAD 0x8u
#define UM_TLS_THREADSAFE_CALLBACKS 0x10u

/* Appends the secrets of this context's connections to `file` (created for its owner
 * only), in the format of NSS and Wireshark: whoever reads it can decrypt what was
 * recorded. NULL means the file named by the environment's SSLKEYLOGFILE, if any: without
 * it, or in a process with raised privileges (secure_getenv(3)), nothing is logged. A
 * line that cannot be written at once (a full disk, a FIFO whose reader is slow) is dropped, the
 * first of a process with a warning of the log. A FIFO needs a reader, or it is -ENXIO.
 * Before the context is used. 1 when secrets are logged from now on, 0 when not; -errno of
 * open(2), -ENOMEM. */
UM_API int um_tls_ctx_keylog(SSL_CTX *ctx, const char *file, um_error *error);


/* Zero or NULL in any field means the default. Nothing is kept but copies. */
typedef struct um_tls_options {
  const char *hostname;     /* client: name (or IP literal) to verify; names are sent as SNI.
                               um_tls_connect() takes its host when NULL */
  const char *alpn;         /* client: comma-separated, most wanted first: "h2,http/1.1" */
  SSL_SESSION *session;     /* client: session to resume; the caller's reference stays */
  const void *received;     /* bytes already read from the socket (STARTTLS) */
  size_t received_length;
  unsigned flags;           /* UM_TLS_* */
} um_tls_options;

/* Wraps a connected socket; it is the stream's from here on, also on failure
 * unless UM_TLS_KEEP_FD. The context is the caller's and is referenced. A client
 * without a hostname must say UM_TLS_INSECURE (-EINVAL otherwise).
 * -ENOMEM, -EINVAL, UM_ENOTFIBER, UM_ETLS. */
UM_API int um_tls_client(um_tls **out, int fd, SSL_CTX *ctx, const um_tls_options *options);
/* The same for the accepting side. */
UM_API int um_tls_server(um_tls **out, int fd, SSL_CTX *ctx, const um_tls_options *options);

/* Resolves `host` off the reactor's thread, races its IPv6 and IPv4 addresses
 * (RFC 8305, 250 ms apart), wraps and shakes hands; SNI and verification of the
 * name are on unless UM_TLS_INSECURE. IP literals are verified as addresses and
 * send no SNI. `error` (may be NULL) gets host, port and reason.
 * UM_ERESOLVE, UM_EVERIFY, UM_ETLS, the socket's errors, -ETIMEDOUT, -ECANCELED. */
UM_API int um_tls_connect(um_tls **out, const char *host, const char *port, SSL_CTX *ctx,
                          const um_tls_options *options, um_time deadline, um_error *error);

/* Only the resolving and racing part: a connected TCP socket, or an error. */
UM_API int um_tcp_connect(const char *host, const char *port, um_time deadline, um_error *error);

/* A listening TCP socket on "host:port" ("[::1]:443", ":8443" for any address,
 * port 0 picks one). UM_TCP_REUSEPORT shares the port between reactors. The
 * message says which of resolve, bind (in use, not permitted) or listen failed. */
#define UM_TCP_REUSEPORT 0x1u
UM_API int um_tcp_listen(const char *address, unsigned flags, um_error *error);

/* Optional: read and write shake hands when it has not been done.
 * UM_EVERIFY, UM_ETLS, UM_EPLAINTEXT, UM_ETRUNCATED, -ECONNRESET, ... */
UM_API int um_tls_handshake(um_tls *tls, um_time deadline);

/* ---- reading ---- */

/* At least one byte, at most `length`. 0 is the peer's close_notify: a clean end.
 * UM_ETRUNCATED is EOF without it. */
UM_API ssize_t um_tls_read(um_tls *tls, void *buffer, size_t length, um_time deadline);
/* Exactly `length` bytes or an error; 0 when the peer closed before the first.
 * Whatever had arrived before an error is kept for the next read. */
UM_API ssize_t um_tls_read_exact(um_tls *tls, void *buffer, size_t length, um_time deadline);
/* Up to and including `delimiter` (`delimiter_length` bytes). UM_ETOOLONG when
 * `length` bytes came without it. Kept for the next read as above. Bytes of `buffer`
 * beyond the result are overwritten. */
UM_API ssize_t um_tls_read_until(um_tls *tls, void *buffer, size_t length, const void *delimiter,
                                 size_t delimiter_length, um_time deadline);
/* Plaintext bytes that can be read without waiting. */
UM_API size_t um_tls_pending(const um_tls *tls);

/* ---- writing ---- */

/* Everything. Returns `length`, an error, or a short count when the deadline, a
 * cancellation or an error struck after that many bytes were taken: call again
 * with the rest to learn which, or to go on. */
UM_API ssize_t um_tls_write(um_tls *tls, const void *buffer, size_t length, um_time deadline);
/* The same from several buffers; small ones share records. */
UM_API ssize_t um_tls_writev(um_tls *tls, const struct iovec *iov, int count, um_time deadline);
/* Waits until the kernel has taken everything written so far. */
UM_API int um_tls_flush(um_tls *tls, um_time deadline);
/* Asks for new keys (TLS 1.3). With `request_peer` the peer changes its keys too.
 * The message leaves when a fiber next waits. UM_ETLS. */
UM_API int um_tls_key_update(um_tls *tls, int request_peer, um_time deadline);

/* ---- ending ---- */

/* Sends close_notify and FIN: the write side is closed, reading goes on.
 * Idempotent. */
UM_API int um_tls_shutdown(um_tls *tls, um_time deadline);
/* Sends what is buffered and close_notify, until the deadline at most, then frees
 * everything whatever is returned: 0, or why bytes may not have arrived. A fiber
 * still waiting on the stream gets UM_ECLOSED. */
UM_API int um_tls_close(um_tls *tls, um_time deadline);
/* Frees without flushing; the peer sees a reset or a truncation. */
UM_API void um_tls_abort(um_tls *tls);
/* Ends TLS but not the connection (STARTTLS the other way): sends close_notify,
 * waits for the peer's, frees the stream, returns the descriptor. Bytes of the
 * peer that followed its close_notify are stored in *leftover (free(3) it) and
 * *leftover_length. On failure the stream is still there. */
UM_API int um_tls_unwrap(um_tls *tls, void **leftover, size_t *leftover_length, um_time deadline);

/* ---- looking ---- */

/* For asking questions (cipher, version, certificates); never for SSL_read(),
 * SSL_write() or the like. NULL on a served connection before its first byte, and while a
 * worker has its handshake (UM_TLS_OFFLOAD). */
UM_API SSL *um_tls_ssl(um_tls *tls);
/* The socket. Still the stream's. */
UM_API int um_tls_fd(const um_tls *tls);
/* What went wrong last on this stream, in words; "" when nothing did. Valid until
 * the next call on it. */
UM_API const char *um_tls_error(const um_tls *tls);
/* A new reference (X509_free() it) or NULL. */
UM_API X509 *um_tls_peer_certificate(um_tls *tls);
/* The negotiated protocol, not terminated; *length 0 when none. */
UM_API const char *um_tls_alpn(const um_tls *tls, unsigned *length);
/* A new reference (SSL_SESSION_free() it) or NULL. In TLS 1.3 tickets arrive after
 * the handshake, with the first reads. */
UM_API SSL_SESSION *um_tls_session(um_tls *tls);

/* ---- serving ---- */

/* Called in a fiber of its own when a connection has data to read, after its
 * handshake. Returns UM_TLS_PARK to be called again, in a new fiber, when more
 * arrives: a parked connection holds no fiber. Anything else ends the connection:
 * UM_TLS_CLOSE flushes and sends close_notify, a negative code aborts it.
 * What must survive parking hangs on `*data`, NULL at first. */
typedef int (*um_tls_handler)(um_tls *tls, void **data, void *arg);
enum { UM_TLS_CLOSE = 0, UM_TLS_PARK = 1 };

typedef struct um_tls_server_config {
  SSL_CTX *ctx;                    /* referenced */
  um_tls_handler handler;
  void *arg;
  /* Called once per connection when it is about to end, with what the handler hung on
   * *data and why it ends: 0, or a negative code. The stream is there for looking
   * (um_tls_error(), um_tls_fd()) and must not be read, written or closed. May be NULL. */
  void (*closed)(um_tls *tls, void *data, void *arg, int reason);
  unsigned handshake_timeout_ms;   /* 0 = 10,000 */
  unsigned idle_timeout_ms;        /* parked without a byte; 0 = 60,000; UINT_MAX = never */
  unsigned max_connections;        /* accepting stops there, resumes below; with a listen(2)
                                      backlog above 4,096 some more may be accepted; 0 = 100,000 */
  unsigned flags;                  /* UM_TLS_GREET, UM_TLS_THREADSAFE_CALLBACKS */
  unsigned max_per_address;        /* of those, from one IPv4 address or one IPv6 /64; more are
                                      closed at once; 0 = no limit */
  unsigned hello_limit;            /* bytes of a ClientHello, with the headers of its records, at
                                      most receive_limit; what is longer ends with UM_ETOOLONG.
                                      Until it is complete a connection costs no more memory than
                                      its bytes and 2 KB; 0 = 8,192 */
  unsigned handshake_limit;        /* bytes a peer may send until its handshake is done, or it
                                      ends with UM_ETOOLONG; 0 = 65,536 */
  unsigned max_floods;             /* turns in a row that a peer may use up with records without
                                      data (KeyUpdate, renegotiation), 16 of them each, or it ends
                                      with UM_ETOOLONG; 0 = any number: they never cost others
                                      more than a turn */
  int offload;                     /* which handshakes are computed on worker threads, at most one
                                      a processor, at nice +10, so that a storm of handshakes does
                                      not hold up connections that are established: UM_TLS_OFFLOAD_*,
                                      or above n > 0 handshakes in flight; see UM_TLS_OFFLOAD about
                                      callbacks. What workers allocate stays in malloc arenas of
                                      theirs (glibc). What is not offloaded waits while there is
                                      other work, for 200 us at most; then it has as long, or a
                                      fifth of the loop's time up to 1 ms, and at least one step of
                                      one handshake. A peer that has reset its connection by then
                                      costs none, nor one whose time is over */
} um_tls_server_config;
enum {
  UM_TLS_OFFLOAD_NEVER = 0,
  UM_TLS_OFFLOAD_ALWAYS = -1,
  UM_TLS_OFFLOAD_AUTO = -2,        /* keys slower than P-256 and Ed25519 (RSA, say), and others
                                      above 32 handshakes in flight */
};
/* Start the handler right after the handshake, without waiting for data: for
 * protocols in which the server speaks first. */
#define UM_TLS_GREET 0x4u

typedef struct um_tls_listener um_tls_listener;

/* Serves connections of `listen_fd` (which stays the caller's) on the current
 * reactor, from fibers of its own, until stopped. -ENOMEM, -EINVAL, UM_ENOTFIBER. */
UM_API int um_tls_serve(um_tls_listener **out, int listen_fd, const um_tls_server_config *config);
/* Gives connections accepted from now on another context (certificates, keys, ...); those
 * that are there keep theirs. It is referenced. From the listener's reactor; never waits.
 * To keep sessions resumable, give both contexts the same um_ticket_keys.
 * -EINVAL, UM_EWRONGTHREAD, UM_EFORKED. */
UM_API int um_tls_listener_set_ctx(um_tls_listener *listener, SSL_CTX *ctx);
/* Stops accepting, lets running handlers finish and closes parked connections
 * with close_notify; at the deadline cancels what is left. Then frees. Meanwhile the kernel
 * still queues who connects: shutdown(2) of the listening socket before it refuses them. From a
 * fiber. 0, or -ETIMEDOUT when handlers had to be cancelled. */
UM_API int um_tls_listener_stop(um_tls_listener *listener, um_time deadline);

typedef struct um_tls_listener_stats {
  uint64_t accepted;   /* connections taken */
  uint64_t handshakes; /* completed */
  uint64_t failed;     /* ended before their handshake had */
  uint64_t timed_out;  /* handshake or idle deadline passed */
  uint64_t too_slow;   /* ended by their handler with -ETIMEDOUT: a whole read or write took too long */
  uint64_t too_much;   /* ended with UM_ETOOLONG: hello_limit, handshake_limit, max_floods */
  uint64_t refused;    /* closed at once: max_per_address */
  uint64_t pauses;     /* times accepting stopped at max_connections */
  uint64_t offloaded;  /* handshakes given to worker threads */
  uint64_t shaking;    /* gauge: handshakes in flight, from the complete ClientHello on */
  uint64_t trims;      /* times free memory was given back to the system: a second after half of
                          the connections, and 100 at least, have gone (malloc_trim(3)) */
  uint64_t open;       /* gauge: connections alive */
  uint64_t parked;     /* gauge: of those, without a fiber */
} um_tls_listener_stats;
/* From the listener's reactor. */
UM_API void um_tls_listener_stats_get(const um_tls_listener *listener, um_tls_listener_stats *out);

#ifdef __cplusplus
}
#endif
#endif
