/* No TLS: what the leanest io_uring server costs, and so, with libssl-memory, the floor.
 * Multishot accept and receive, incremental provided buffers that go back at once, one
 * io_uring_enter() a turn. */
#define _GNU_SOURCE
#include "server.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BUFFERS 256
#define BUFFER_SIZE 16384
#define ECHO_ROOM 32768

typedef struct connection {
  int fd;
  bool receiving, sending, over;
  request_state request;
  unsigned owed;        /* responses not begun */
  const char *out;
  size_t left;
  char *echo;           /* received and not sent: echo[start..end) */
  size_t start, end;
} connection;

enum { RECEIVE, SEND, KINDS }; /* in the low bits of a connection's address */
enum { ACCEPTED = 2, CLOSED = 3 };

static struct io_uring ring;
static struct io_uring_buf_ring *buffer_ring;
static char *buffers;
static unsigned short offsets[BUFFERS];
static int listen_fd;

static struct io_uring_sqe *next_sqe(void) {
  struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
  if (sqe) return sqe;
  io_uring_submit(&ring);
  if (!(sqe = io_uring_get_sqe(&ring))) fail("the submission queue stays full");
  return sqe;
}

static void arm_accept(void) {
  struct io_uring_sqe *sqe = next_sqe();
  io_uring_prep_multishot_accept(sqe, listen_fd, NULL, NULL, SOCK_CLOEXEC);
  io_uring_sqe_set_data64(sqe, ACCEPTED);
}

static void arm_receive(connection *c) {
  struct io_uring_sqe *sqe = next_sqe();
  io_uring_prep_recv_multishot(sqe, c->fd, NULL, 0, 0);
  sqe->flags |= IOSQE_BUFFER_SELECT;
  io_uring_sqe_set_data64(sqe, (uintptr_t)c | RECEIVE);
  c->receiving = true;
}

static bool choose_output(connection *c) {
  if (c->left) return true;
  if (setup.echo) {
    c->out = c->echo + c->start;
    c->left = c->end - c->start;
  } else if (c->owed) {
    c->owed--;
    c->out = setup.response;
    c->left = setup.response_length;
  }
  return c->left != 0;
}

static void send_next(connection *c) {
  if (c->sending || c->over || !choose_output(c)) return;
  struct io_uring_sqe *sqe = next_sqe();
  io_uring_prep_send(sqe, c->fd, c->out, c->left, MSG_NOSIGNAL | MSG_WAITALL);
  io_uring_sqe_set_data64(sqe, (uintptr_t)c | SEND);
  c->sending = true;
}

static void end_if_idle(connection *c) {
  if (!c->over || c->receiving || c->sending) return;
  struct io_uring_sqe *sqe = next_sqe();
  io_uring_prep_close(sqe, c->fd);
  io_uring_sqe_set_data64(sqe, CLOSED);
  free(c->echo);
  free(c);
}

static void on_sent(connection *c, const struct io_uring_cqe *cqe) {
  c->sending = false;
  if (cqe->res > 0) {
    c->out += cqe->res;
    c->left -= (size_t)cqe->res;
    if (setup.echo && (c->start += (size_t)cqe->res) == c->end) c->start = c->end = 0;
    send_next(c);
  } else {
    c->over = true;
    shutdown(c->fd, SHUT_RDWR); /* ends the receive */
  }
  end_if_idle(c);
}

static void take(connection *c, const char *data, size_t length) {
  if (!setup.echo) {
    c->owed += server_requests(&c->request, data, length);
    return;
  }
  if (!c->echo) c->echo = malloc(ECHO_ROOM);
  if (!c->echo || c->end + length > ECHO_ROOM)
    fail("echo of more than %d bytes before they were taken", ECHO_ROOM);
  memcpy(c->echo + c->end, data, length);
  c->end += length;
}

static char *buffer_start(unsigned id) { return buffers + (size_t)id * BUFFER_SIZE; }

static void lend(unsigned id) {
  offsets[id] = 0;
  io_uring_buf_ring_add(buffer_ring, buffer_start(id), BUFFER_SIZE, (unsigned short)id,
                        io_uring_buf_ring_mask(BUFFERS), 0);
  io_uring_buf_ring_advance(buffer_ring, 1);
}

static void on_received(connection *c, const struct io_uring_cqe *cqe) {
  if (cqe->flags & IORING_CQE_F_BUFFER) {
    unsigned id = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
    if (cqe->res > 0) take(c, buffer_start(id) + offsets[id], (size_t)cqe->res);
    offsets[id] = (unsigned short)(offsets[id] + (cqe->res > 0 ? cqe->res : 0));
    if (!(cqe->flags & IORING_CQE_F_BUF_MORE)) lend(id);
  }
  if (!(cqe->flags & IORING_CQE_F_MORE)) c->receiving = false;
  if (cqe->res > 0) send_next(c);
  else if (cqe->res != -ENOBUFS) c->over = true;
  if (!c->receiving && !c->over) arm_receive(c);
  end_if_idle(c);
}

static void on_accepted(const struct io_uring_cqe *cqe) {
  if (!(cqe->flags & IORING_CQE_F_MORE)) arm_accept();
  if (cqe->res < 0) return;
  connection *c = calloc(1, sizeof *c);
  if (!c) fail("no memory for a connection");
  c->fd = cqe->res;
  arm_receive(c);
}

static void handle(const struct io_uring_cqe *cqe) {
  uint64_t data = cqe->user_data;
  connection *c = (connection *)(uintptr_t)(data & ~(uint64_t)(KINDS - 1));
  if (data == ACCEPTED) on_accepted(cqe);
  else if (data == CLOSED) return;
  else if (data & SEND) on_sent(c, cqe);
  else on_received(c, cqe);
}

static void make_ring(void) {
  struct io_uring_params parameters = {
    .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL |
             IORING_SETUP_CQSIZE,
    .cq_entries = 16384,
  };
  int result = io_uring_queue_init_params(4096, &ring, &parameters);
  if (result < 0) fail("io_uring: %s", strerror(-result));
  buffer_ring = io_uring_setup_buf_ring(&ring, BUFFERS, 0, IOU_PBUF_RING_INC, &result);
  if (!buffer_ring) fail("incremental provided buffers (kernel 6.12): %s", strerror(-result));
  buffers = aligned_alloc(4096, (size_t)BUFFERS * BUFFER_SIZE);
  if (!buffers) fail("no memory for buffers");
  for (unsigned id = 0; id < BUFFERS; id++) lend(id);
}

int main(int argc, char **argv) {
  server_start(argc, argv, "Plaintext over io_uring.", false, NULL);
  listen_fd = server_listen(true);
  make_ring();
  arm_accept();
  server_announce(listen_fd);
  while (!server_stopped) {
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0;
    io_uring_submit_and_wait(&ring, 1);
    io_uring_for_each_cqe(&ring, head, cqe) {
      handle(cqe);
      seen++;
    }
    io_uring_cq_advance(&ring, seen);
  }
  return 0;
}
