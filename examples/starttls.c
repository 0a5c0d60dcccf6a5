/* starttls serve HOST:PORT CHAIN.pem KEY.pem
 * starttls HOST PORT [CA.pem]
 *
 * A conversation in the manner of SMTP that starts in plain text, goes on under TLS after
 * STARTTLS, and returns to plain text: one socket, wrapped and unwrapped. What had been read
 * too much on either side of the change is handed over, never dropped. */
#include <bio_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One end of the conversation: `tls` while it is encrypted, else the bare descriptor. */
struct peer {
  int fd;
  um_tls *tls;
  char input[512]; /* plain text received and not yet used */
  size_t length;
};

static int say(struct peer *peer, const char *line) {
  size_t length = strlen(line);
  um_time deadline = um_after(10000);
  ssize_t sent = peer->tls ? um_tls_write(peer->tls, line, length, deadline)
                           : um_send(peer->fd, line, length, 0, deadline);
  if (sent < 0) return (int)sent;
  return (size_t)sent == length ? 0 : -ETIMEDOUT;
}

/* The next line with its newline, terminated. Its length, 0 at the end, or an error. */
static ssize_t hear(struct peer *peer, char *line, size_t size) {
  um_time deadline = um_after(10000);
  char *end;
  if (peer->tls) {
    ssize_t n = um_tls_read_until(peer->tls, line, size - 1, "\n", 1, deadline);
    line[n > 0 ? n : 0] = '\0';
    return n;
  }
  while (!(end = memchr(peer->input, '\n', peer->length))) {
    size_t room = sizeof peer->input - peer->length;
    if (room == 0) return UM_ETOOLONG;
    ssize_t n = um_recv(peer->fd, peer->input + peer->length, room, 0, deadline);
    if (n <= 0) return n;
    peer->length += (size_t)n;
  }
  size_t length = (size_t)(end - peer->input) + 1;
  if (length >= size) return UM_ETOOLONG;
  memcpy(line, peer->input, length);
  line[length] = '\0';
  memmove(peer->input, peer->input + length, peer->length -= length);
  return (ssize_t)length;
}

typedef int (*wrap_fn)(um_tls **, int, SSL_CTX *, const um_tls_options *);

/* From here on the peer speaks TLS. Plain text that came after STARTTLS goes to TLS as well,
 * where it fails the handshake: nobody can slip in commands. */
static int start_tls(struct peer *peer, SSL_CTX *ctx, const char *hostname, wrap_fn wrap) {
  um_tls_options options = {.hostname = hostname, .flags = UM_TLS_KEEP_FD};
  options.received = peer->input;
  options.received_length = peer->length;
  int result = wrap(&peer->tls, peer->fd, ctx, &options);
  if (result < 0) return result;
  peer->length = 0;
  return um_tls_handshake(peer->tls, um_after(10000));
}

/* And from here on plain text again. */
static int stop_tls(struct peer *peer) {
  void *leftover = NULL;
  size_t length = 0;
  int fd = um_tls_unwrap(peer->tls, &leftover, &length, um_after(10000));
  if (fd < 0) return fd;
  peer->tls = NULL;
  int fits = length <= sizeof peer->input;
  if (fits && length > 0) memcpy(peer->input, leftover, peer->length = length);
  free(leftover);
  return fits ? 0 : UM_ETOOLONG;
}

/* ---- the server ---- */

static SSL_CTX *server_ctx;

static int answer(struct peer *peer) {
  char line[256];
  int result = say(peer, "220 ready\r\n");
  while (result >= 0) {
    ssize_t n = hear(peer, line, sizeof line);
    if (n < 0) return (int)n;
    if (n == 0 && !peer->tls) return 0;
    if (n == 0) {
      result = stop_tls(peer);
      if (result == 0) result = say(peer, "250 plain text again\r\n");
    } else if (strcmp(line, "STARTTLS\r\n") == 0 && !peer->tls) {
      result = say(peer, "220 go ahead\r\n");
      if (result == 0) result = start_tls(peer, server_ctx, NULL, um_tls_server);
    } else if (strcmp(line, "QUIT\r\n") == 0) {
      return say(peer, "221 bye\r\n");
    } else {
      result = say(peer, peer->tls ? "250 under TLS\r\n" : "250 in plain text\r\n");
    }
  }
  return result;
}

