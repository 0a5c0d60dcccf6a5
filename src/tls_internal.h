/* A TLS stream from the inside: shared by tls_stream.c, tls_read.c, tls_write.c,
 * tls_close.c and tls_server.c. */
#ifndef UM_TLS_INTERNAL_H
#define UM_TLS_INTERNAL_H

#include "bio_uring.h"
#include "reactor/conn.h"

#include <bio_uring/tls.h>

typedef struct um_offload um_offload;

struct um_tls {
  um_conn conn;
  SSL *ssl;              /* NULL on a server until the first byte came, and while a worker has it */
  SSL_CTX *ctx;
  BIO *bio;              /* ssl's */
  um_reactor *reactor;
  char *hostname;
  unsigned flags;
  um_time begun;
  bool server, shaken, notified; /* notified: close_notify was sent */
  bool shaking;          /* a fiber shakes hands; others wait in `shakers` */
  um_waitq shakers;
  um_offload *offload;   /* a step of the handshake is out on a worker */
  bool step_taken;       /* it came back, with this */
  int step_result;
  void (*step_ended)(struct um_tls *tls); /* called then, or NULL */
  bool awaited;          /* a fiber waits for ciphertext; others wait in `input` for it */
  um_waitq input;
  bool reading;          /* a fiber is in a reading call */
  bool writing;          /* a fiber holds the write side; others wait in `writers` */
  um_waitq writers;
  unsigned users;        /* calls that must leave before it is freed */
  um_task *closer;
  unsigned floods;       /* turns in a row used up by records without data */
  unsigned flood_limit;  /* of those, at most; 0: any number */
  int failed;            /* latched: nothing but close makes sense */
  char *unread;          /* plaintext before what OpenSSL has: given back, or read ahead */
  size_t unread_start, unread_end;
  bool unread_lent;      /* it is the serving fiber's buffer */
  char message[200];
};

/* Internal result: OpenSSL wants more ciphertext. */
#define UM_WANT_INPUT (-EAGAIN)
/* Internal result: a worker computes; nothing can be done before it has. */
#define UM_OFFLOADED (-EINPROGRESS)

/* Whether the calling fiber is one of the stream's reactor: 0 or why not. */
int um__tls_check_caller(const um_tls *tls);
/* Entry and exit of every public call that may wait. */
int um__tls_enter(um_tls *tls);
void um__tls_leave(um_tls *tls);

/* Latches what ended the stream, with words for um_tls_error(). Returns `code`. */
int um__tls_fail(um_tls *tls, int code, const char *what);
/* One uninterrupted SSL_* call on the shared stack. > 0 done, 0 the peer's
 * close_notify, UM_WANT_INPUT, or an error, explained in `message`. */
typedef int (*um_ssl_function)(SSL *ssl, void *buffer, size_t length, size_t *done);
int um__ssl_call(um_tls *tls, um_ssl_function function, void *buffer, size_t length, size_t *done);

/* The same in two parts, of which the first may run on any thread. */
typedef struct um_ssl_call {
  SSL *ssl;
  um_ssl_function function;
  void *buffer;
  size_t length, done;
  int result, error;
  unsigned long reason;
} um_ssl_call;
void um__ssl_run(void *call);
int um__ssl_judge(um_tls *tls, const um_ssl_call *call);

/* ---- handshakes on workers (tls_offload.c) ---- */
bool um__offload_wanted(int policy, const SSL_CTX *ctx, uint64_t in_flight);
/* False when it is to be done here and now. */
bool um__offload_step(um_tls *tls, um_ssl_function function);
/* What is out is thrown away when it comes back. */
void um__offload_orphan(um_tls *tls);
/* The callback of um_tls_ctx_keylog(), which any thread may call. */
void um__keylog_line(const SSL *ssl, const char *secret);

/* Gets the call after UM_WANT_INPUT: waits for ciphertext or for its turn. */
int um__tls_wait_input(um_tls *tls, um_time deadline);
/* Whether the peer leaves so many answers untaken that it is not read any further. */
bool um__tls_output_too_long(const um_tls *tls);
/* Waits for ciphertext, or until another fiber that does has got it. */
int um__tls_wait_readable(um_tls *tls, um_time deadline);
/* Half a ticket or KeyUpdate keeps OpenSSL from writing anything but data of its own:
 * waits for the other half. Sends a KeyUpdate of ours that is due. */
int um__tls_settle(um_tls *tls, um_time deadline);

/* Lets other connections go first. 0 or -ECANCELED. */
int um__tls_give_way(um_tls *tls);

/* Steps that never wait, for connections without a fiber. */
int um__tls_handshake_step(um_tls *tls);
/* > 0 plaintext is there, 0 clean end, UM_WANT_INPUT, or an error. What is there may be read
 * into `buffer`, which is then lent to the stream until um__tls_keep_unread(). */
int um__tls_fill_step(um_tls *tls, char *buffer, size_t length);
/* Moves what is unread out of a buffer that was lent. */
int um__tls_keep_unread(um_tls *tls);
/* Wipes and forgets it. */
void um__tls_drop_unread(um_tls *tls);
/* The same handshake, waiting. */
int um__tls_handshake(um_tls *tls, um_time deadline);

/* The write side, one fiber at a time. */
int um__tls_lock_write(um_tls *tls, um_time deadline);
void um__tls_unlock_write(um_tls *tls);

/* A server stream whose SSL is made when it is first needed. */
int um__tls_new(um_tls **out, um_reactor *reactor, int fd, SSL_CTX *ctx,
                const um_tls_options *options, bool server);
/* A client's still has to be told what it is to verify. */
int um__tls_make_ssl(um_tls *tls);
void um__tls_free(um_tls *tls);
/* close_notify into the output queue, if it can still be sent. 0 or why OpenSSL made none. */
int um__tls_notify(um_tls *tls);

#endif
