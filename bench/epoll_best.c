/* The baseline: the cheapest TLS server that epoll and non-blocking OpenSSL allow.
 *
 * What makes it cheap, and what a comparison must therefore grant it:
 *  - level-triggered: it stops reading when libssl has nothing left instead of
 *    asking the kernel once more for EAGAIN;
 *  - read_ahead: one recv() a record instead of two (header, body);
 *  - EPOLLOUT only while the socket is full, so no epoll_ctl() in the common case;
 *  - one read buffer for all connections; bytes are copied only when the socket is
 *    full;
 *  - TCP_NODELAY set on the listener and inherited; one session ticket; no search
 *    for the chain at each handshake.
 *
 * --nginx is the same server written the way nginx drives OpenSSL: edge-triggered,
 * no read_ahead, buffers released, read until EAGAIN, OpenSSL's own defaults for
 * tickets and chain.
 */
#define _GNU_SOURCE
#include "util.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS 512

typedef enum { DONE, WANT_READ, WANT_WRITE, ENDED } outcome;

typedef struct connection {
  SSL *ssl;
  int fd;
  uint32_t watched;     /* events registered with epoll */
  unsigned matched;     /* bytes of the blank line that ends a request seen so far */
  unsigned owed;        /* responses not begun */
  const char *out;      /* what the socket had no room for */
  size_t left;
  char *copy;           /* owns `out` when it came from the shared read buffer */
} connection;

static struct {
  const char *listen, *certificate, *key;
  size_t body;
  bool echo, cubic, nginx, release_buffers;
} options = { .listen = "127.0.0.1:0" };

static SSL_CTX *context;
static int epoll_fd, listen_fd;
static bool accepting;
static char *response;
static size_t response_length;
static char input[SSL3_RT_MAX_PLAIN_LENGTH];
static volatile sig_atomic_t stopped;

/* ---- one connection ---- */

static outcome classify(connection *c, int result) {
  int error = SSL_get_error(c->ssl, result);
  if (error == SSL_ERROR_WANT_READ) return WANT_READ;
  if (error == SSL_ERROR_WANT_WRITE) return WANT_WRITE;
  if (error == SSL_ERROR_ZERO_RETURN) SSL_shutdown(c->ssl);
  /* The queue is the thread's: left there, the next connection would read it as its own. */
  ERR_clear_error();
  return ENDED;
}

static outcome flush(connection *c) {
  for (;;) {
    if (!c->left && c->owed) {
      c->owed--;
      c->out = response;
      c->left = response_length;
    }
    if (!c->left) break;
    int written = SSL_write(c->ssl, c->out, c->left > INT_MAX ? INT_MAX : (int)c->left);
    if (written <= 0) return classify(c, written);
    c->out += written;
    c->left -= (size_t)written;
  }
  free(c->copy);
  c->copy = NULL;
  return DONE;
}

static outcome echo(connection *c, const char *data, size_t length) {
  c->out = data;
  c->left = length;
  outcome result = flush(c);
  if (result == DONE || result == ENDED) return result;
  /* The read buffer is everybody's: the rest must wait in memory of its own. */
  c->copy = malloc(c->left);
  if (!c->copy) return ENDED;
  memcpy(c->copy, c->out, c->left);
  c->out = c->copy;
  return result;
}

static outcome answer_requests(connection *c, const char *data, size_t length) {
  static const char blank_line[] = "\r\n\r\n";
  for (size_t i = 0; i < length; i++) {
    if (data[i] != blank_line[c->matched]) c->matched = 0;
    if (data[i] == blank_line[c->matched] && ++c->matched == 4) {
      c->owed++;
      c->matched = 0;
    }
  }
  return flush(c);
}

static outcome read_and_answer(connection *c) {
  do {
    int length = SSL_read(c->ssl, input, sizeof input);
    if (length <= 0) return classify(c, length);
    outcome result = options.echo ? echo(c, input, (size_t)length)
                                  : answer_requests(c, input, (size_t)length);
    if (result != DONE) return result;
  } while (options.nginx || SSL_has_pending(c->ssl));
  return DONE;
}