static void hang_up(struct peer *peer) {
  if (peer->tls) um_tls_close(peer->tls, um_after(1000));
  um_close(peer->fd);
}

static int serve_one(void *arg) {
  struct peer peer = {.fd = (int)(intptr_t)arg};
  int result = answer(&peer);
  const char *why = peer.tls ? um_tls_error(peer.tls) : "";
  if (result < 0) fprintf(stderr, "starttls: %s\n", *why ? why : um_strerror(result));
  hang_up(&peer);
  return 0;
}

static int serve(void *arg) {
  char **argv = arg;
  um_error error = {0};
  int fd = -1, result = um_tls_ctx_server(&server_ctx, argv[3], argv[4], &error);
  if (result == 0) result = fd = um_tcp_listen(argv[2], 0, &error);
  if (result >= 0) printf("starttls on %s\n", argv[2]), fflush(stdout);
  while (result >= 0) {
    result = um_accept(fd, NULL, NULL, SOCK_CLOEXEC, UM_FOREVER);
    if (result < 0) break;
    int failed = um_fiber_spawn(NULL, NULL, serve_one, (void *)(intptr_t)result, NULL);
    if (failed) um_close(result);
  }
  fprintf(stderr, "starttls: %s\n", error.code ? error.message : um_strerror(result));
  if (fd >= 0) um_close(fd);
  SSL_CTX_free(server_ctx);
  return 1;
}

/* ---- the client ---- */

/* Sends `line` (unless NULL), shows the answer and checks how it begins. */
static int expect(struct peer *peer, const char *line, const char *code) {
  char reply[256];
  int result = line ? say(peer, line) : 0;
  if (result < 0) return result;
  ssize_t n = hear(peer, reply, sizeof reply);
  if (n < 0) return (int)n;
  printf("%s: %s", peer->tls ? SSL_get_version(um_tls_ssl(peer->tls)) : "plain", reply);
  return strncmp(reply, code, strlen(code)) == 0 ? 0 : -EPROTO;
}

static int converse(struct peer *peer, SSL_CTX *ctx, const char *host) {
  int result = expect(peer, NULL, "220");
  if (result == 0) result = expect(peer, "NOOP\r\n", "250");
  if (result == 0) result = expect(peer, "STARTTLS\r\n", "220");
  if (result == 0) result = start_tls(peer, ctx, host, um_tls_client);
  if (result == 0) result = expect(peer, "NOOP\r\n", "250");
  if (result == 0) result = stop_tls(peer);
  if (result == 0) result = expect(peer, NULL, "250");
  if (result == 0) result = expect(peer, "QUIT\r\n", "221");
  return result;
}

static int client(void *arg) {
  char **argv = arg;
  um_error error = {0};
  struct peer peer = {.fd = -1};
  SSL_CTX *ctx = NULL;
  int result = um_tls_ctx_client(&ctx, argv[3], &error);
  if (result == 0)
    result = peer.fd = um_tcp_connect(argv[1], argv[2], um_after(10000), &error);
  if (result >= 0) result = converse(&peer, ctx, argv[1]);
  const char *why = error.code ? error.message : peer.tls ? um_tls_error(peer.tls) : "";
  if (result < 0) fprintf(stderr, "starttls: %s\n", *why ? why : um_strerror(result));
  if (peer.fd >= 0) hang_up(&peer);
  SSL_CTX_free(ctx);
  return result < 0;
}

int main(int argc, char **argv) {
  if (argc == 5 && strcmp(argv[1], "serve") == 0) return um_run(serve, argv) != 0;
  if (argc == 3 || argc == 4) return um_run(client, argv) != 0;
  fprintf(stderr, "usage: starttls serve HOST:PORT CHAIN.pem KEY.pem\n"
                  "       starttls HOST PORT [CA.pem]\n");
  return 2;
}
