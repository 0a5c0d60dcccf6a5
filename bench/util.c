#define _GNU_SOURCE
#include "util.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

_Noreturn void fail(const char *format, ...) {
  va_list arguments;
  unsigned long reason = ERR_peek_error();

  fprintf(stderr, "%s: ", program_invocation_short_name);
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  if (reason) fprintf(stderr, ": %s", ERR_error_string(reason, NULL));
  fputc('\n', stderr);
  exit(1);
}

unsigned long number(const char *option, const char *text) {
  char *end;
  errno = 0;
  unsigned long value = strtoul(text, &end, 10);
  if (errno || *end || text[0] == '-' || value == 0)
    fail("--%s wants a positive number, not '%s'", option, text);
  return value;
}

void resolve(const char *address, int passive, struct sockaddr_storage *out, socklen_t *length) {
  const struct addrinfo hints = {
    .ai_socktype = SOCK_STREAM,
    .ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0),
  };
  struct addrinfo *found;
  char host[256];
  const char *colon = strrchr(address, ':');
  if (!colon || (size_t)(colon - address) >= sizeof host)
    fail("'%s' is not HOST:PORT", address);

  const char *start = address, *end = colon;
  if (end - start >= 2 && *start == '[' && end[-1] == ']') start++, end--;
  snprintf(host, sizeof host, "%.*s", (int)(end - start), start);
  int error = getaddrinfo(*host ? host : NULL, colon + 1, &hints, &found);
  if (error) fail("cannot resolve '%s': %s", address, gai_strerror(error));
  memcpy(out, found->ai_addr, found->ai_addrlen);
  *length = found->ai_addrlen;
  freeaddrinfo(found);
}

void raise_descriptor_limit(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit)) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

void use_cubic(int fd) {
  if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5))
    fail("this kernel does not offer cubic congestion control: %s", strerror(errno));
}

int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

const char http_request[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const size_t http_request_length = sizeof http_request - 1;

int use_one_cipher(SSL_CTX *context) {
  return SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") == 1 &&
         SSL_CTX_set_cipher_list(context, "ECDHE-ECDSA-AES128-GCM-SHA256:"
                                          "ECDHE-RSA-AES128-GCM-SHA256") == 1 &&
         SSL_CTX_set1_groups_list(context, "X25519:P-256") == 1;
}