static outcome shake_hands(connection *c) {
  if (SSL_is_init_finished(c->ssl)) return DONE;
  int result = SSL_do_handshake(c->ssl);
  if (result <= 0) return classify(c, result);
  return options.nginx || SSL_has_pending(c->ssl) ? DONE : WANT_READ;
}

static outcome proceed(connection *c) {
  outcome result = shake_hands(c);
  if (result == DONE) result = flush(c);
  if (result == DONE) result = read_and_answer(c);
  return result;
}

/* ---- the loop ---- */

static bool watch(connection *c, uint32_t events) {
  if (options.nginx) events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  if (c->watched == events) return true;
  struct epoll_event event = { .events = events, .data.ptr = c };
  int operation = c->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  c->watched = events;
  return epoll_ctl(epoll_fd, operation, c->fd, &event) == 0;
}

static void watch_listener(bool on) {
  struct epoll_event event = { .events = on ? EPOLLIN : 0, .data.ptr = NULL };
  epoll_ctl(epoll_fd, EPOLL_CTL_MOD, listen_fd, &event);
  accepting = on;
}

static void discard(connection *c) {
  SSL_free(c->ssl);
  close(c->fd);
  free(c->copy);
  free(c);
  if (!accepting) watch_listener(true);
}

static void settle(connection *c, outcome result) {
  if (result == ENDED || !watch(c, result == WANT_WRITE ? EPOLLOUT : EPOLLIN)) discard(c);
}

static connection *adopt(int fd) {
  connection *c = calloc(1, sizeof *c);
  SSL *ssl = c ? SSL_new(context) : NULL;
  if (!ssl || !SSL_set_fd(ssl, fd)) {
    SSL_free(ssl);
    free(c);
    close(fd);
    return NULL;
  }
  SSL_set_accept_state(ssl);
  c->ssl = ssl;
  c->fd = fd;
  return c;
}

static void accept_all(void) {
  for (;;) {
    int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      connection *c = adopt(fd);
      if (c) settle(c, WANT_READ);
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
      /* Level-triggered, this would spin: wait until a connection ends. */
      watch_listener(false);
      return;
    } else if (errno != ECONNABORTED && errno != EINTR) {
      return;
    }
  }
}

static void run(void) {
  struct epoll_event events[EVENTS];
  while (!stopped) {
    int count = epoll_wait(epoll_fd, events, EVENTS, -1);
    for (int i = 0; i < count; i++) {
      connection *c = events[i].data.ptr;
      if (c) settle(c, proceed(c));
      else accept_all();
    }
  }
}

/* ---- set-up ---- */

static void make_context(void) {
  context = SSL_CTX_new(TLS_server_method());
  if (!context) fail("no TLS context");
  if (SSL_CTX_use_certificate_chain_file(context, options.certificate) != 1)
    fail("cannot use certificate file '%s'", options.certificate);
  if (SSL_CTX_use_PrivateKey_file(context, options.key, SSL_FILETYPE_PEM) != 1)
    fail("cannot use key file '%s'", options.key);
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                               SSL_OP_CIPHER_SERVER_PREFERENCE);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  if (options.release_buffers) SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
  if (options.nginx) return;
  SSL_CTX_set_read_ahead(context, 1);
  SSL_CTX_set_num_tickets(context, 1);
  SSL_CTX_set_mode(context, SSL_MODE_NO_AUTO_CHAIN);
}

static void make_response(void) {
  char header[128];
  int length = snprintf(header, sizeof header,
                        "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", options.body);
  response_length = (size_t)length + options.body;
  response = malloc(response_length);
  if (!response) fail("no memory for a body of %zu bytes", options.body);
  memcpy(response, header, (size_t)length);
  memset(response + length, 'x', options.body);
}

