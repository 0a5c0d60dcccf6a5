#define _GNU_SOURCE
#include "server.h"

#include <errno.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FLAGS 8

server_setup setup = { .listen = "127.0.0.1:0" };
volatile sig_atomic_t server_stopped;

/* ---- requests and responses ---- */

unsigned server_requests(request_state *state, const char *data, size_t length) {
  static const char blank_line[] = "\r\n\r\n";
  unsigned count = 0;
  if (setup.request) {
    state->bytes += length;
    count = (unsigned)(state->bytes / setup.request);
    state->bytes %= setup.request;
    return count;
  }
  for (size_t i = 0; i < length; i++) {
    if (data[i] != blank_line[state->matched]) state->matched = 0;
    if (data[i] == blank_line[state->matched] && ++state->matched == 4) {
      count++;
      state->matched = 0;
    }
  }
  return count;
}

static void make_response(const char *head, size_t body) {
  size_t length = strlen(head);
  setup.response_length = length + body;
  setup.response = malloc(setup.response_length);
  if (!setup.response) fail("no memory for a response of %zu bytes", body);
  memcpy(setup.response, head, length);
  memset(setup.response + length, 'x', body);
}

/* The fields that HTTP servers send, so that all send about as much. */
static void make_http_response(size_t body) {
  char head[256];
  snprintf(head, sizeof head,
           "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
           "Content-Type: application/octet-stream\r\nContent-Length: %zu\r\n\r\n", body);
  make_response(head, body);
  setup.piece = setup.response_length;
}

/* REQUEST:WRITES:SIZE */
static void parse_answer(const char *text) {
  char parts[3][32], rest;
  if (sscanf(text, "%31[0-9]:%31[0-9]:%31[0-9]%c", parts[0], parts[1], parts[2], &rest) != 3)
    fail("--answer wants REQUEST:WRITES:SIZE, not '%s'", text);
  setup.request = number("answer", parts[0]);
  setup.piece = number("answer", parts[2]);
  make_response("", number("answer", parts[1]) * setup.piece);
}

/* ---- command line ---- */

static void usage(FILE *to, const char *purpose, bool tls, const server_flag *flags) {
  fprintf(to, "usage: %s %s--echo | --body BYTES | --answer R:N:S [options]\n\n%s\n\n",
          program_invocation_short_name, tls ? "--cert FILE --key FILE " : "", purpose);
  fputs("  --listen HOST:PORT   where; port 0 picks one (default 127.0.0.1:0)\n"
        "  --cert FILE          certificate chain, PEM\n"
        "  --key FILE           private key, PEM\n"
        "  --echo               send back what arrives\n"
        "  --body BYTES         answer every HTTP/1.1 request with a body of this size\n"
        "  --answer R:N:S       answer every R bytes with N writes of S bytes\n", to);
  for (const server_flag *f = flags; f && f->name; f++)
    fprintf(to, "  --%-18s %s\n", f->name, f->help);
  fputs("\nPrints 'listening on HOST:PORT' when it accepts; SIGTERM ends it.\n", to);
}

static void parse(int argc, char **argv, const char *purpose, bool tls, const server_flag *flags) {
  enum { LISTEN = 256, CERT, KEY, ECHO_MODE, BODY, ANSWER, HELP, FIRST_FLAG };
  struct option known[8 + FLAGS] = {
    { "listen", required_argument, NULL, LISTEN }, { "cert", required_argument, NULL, CERT },
    { "key", required_argument, NULL, KEY },       { "echo", no_argument, NULL, ECHO_MODE },
    { "body", required_argument, NULL, BODY },     { "answer", required_argument, NULL, ANSWER },
    { "help", no_argument, NULL, HELP },
  };
  for (int i = 0; flags && flags[i].name; i++)
    known[7 + i] = (struct option){ flags[i].name, no_argument, NULL, FIRST_FLAG + i };
  for (int choice; (choice = getopt_long(argc, argv, "", known, NULL)) != -1;) {
    switch (choice) {
      case LISTEN: setup.listen = optarg; break;
      case CERT: setup.certificate = optarg; break;
      case KEY: setup.key = optarg; break;
      case ECHO_MODE: setup.echo = true; break;
      case BODY: make_http_response(number("body", optarg)); break;
      case ANSWER: parse_answer(optarg); break;
      case HELP: usage(stdout, purpose, tls, flags); exit(0);
      case '?': usage(stderr, purpose, tls, flags); exit(2);
      default: *flags[choice - FIRST_FLAG].value = true;
    }
  }
  if (optind < argc || (tls && (!setup.certificate || !setup.key)) ||
      setup.echo == !!setup.response) {
    usage(stderr, purpose, tls, flags);
    exit(2);
  }
}

static void stop(int number_of_signal) {
  (void)number_of_signal;
  server_stopped = 1;
}

void server_start(int argc, char **argv, const char *purpose, bool tls, const server_flag *flags) {
  const struct sigaction end = { .sa_handler = stop }; /* no SA_RESTART: waits must end */
  parse(argc, argv, purpose, tls, flags);
  sigaction(SIGTERM, &end, NULL);
  sigaction(SIGINT, &end, NULL);
  signal(SIGPIPE, SIG_IGN);
  raise_descriptor_limit();
}

/* ---- socket and context ---- */

int server_listen(bool blocking) {
  struct sockaddr_storage address;
  socklen_t length;
  const int on = 1;
  resolve(setup.listen, 1, &address, &length);
  int type = SOCK_STREAM | SOCK_CLOEXEC | (blocking ? 0 : SOCK_NONBLOCK);
  int fd = socket(address.ss_family, type, 0);
  if (fd < 0) fail("socket: %s", strerror(errno));
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (bind(fd, (struct sockaddr *)&address, length) || listen(fd, SOMAXCONN))
    fail("cannot listen on %s: %s", setup.listen, strerror(errno));
  return fd;
}

void server_announce(int fd) {
  struct sockaddr_storage address;
  socklen_t length = sizeof address;
  char host[NI_MAXHOST], port[NI_MAXSERV];
  getsockname(fd, (struct sockaddr *)&address, &length);
  getnameinfo((struct sockaddr *)&address, length, host, sizeof host, port, sizeof port,
              NI_NUMERICHOST | NI_NUMERICSERV);
  printf(address.ss_family == AF_INET6 ? "listening on [%s]:%s\n" : "listening on %s:%s\n",
         host, port);
  fflush(stdout);
}

SSL_CTX *server_context(void) {
  SSL_CTX *context = SSL_CTX_new(TLS_server_method());
  if (!context) fail("no TLS context");
  if (SSL_CTX_use_certificate_chain_file(context, setup.certificate) != 1)
    fail("cannot use certificate file '%s'", setup.certificate);
  if (SSL_CTX_use_PrivateKey_file(context, setup.key, SSL_FILETYPE_PEM) != 1)
    fail("cannot use key file '%s'", setup.key);
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                               SSL_OP_CIPHER_SERVER_PREFERENCE);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF); /* tickets resume without it */
  return context;
}
