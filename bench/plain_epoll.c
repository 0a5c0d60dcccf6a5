/* No TLS: what epoll, recv() and send() cost. */
#define _GNU_SOURCE
#include "server.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS 512
#define INPUT (64 << 10)

typedef struct connection {
  int fd;
  bool watched_for_room;
  request_state request;
  unsigned owed;
  const char *out; /* what the socket had no room for */
  size_t left;
  char *copy;      /* owns `out` when it came from the shared input */
} connection;

static int epoll_fd, listen_fd;
static char input[INPUT];

/* False: the connection is over. */
static bool flush(connection *c) {
  for (;;) {
    if (!c->left && c->owed) {
      c->owed--;
      c->out = setup.response;
      c->left = setup.response_length;
    }
    if (!c->left) break;
    ssize_t sent = send(c->fd, c->out, c->left, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN;
    c->out += sent;
    c->left -= (size_t)sent;
  }
  free(c->copy);
  c->copy = NULL;
  return true;
}

static bool keep_rest(connection *c) {
  if (!setup.echo || !c->left || c->copy) return true;
  if (!(c->copy = malloc(c->left))) return false;
  c->out = memcpy(c->copy, c->out, c->left);
  return true;
}

static bool receive(connection *c) {
  ssize_t length = recv(c->fd, input, sizeof input, 0);
  if (length <= 0) return length < 0 && errno == EAGAIN;
  if (setup.echo) c->out = input, c->left = (size_t)length;
  else c->owed += server_requests(&c->request, input, (size_t)length);
  return flush(c) && keep_rest(c);
}

static bool watch(connection *c) {
  bool room = c->left != 0;
  if (room == c->watched_for_room) return true;
  struct epoll_event event = { .events = room ? EPOLLOUT : EPOLLIN, .data.ptr = c };
  c->watched_for_room = room;
  return epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event) == 0;
}

static void discard(connection *c) {
  close(c->fd);
  free(c->copy);
  free(c);
}

static void accept_all(void) {
  for (int fd; (fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
    connection *c = calloc(1, sizeof *c);
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = c };
    if (!c || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event)) fail("no memory");
    c->fd = fd;
  }
}

int main(int argc, char **argv) {
  struct epoll_event events[EVENTS] = { { .events = EPOLLIN } };
  server_start(argc, argv, "Plaintext over epoll.", false, NULL);
  listen_fd = server_listen(false);
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listen_fd, &events[0]))
    fail("epoll: %s", strerror(errno));
  server_announce(listen_fd);
  while (!server_stopped) {
    int count = epoll_wait(epoll_fd, events, EVENTS, -1);
    for (int i = 0; i < count; i++) {
      connection *c = events[i].data.ptr;
      if (!c) accept_all();
      else if (!(c->left ? flush(c) : receive(c)) || !watch(c)) discard(c);
    }
  }
  return 0;
}
