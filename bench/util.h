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

#endif
