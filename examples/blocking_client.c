/* blocking_client HOST PORT COUNT [CA.pem]: COUNT HTTPS requests, one after the other.
 *
 * Plain OpenSSL; no header of this library. async_client.c is the same program with
 * two lines of fetch() changed, and runs all the requests at once. */
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct job {
  const char *host;
  const struct addrinfo *address;
  SSL_CTX *ctx;
  long count, replies, bytes;
};

static int fetch(void *arg) {
  struct job *job = arg;
  const struct addrinfo *to = job->address;
  char buffer[4096];
  int n = 0, bytes = 0, done = 0;

  int fd = socket(to->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  SSL *ssl = SSL_new(job->ctx);
  if (fd < 0 || !ssl || !SSL_set_tlsext_host_name(ssl, job->host)) goto out;
  if (!SSL_set1_host(ssl, job->host)) goto out;
  if (connect(fd, to->ai_addr, to->ai_addrlen) != 0) goto out;
  SSL_set_fd(ssl, fd);
  if (SSL_connect(ssl) != 1) goto out;
  n = snprintf(buffer, sizeof buffer, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", job->host);
  if (SSL_write(ssl, buffer, n) != n) goto out;
  while ((n = SSL_read(ssl, buffer, sizeof buffer)) > 0) bytes += n;
  if (SSL_get_error(ssl, n) != SSL_ERROR_ZERO_RETURN) goto out;
  SSL_shutdown(ssl);
  job->replies++;
  job->bytes += bytes;
  done = 1;
out:
  if (!done) fprintf(stderr, "%s: request failed\n", job->host);
  ERR_print_errors_fp(stderr);
  SSL_free(ssl);
  if (fd >= 0) close(fd);
  return 0;
}

static int fetch_all(void *arg) {
  struct job *job = arg;
  for (long i = 0; i < job->count; i++) fetch(job);
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 4 && argc != 5) {
    fprintf(stderr, "usage: blocking_client HOST PORT COUNT [CA.pem]\n");
    return 2;
  }
  struct addrinfo *found, hints = {.ai_socktype = SOCK_STREAM};
  int failure = getaddrinfo(argv[1], argv[2], &hints, &found);
  if (failure != 0) {
    fprintf(stderr, "blocking_client: %s: %s\n", argv[1], gai_strerror(failure));
    return 1;
  }
  struct job job = {argv[1], found, SSL_CTX_new(TLS_client_method()), atol(argv[3]), 0, 0};
  int ok = argc == 5 ? SSL_CTX_load_verify_locations(job.ctx, argv[4], NULL)
                     : SSL_CTX_set_default_verify_paths(job.ctx);
  SSL_CTX_set_verify(job.ctx, SSL_VERIFY_PEER, NULL);
  signal(SIGPIPE, SIG_IGN);
  if (!ok) ERR_print_errors_fp(stderr);
  if (ok) fetch_all(&job);
  printf("%ld of %ld replies, %ld bytes\n", job.replies, job.count, job.bytes);
  SSL_CTX_free(job.ctx);
  freeaddrinfo(found);
  return job.replies == job.count ? 0 : 1;
}
