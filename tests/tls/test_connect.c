/* By name: resolving, racing, refusing; and listening. */
#include "support.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <netinet/in.h>

SUITE(connect);

/* A name with an address of each family, whatever this machine's resolver knows. */
int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                struct addrinfo **out) {
  __typeof__(getaddrinfo) *real;
  *(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
  if (!host || strcmp(host, "both.test")) return real(host, port, hints, out);
  if (hints->ai_flags & AI_NUMERICHOST) return EAI_NONAME;
  struct addrinfo **end = out;
  for (int i = 0, result; i < 2; i++) {
    if ((result = real(i ? "127.0.0.1" : "::1", port, hints, end))) return result;
    while (*end) end = &(*end)->ai_next;
  }
  return 0;
}

/* A port nobody listens on, for now. */
static void free_port(char port[8]) { close(listener(port)); }

static int refused(void *argument) {
  char port[8];
  um_error error;
  um_tls *tls = (um_tls *)argument;
  SSL_CTX *ctx = um_client_ctx(0);
  unsigned before = open_fds();
  free_port(port);
  CHECK_EQ(um_tls_connect(&tls, "127.0.0.1", port, ctx, NULL, UM_FOREVER, &error), -ECONNREFUSED);
  CHECK(!tls);
  CHECK_EQ(error.code, -ECONNREFUSED);
  CHECK_HAS(error.message, "127.0.0.1");
  CHECK_HAS(error.message, port);
  CHECK_HAS(error.message, "refused");
  CHECK_EQ(um_tcp_connect("both.test", port, UM_FOREVER, NULL), -ECONNREFUSED);
  CHECK_EQ(um_tcp_connect("no-such-host.invalid", port, UM_FOREVER, &error), UM_ERESOLVE);
  CHECK_HAS(error.message, "no-such-host.invalid");
  CHECK_EQ(um_tls_connect(&tls, "127.0.0.1", "no-such-service", ctx, NULL, UM_FOREVER, &error), UM_ERESOLVE);
  CHECK_EQ(open_fds(), before);
  SSL_CTX_free(ctx);
  return 0;
}
Test(connect, refused_and_unresolvable) { run_fibers(refused, NULL); }

Test(connect, needs_a_fiber) {
  um_error error;
  CHECK_EQ(um_tcp_connect("127.0.0.1", "1", UM_FOREVER, &error), UM_ENOTFIBER);
  CHECK_HAS(error.message, "fiber");
}

static int serves_one(void *argument) {
  int fd = accept(*(int *)argument, NULL, NULL);
  CHECK(fd >= 0);
  return fd;
}

/* "both.test" is ::1 first; only 127.0.0.1 listens. */
static int falls_back(void *argument) {
  char port[8];
  int at = listener(port);
  um_error error;
  (void)argument;
  int fd = um_tcp_connect("both.test", port, um_after(10000), &error);
  CHECK(fd >= 0);
  int other = serves_one(&at);
  close(other), close(fd), close(at);
  return 0;
}
Test(connect, falls_back_to_ipv4) { run_fibers(falls_back, NULL); }

static void echo_accepted(peer *p) {
  p->fd = accept(*(int *)p->argument, NULL, NULL);
  CHECK(p->fd >= 0);
  SSL_set_fd(p->ssl, p->fd);
  p->result = SSL_do_handshake(p->ssl);
  if (p->result != 1) return;
  char byte;
  while (SSL_read(p->ssl, &byte, 1) == 1) SSL_write(p->ssl, &byte, 1);
  SSL_shutdown(p->ssl);
}

static int tls_by_name(void *argument) {
  const char *host = argument;
  char port[8], byte;
  int at = listener(port);
  um_error error;
  um_tls *tls;
  peer p;
  SSL_CTX *ctx = um_client_ctx(0), *theirs = plain_server_ctx("server", 0);
  peer_start(&p, -1, theirs, true, echo_accepted, &at);
  CHECK_EQ(um_tls_connect(&tls, host, port, ctx, NULL, um_after(10000), &error), 0);
  CHECK_EQ(error.code, 0);
  CHECK_EQ(um_tls_write(tls, "x", 1, UM_FOREVER), 1);
  CHECK_EQ(um_tls_read(tls, &byte, 1, UM_FOREVER), 1);
  const char *sni = SSL_get_servername(p.ssl, TLSEXT_NAMETYPE_host_name);
  CHECK(strcmp(host, "localhost") ? !sni : sni && !strcmp(sni, "localhost"));
  CHECK_EQ(um_tls_close(tls, UM_FOREVER), 0);
  peer_join(&p);
  close(at);
  SSL_CTX_free(ctx);
  SSL_CTX_free(theirs);
  return 0;
}
Test(connect, by_name) { run_fibers(tls_by_name, (char[]){"localhost"}); }
Test(connect, by_address) { run_fibers(tls_by_name, (char[]){"127.0.0.1"}); }

/* The error says who; nothing is left open, whoever was to own the descriptor. */
static int wrong_certificate(void *argument) {
  char port[8];
  int at = listener(port);
  um_error error;
  SSL_CTX *ctx = um_client_ctx(0), *theirs = plain_server_ctx("wrongname", 0);
  unsigned before = open_fds();
  (void)argument;
  for (unsigned i = 0; i < 2; i++) {
    um_tls *tls;
    peer p;
    um_tls_options options = {.flags = i ? UM_TLS_KEEP_FD : 0};
    peer_start(&p, -1, theirs, true, echo_accepted, &at);
    CHECK_EQ(um_tls_connect(&tls, "localhost", port, ctx, &options, um_after(10000), &error), UM_EVERIFY);
    CHECK_HAS(error.message, "localhost");
    CHECK_HAS(error.message, port);
    CHECK_HAS(error.message, "mismatch");
    CHECK(!tls);
    peer_join(&p);
    CHECK_EQ(open_fds(), before);
  }
  close(at);
  SSL_CTX_free(ctx);
  SSL_CTX_free(theirs);
  return 0;
}
Test(connect, wrong_certificate) { run_fibers(wrong_certificate, NULL); }

/* ---- deadlines and cancellation ---- */

static int never_answers(void *argument) {
  char port[8];
  int at = listener(port);
  um_error error;
  um_tls *tls;
  SSL_CTX *ctx = um_client_ctx(0);
  unsigned before = open_fds();
  (void)argument;
  CHECK_EQ(um_tls_connect(&tls, "127.0.0.1", port, ctx, NULL, um_after(30), &error), -ETIMEDOUT);
  CHECK_EQ(error.code, -ETIMEDOUT);
  CHECK_HAS(error.message, "handshake");
  CHECK_EQ(open_fds(), before);
  close(at);
  SSL_CTX_free(ctx);
  return 0;
}
Test(connect, deadline_in_the_handshake) { run_fibers(never_answers, NULL); }

/* A full backlog answers nothing, as a host behind a firewall. */
static int black_hole(char port[8], int fillers[4]) {
  struct sockaddr_in address = {.sin_family = AF_INET};
  socklen_t length = sizeof address;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK_EQ(bind(fd, (struct sockaddr *)&address, length), 0);
  CHECK_EQ(listen(fd, 0), 0);
  CHECK_EQ(getsockname(fd, (struct sockaddr *)&address, &length), 0);
  for (int i = 0; i < 4; i++) {
    fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    connect(fillers[i], (struct sockaddr *)&address, length);
  }
  snprintf(port, 8, "%u", ntohs(address.sin_port));
  return fd;
}

static int connects_to_hole(void *argument) {
  return um_tcp_connect("both.test", argument, UM_FOREVER, NULL);
}

/* The first address refuses, the second says nothing: time and cancellation are told. */
static int waits_in_vain(void *argument) {
  char port[8];
  int fillers[4], at = black_hole(port, fillers);
  um_error error;
  (void)argument;
  unsigned before = open_fds();
  CHECK_EQ(um_tcp_connect("127.0.0.1", port, um_after(30), &error), -ETIMEDOUT);
  CHECK_EQ(um_tcp_connect("both.test", port, um_after(50), &error), -ETIMEDOUT);
  CHECK_EQ(error.code, -ETIMEDOUT);
  um_fiber *fiber = spawn(connects_to_hole, port);
  um_fiber_sleep(um_after(50));
  um_fiber_cancel(fiber);
  CHECK_EQ(join(fiber), -ECANCELED);
  CHECK_EQ(open_fds(), before);
  for (int i = 0; i < 4; i++) close(fillers[i]);
  close(at);
  return 0;
}
Test(connect, deadline_and_cancellation) { run_fibers(waits_in_vain, NULL); }

static char hole[8];

static int struck_connect(void *argument) {
  unsigned at = *(unsigned *)argument;
  int listening = listener(hole);
  unsigned before = open_fds();
  strike_me(STRIKE_CANCEL, at);
  int fd = um_tcp_connect("both.test", hole, UM_FOREVER, NULL);
  bool struck = strike_end();
  if (fd >= 0) close(fd);
  else CHECK_EQ(fd, -ECANCELED);
  if (struck && fd >= 0) CHECK_EQ(um_fiber_yield(), -ECANCELED); /* it is still to be told */
  CHECK_EQ(open_fds(), before);
  close(listening);
  return struck;
}
Test(connect, cancelled_at_every_wait) {
  unsigned at = 0;
  while (run_fibers(struck_connect, &at)) CHECK(++at < 100);
}

/* ---- listening ---- */

Test(connect, listening) {
  um_error error;
  char port[8], address[40];
  int fd = listener(port);
  snprintf(address, sizeof address, "127.0.0.1:%s", port);
  CHECK_EQ(um_tcp_listen(address, 0, &error), -EADDRINUSE);
  CHECK_HAS(error.message, address);
  CHECK_HAS(error.message, "bind");
  CHECK_HAS(error.message, "another port");
  CHECK_EQ(um_tcp_listen("192.0.2.1:0", 0, &error), -EADDRNOTAVAIL);
  CHECK_HAS(error.message, "no interface");
  static const char *bad[] = {"", "nonsense", "127.0.0.1", "127.0.0.1:", "::1:80", "1:2:3"};
  for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
    CHECK_EQ(um_tcp_listen(bad[i], 0, &error), -EINVAL);
    CHECK_HAS(error.message, "HOST:PORT");
  }
  CHECK(um_tcp_listen("127.0.0.1:99999", 0, &error) < 0);
  CHECK_EQ(um_tcp_listen("no-such-host.invalid:0", 0, &error), UM_ERESOLVE);
  CHECK_HAS(error.message, "no-such-host.invalid");
  close(fd);
  static const char *good[] = {"127.0.0.1:0", "[::1]:0", ":0", "localhost:0"};
  for (unsigned i = 0; i < 4; i++) {
    fd = um_tcp_listen(good[i], UM_TCP_REUSEPORT, &error);
    CHECK(fd >= 0 || fd == -EADDRNOTAVAIL || fd == -EAFNOSUPPORT); /* a machine without IPv6 */
    if (fd >= 0) close(fd);
  }
  fd = um_tcp_listen("127.0.0.1:0", UM_TCP_REUSEPORT, NULL);
  struct sockaddr_in at;
  socklen_t length = sizeof at;
  CHECK_EQ(getsockname(fd, (struct sockaddr *)&at, &length), 0);
  snprintf(address, sizeof address, "127.0.0.1:%u", ntohs(at.sin_port));
  int second = um_tcp_listen(address, UM_TCP_REUSEPORT, &error);
  CHECK(second >= 0);
  close(fd), close(second);
}
