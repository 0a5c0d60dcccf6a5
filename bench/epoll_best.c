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
 *
 * --bio-buffer puts BIO_f_buffer before the socket, flushed when a turn of the
 * connection ends: what an application does that writes a response in pieces and knows
 * that each would be a system call.
 */
#define _GNU_SOURCE
#include "server.h"

#include <errno.h>
#include <openssl/err.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS 512

typedef enum { DONE, WANT_READ, WANT_WRITE, ENDED } outcome;

typedef struct connection {
  SSL *ssl;
  int fd;
  uint32_t watched;     /* events registered with epoll */
  request_state request;
  unsigned owed;        /* responses not begun */
  const char *out;      /* what the socket had no room for */
  size_t left;
  char *copy;           /* owns `out` when it came from the shared read buffer */
} connection;

static bool nginx, release_buffers, bio_buffer;
static SSL_CTX *context;
static int epoll_fd, listen_fd;
static bool accepting;
static char input[SSL3_RT_MAX_PLAIN_LENGTH];

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
      c->out = setup.response;
      c->left = setup.response_length;
    }
    if (!c->left) break;
    size_t piece = setup.echo || c->left < setup.piece ? c->left : setup.piece;
    int written = SSL_write(c->ssl, c->out, (int)piece);
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
  c->owed += server_requests(&c->request, data, length);
  return flush(c);
}

static outcome read_and_answer(connection *c) {
  do {
    int length = SSL_read(c->ssl, input, sizeof input);
    if (length <= 0) return classify(c, length);
    outcome result = setup.echo ? echo(c, input, (size_t)length)
                                  : answer_requests(c, input, (size_t)length);
    if (result != DONE) return result;
  } while (nginx || SSL_has_pending(c->ssl));
  return DONE;
}

static outcome shake_hands(connection *c) {
  if (SSL_is_init_finished(c->ssl)) return DONE;
  int result = SSL_do_handshake(c->ssl);
  if (result <= 0) return classify(c, result);
  return nginx || SSL_has_pending(c->ssl) ? DONE : WANT_READ;
}

/* What BIO_f_buffer holds leaves at the end of the turn. */
static outcome flush_buffer(connection *c, outcome result) {
  if (result == ENDED || BIO_flush(SSL_get_wbio(c->ssl)) > 0) return result;
  return BIO_should_retry(SSL_get_wbio(c->ssl)) ? WANT_WRITE : ENDED;
}

static outcome proceed(connection *c) {
  outcome result = shake_hands(c);
  if (result == DONE) result = flush(c);
  if (result == DONE) result = read_and_answer(c);
  return bio_buffer ? flush_buffer(c, result) : result;
}

/* ---- the loop ---- */

static bool watch(connection *c, uint32_t events) {
  if (nginx) events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
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
  if (bio_buffer) SSL_set0_wbio(ssl, BIO_push(BIO_new(BIO_f_buffer()), BIO_new_socket(fd, 0)));
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
  while (!server_stopped) {
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
  context = server_context();
  if (release_buffers || nginx) SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
  if (nginx) return;
  SSL_CTX_set_read_ahead(context, 1);
  SSL_CTX_set_num_tickets(context, 1);
  SSL_CTX_set_mode(context, SSL_MODE_NO_AUTO_CHAIN);
}

static void make_loop(void) {
  struct epoll_event event = { .events = EPOLLIN };
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listen_fd, &event))
    fail("epoll: %s", strerror(errno));
  accepting = true;
}

int main(int argc, char **argv) {
  const server_flag flags[] = {
    { "nginx", "drive OpenSSL the way nginx does, instead of the best way", &nginx },
    { "release-buffers", "SSL_MODE_RELEASE_BUFFERS (implied by --nginx)", &release_buffers },
    { "bio-buffer", "BIO_f_buffer before the socket", &bio_buffer },
    { NULL, NULL, NULL },
  };
  server_start(argc, argv, "The strongest epoll + OpenSSL server, as the baseline.", true, flags);
  make_context();
  listen_fd = server_listen(false);
  make_loop();
  server_announce(listen_fd);
  run();
  return 0;
}