static void make_listener(void) {
  struct sockaddr_storage address;
  socklen_t length;
  const int on = 1;
  resolve(options.listen, 1, &address, &length);
  listen_fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (listen_fd < 0) fail("socket: %s", strerror(errno));
  setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  setsockopt(listen_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (options.cubic) use_cubic(listen_fd);
  if (bind(listen_fd, (struct sockaddr *)&address, length) || listen(listen_fd, SOMAXCONN))
    fail("cannot listen on %s: %s", options.listen, strerror(errno));
}

static void announce(void) {
  struct sockaddr_storage address;
  socklen_t length = sizeof address;
  char host[NI_MAXHOST], port[NI_MAXSERV];
  getsockname(listen_fd, (struct sockaddr *)&address, &length);
  getnameinfo((struct sockaddr *)&address, length, host, sizeof host, port, sizeof port,
              NI_NUMERICHOST | NI_NUMERICSERV);
  printf(address.ss_family == AF_INET6 ? "listening on [%s]:%s\n" : "listening on %s:%s\n",
         host, port);
  fflush(stdout);
}

static void make_loop(void) {
  struct epoll_event event = { .events = EPOLLIN };
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listen_fd, &event))
    fail("epoll: %s", strerror(errno));
  accepting = true;
}

static void usage(FILE *to) {
  fputs("usage: epoll-best --cert FILE --key FILE --echo | --body BYTES [options]\n"
        "\n"
        "The strongest epoll + OpenSSL server, as the baseline of the benchmark.\n"
        "\n"
        "  --listen HOST:PORT   where; port 0 picks one (default 127.0.0.1:0)\n"
        "  --cert FILE          certificate chain, PEM\n"
        "  --key FILE           private key, PEM\n"
        "  --echo               send back what arrives\n"
        "  --body BYTES         answer every HTTP/1.1 request with a body of this size\n"
        "  --nginx              drive OpenSSL the way nginx does, instead of the best way\n"
        "  --release-buffers    SSL_MODE_RELEASE_BUFFERS (implied by --nginx)\n"
        "  --cubic              cubic congestion control\n"
        "\n"
        "Prints 'listening on HOST:PORT' when it accepts; SIGTERM ends it.\n", to);
}

static void parse(int argc, char **argv) {
  enum { LISTEN = 256, CERT, KEY, ECHO_MODE, BODY, NGINX, RELEASE, CUBIC, HELP };
  static const struct option known[] = {
    { "listen", required_argument, NULL, LISTEN }, { "cert", required_argument, NULL, CERT },
    { "key", required_argument, NULL, KEY },       { "echo", no_argument, NULL, ECHO_MODE },
    { "body", required_argument, NULL, BODY },     { "nginx", no_argument, NULL, NGINX },
    { "release-buffers", no_argument, NULL, RELEASE },
    { "cubic", no_argument, NULL, CUBIC },         { "help", no_argument, NULL, HELP },
    { NULL, 0, NULL, 0 },
  };
  for (int choice; (choice = getopt_long(argc, argv, "", known, NULL)) != -1;) {
    switch (choice) {
      case LISTEN: options.listen = optarg; break;
      case CERT: options.certificate = optarg; break;
      case KEY: options.key = optarg; break;
      case ECHO_MODE: options.echo = true; break;
      case BODY: options.body = number("body", optarg); break;
      case NGINX: options.nginx = options.release_buffers = true; break;
      case RELEASE: options.release_buffers = true; break;
      case CUBIC: options.cubic = true; break;
      case HELP: usage(stdout); exit(0);
      default: usage(stderr); exit(2);
    }
  }
  if (optind < argc || !options.certificate || !options.key || options.echo == !!options.body) {
    usage(stderr);
    exit(2);
  }
}

static void stop(int number_of_signal) {
  (void)number_of_signal;
  stopped = 1;
}

int main(int argc, char **argv) {
  /* No SA_RESTART: the signal must end epoll_wait(). */
  const struct sigaction end = { .sa_handler = stop };
  parse(argc, argv);
  sigaction(SIGTERM, &end, NULL);
  sigaction(SIGINT, &end, NULL);
  signal(SIGPIPE, SIG_IGN);
  raise_descriptor_limit();
  make_context();
  if (options.body) make_response();
  make_listener();
  make_loop();
  announce();
  run();
  return 0;
}
