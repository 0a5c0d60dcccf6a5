/* What the baseline server and the load generator share: nothing of libbio_uring. */
#ifndef BENCH_UTIL_H
#define BENCH_UTIL_H

#include <stdint.h>
#include <sys/socket.h>

/* Prints "PROGRAM: message" and OpenSSL's reason, if it has one, and exits with 1. */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A positive number, or exit with a line that names the option. */
unsigned long number(const char *option, const char *text);

/* Splits HOST:PORT or [HOST]:PORT and resolves it. */
void resolve(const char *address, int passive, struct sockaddr_storage *out, socklen_t *length);

/* As many descriptors as this user may have. */
void raise_descriptor_limit(void);

/* The default congestion control of some machines (BBR) paces, and makes bulk over
 * loopback jump between two throughputs. */
void use_cubic(int fd);

int64_t now_ns(void);

/* What the load asks of HTTP servers. */
extern const char http_request[];
extern const size_t http_request_length;

/* The one cipher suite (and its TLS 1.2 counterpart) that clients offer, so that every
 * server uses it whatever it would rather have. False when OpenSSL refuses it. */
struct ssl_ctx_st;
int use_one_cipher(struct ssl_ctx_st *client_context);

#endif
