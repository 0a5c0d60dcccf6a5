/* What the tests of the BIO and of TLS streams share: a reactor around a fiber, socket
 * pairs, contexts, a plain OpenSSL peer on a blocking socket in a thread of its own,
 * bytes that say where they belong, and fibers struck at their n-th wait.
 *
 * Fibers and threads check with CHECK(), which aborts: Criterion's own asserts jump
 * and must not leave a fiber's stack. */
#ifndef TEST_SUPPORT_H
#define TEST_SUPPORT_H

#include <bio_uring/bio.h>
#include <bio_uring/fiber.h>
#include <bio_uring/host.h>
#include <bio_uring/io.h>
#include <bio_uring/sync.h>
#include <bio_uring/tls.h>

#include <criterion/criterion.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- checks ---- */

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) check_failed(__FILE__, __LINE__, #condition, 0, 0, false); \
  } while (0)

/* Two integers; error codes are named when they differ. */
#define CHECK_EQ(got, wanted)                                                         \
  do {                                                                                \
    long long check_got = (long long)(got), check_wanted = (long long)(wanted);       \
    if (check_got != check_wanted)                                                    \
      check_failed(__FILE__, __LINE__, #got " == " #wanted, check_got, check_wanted, true); \
  } while (0)

#define CHECK_HAS(text, part)                                                   \
  do {                                                                          \
    if (!strstr((text), (part))) check_lacks(__FILE__, __LINE__, (text), (part)); \
  } while (0)

_Noreturn void check_failed(const char *file, int line, const char *what, long long got,
                            long long wanted, bool values);
_Noreturn void check_lacks(const char *file, int line, const char *text, const char *part);

/* Every test has a watchdog, and fails if it leaks where the build can tell. */
void no_leaks(void);
#define SUITE(name) TestSuite(name, .timeout = 300, .fini = no_leaks)

/* ---- a reactor around a fiber ---- */

typedef int (*fiber_fn)(void *);
/* Runs main(argument) until all fibers ended, checks that nothing is left with the
 * kernel and no buffer is held, and returns main's result. */
int run_fibers(fiber_fn main, void *argument);
int run_fibers_with(const um_reactor_config *config, fiber_fn main, void *argument);
um_fiber *spawn(fiber_fn fn, void *argument);
/* Joins; what the fiber returned. */
int join(um_fiber *fiber);

/* ---- sockets ---- */

/* A connected pair of TCP sockets over loopback, or of local ones. */
void tcp_pair(int fds[2]);
void local_pair(int fds[2]);
/* A listener on a free port of 127.0.0.1. */
int listener(char port[8]);
int dial(const char *port);
unsigned open_fds(void);
void set_buffers(int fd, int bytes);

/* ---- contexts ---- */

/* A path below the folder of test certificates; static, four at a time. */
const char *cert(const char *name);
/* The library's, restricted to one version (0: both). */
SSL_CTX *um_server_ctx(const char *name, int version);
SSL_CTX *um_client_ctx(int version);
/* Plain OpenSSL's. */
SSL_CTX *plain_server_ctx(const char *name, int version);
SSL_CTX *plain_client_ctx(int version);

/* ---- the plain peer ---- */

typedef struct peer {
  SSL *ssl;
  int fd;
  void *argument;
  /* for scripts */
  size_t count;
  int result, error;
  pthread_t thread;
  void (*script)(struct peer *peer);
  bool keeps_fd;
  volatile bool done;
} peer;

/* Runs the script with an SSL on the blocking socket, whose handshake is the script's
 * business (peer_shake()); SSL_free() and close() follow. With no context there is no SSL. */
void peer_start(peer *p, int fd, SSL_CTX *ctx, bool server, void (*script)(peer *), void *argument);
/* In a fiber, the others run meanwhile. */
void peer_join(peer *p);
void peer_shake(peer *p);
void peer_write(peer *p, const void *bytes, size_t length);
void peer_read(peer *p, void *bytes, size_t length);
/* Reads to the end: how many bytes; CHECKs that it was close_notify. */
size_t peer_drain(peer *p);

/* Ready-made scripts; each shakes hands first. */
void peer_echo(peer *p);           /* until close_notify, answers it */
void peer_sink_pattern(peer *p);   /* checks the pattern, answers close_notify; p->count */
void peer_expects_failure(peer *p);/* the handshake fails: p->error is the reason */

/* ---- bytes that say where they belong ---- */

void pattern(void *bytes, size_t length, uint64_t offset);
bool is_pattern(const void *bytes, size_t length, uint64_t offset);

/* ---- striking a fiber at its n-th wait ---- */

enum strike { STRIKE_CANCEL, STRIKE_DEADLINE };
/* The calling fiber's wait number `at` (from 0) is struck as soon as it begins. A
 * deadline only strikes waits that have one. */
void strike_me(enum strike how, unsigned at);
/* Whether it happened; stops counting. */
bool strike_end(void);
/* The code that a struck call is to return. */
int strike_code(enum strike how);

/* ---- failing allocations ---- */

/* Makes the n-th allocation of the library from now on fail (from 0), once. */
void fail_allocation(unsigned n);
/* Whether it was reached; allocations succeed again. */
bool allocation_failed(void);

#endif
