/* io.h on sockets, on the real kernel: whole transfers, deadlines, cancellation. */
#include "harness.h"

#include <arpa/inet.h>
#include <bio_uring/io.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/un.h>

SUITE(io_sockets);

#define BIG ((size_t)4 << 20)

static void fill(unsigned char *bytes, size_t length) {
  for (size_t i = 0; i < length; i++) bytes[i] = (unsigned char)(i * 31 + (i >> 12));
}

/* Cancels the fiber once it waits; what it returned. */
static int cancelled(um_fiber *fiber) {
  yield_times(3);
  um_fiber_cancel(fiber);
  return join(fiber);
}

/* ---- whole transfers through tiny buffers ---- */

typedef struct sink {
  int fd;
  size_t wanted, got;
  const unsigned char *expected;
  bool slow;
} sink;

static int drains_all(void *argument) {
  sink *s = argument;
  unsigned char bytes[7777];
  while (s->got < s->wanted) {
    ssize_t n = um_recv(s->fd, bytes, sizeof bytes, 0, UM_FOREVER);
    CHECK(n > 0);
    CHECK(!memcmp(bytes, s->expected + s->got, (size_t)n));
    s->got += (size_t)n;
    if (s->slow) CHECK_EQ(um_fiber_yield(), 0);
  }
  return 0;
}

static int sends_whole(void *argument) {
  int *fds = argument;
  unsigned char *bytes = malloc(BIG);
  CHECK(bytes != NULL);
  fill(bytes, BIG);
  sink s = {fds[1], BIG, 0, bytes, true};
  um_fiber *drain = spawn(drains_all, &s);
  CHECK_EQ(um_send(fds[0], bytes, BIG, 0, UM_FOREVER), BIG);
  join(drain);
  struct iovec parts[40];
  for (size_t i = 0; i < 40; i++) parts[i] = (struct iovec){bytes + i * 50000, i == 20 ? 0 : 50000};
  s = (sink){fds[1], 20 * 50000, 0, bytes, false};
  drain = spawn(drains_all, &s);
  CHECK_EQ(um_sendv(fds[0], parts, 20, UM_FOREVER), 20 * 50000);
  join(drain);
  s = (sink){fds[1], 19 * 50000, 0, bytes + 21 * 50000, true}; /* more than fit a small copy */
  drain = spawn(drains_all, &s);
  CHECK_EQ(um_sendv(fds[0], parts + 20, 20, UM_FOREVER), 19 * 50000);
  join(drain);
  free(bytes);
  return 0;
}

TEST(io_sockets, sends_are_whole_through_tiny_buffers) {
  int fds[2];
  tcp_pair(fds);
  set_small_buffers(fds[0], 4096);
  run_fibers(sends_whole, fds);
  close(fds[0]);
  close(fds[1]);
}

TEST(io_sockets, sends_are_whole_on_nonblocking_sockets) {
  int fds[2];
  tcp_pair(fds);
  set_small_buffers(fds[0], 4096);
  set_nonblocking(fds[0]);
  set_nonblocking(fds[1]);
  run_fibers(sends_whole, fds);
  close(fds[0]);
  close(fds[1]);
}

TEST(io_sockets, sends_are_whole_on_local_sockets) {
  int fds[2];
  local_pair(fds);
  set_small_buffers(fds[0], 4096);
  run_fibers(sends_whole, fds);
  close(fds[0]);
  close(fds[1]);
}

/* ---- short counts ---- */

static int short_by_deadline(void *argument) {
  int *fds = argument;
  unsigned char *bytes = malloc(BIG);
  CHECK(bytes != NULL);
  fill(bytes, BIG);
  ssize_t sent = um_send(fds[0], bytes, BIG, 0, um_after(5));
  CHECK(sent > 0 && (size_t)sent < BIG);
  CHECK_EQ(um_send(fds[0], bytes + sent, BIG - (size_t)sent, 0, um_after(1)), -ETIMEDOUT);
  sink s = {fds[1], (size_t)sent, 0, bytes, false}; /* exactly so many arrived */
  drains_all(&s);
  char byte;
  CHECK_EQ(um_recv(fds[1], &byte, 1, 0, um_after(2)), -ETIMEDOUT);
  sent = um_send(fds[0], bytes, BIG, 0, um_now() - 1); /* without waiting */
  CHECK(sent > 0 && (size_t)sent < BIG);
  s = (sink){fds[1], (size_t)sent, 0, bytes, false};
  drains_all(&s);
  free(bytes);
  return 0;
}

TEST(io_sockets, a_deadline_after_some_bytes_gives_a_short_count) {
  for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
    int fds[2];
    local_pair(fds);
    set_small_buffers(fds[0], 65536);
    if (nonblocking) set_nonblocking(fds[0]);
    run_fibers(short_by_deadline, fds);
    close(fds[0]);
    close(fds[1]);
  }
}

typedef struct sending {
  int fd;
  const unsigned char *bytes;
  ssize_t first, second;
} sending;

static int sends_twice(void *argument) {
  sending *s = argument;
  s->first = um_send(s->fd, s->bytes, BIG, 0, UM_FOREVER);
  s->second = um_send(s->fd, s->bytes, BIG, 0, UM_FOREVER);
  return um_fiber_yield();
}

static int short_by_cancel(void *argument) {
  int *fds = argument;
  unsigned char *bytes = malloc(BIG);
  CHECK(bytes != NULL);
  fill(bytes, BIG);
  sending s = {fds[0], bytes, 0, 0};
  CHECK_EQ(cancelled(spawn(sends_twice, &s)), 0);
  CHECK(s.first > 0 && (size_t)s.first < BIG);
  CHECK_EQ(s.second, -ECANCELED);
  sink all = {fds[1], (size_t)s.first, 0, bytes, false};
  drains_all(&all);
  free(bytes);
  return 0;
}

TEST(io_sockets, a_cancellation_after_some_bytes_gives_a_short_count) {
  int fds[2];
  local_pair(fds);
  set_small_buffers(fds[0], 65536);
  run_fibers(short_by_cancel, fds);
  close(fds[0]);
  close(fds[1]);
}

/* ---- receiving ---- */

static int recv_forever(void *argument) {
  char bytes[16];
  return (int)um_recv(*(int *)argument, bytes, sizeof bytes, 0, UM_FOREVER);
}

static int recv_in_all_ways(void *argument) {
  int *fds = argument;
  char bytes[64] = {0};
  CHECK_EQ(um_recv(fds[0], bytes, 16, 0, um_after(1)), -ETIMEDOUT);
  CHECK_EQ(um_recv(fds[0], bytes, 16, 0, um_now() - 1), -ETIMEDOUT);
  CHECK_EQ(cancelled(spawn(recv_forever, &fds[0])), -ECANCELED);
  CHECK_EQ(um_send(fds[1], "hello", 5, 0, UM_FOREVER), 5);
  CHECK_EQ(um_recv(fds[0], bytes, 16, 0, um_now() - 1), 5); /* there: a passed deadline is a try */
  CHECK_EQ(um_send(fds[1], "hello", 5, 0, UM_FOREVER), 5);
  CHECK_EQ(um_recv(fds[0], bytes, 3, MSG_PEEK, UM_FOREVER), 3);
  CHECK_EQ(um_recv(fds[0], bytes, 0, 0, UM_FOREVER), 0);
  CHECK_EQ(um_recv(fds[0], bytes, 10, MSG_WAITALL, um_after(2)), 5); /* what had come */
  CHECK(!memcmp(bytes, "hello", 5));
  CHECK_EQ(um_recv(fds[0], bytes, 1, MSG_DONTWAIT, UM_FOREVER), -EAGAIN);
  CHECK_EQ(um_recv(-1, bytes, 1, 0, UM_FOREVER), -EBADF);
  CHECK_EQ(um_send(-1, bytes, 1, 0, UM_FOREVER), -EBADF);
  CHECK_EQ(um_send(fds[1], bytes, 0, 0, UM_FOREVER), 0);
  CHECK_EQ(um_shutdown(fds[1], SHUT_WR, UM_FOREVER), 0);
  CHECK_EQ(um_recv(fds[0], bytes, 16, 0, UM_FOREVER), 0);
  CHECK_EQ(um_close(fds[1]), 0);
  CHECK_EQ(um_close(fds[1]), -EBADF);
  /* SIGPIPE would end the process. */
  ssize_t sent; /* the kernel may take its time to see that nobody is there */
  while ((sent = um_send(fds[0], "x", 1, 0, UM_FOREVER)) == 1) continue;
  CHECK(sent == -EPIPE || sent == -ECONNRESET);
  struct iovec part = {bytes, 5};
  sent = um_sendv(fds[0], &part, 1, UM_FOREVER);
  CHECK_EQ(sent, -EPIPE);
  CHECK_EQ(um_close(fds[0]), 0);
  return 0;
}

TEST(io_sockets, recv_and_send_in_all_ways) {
  for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
    int fds[2];
    tcp_pair(fds);
    if (nonblocking) set_nonblocking(fds[0]);
    if (nonblocking) set_nonblocking(fds[1]);
    run_fibers(recv_in_all_ways, fds);
  }
}

static int full_duplex(void *argument) {
  int *fds = argument;
  char bytes[4];
  um_fiber *reader = spawn(recv_forever, &fds[0]);
  yield_times(2);
  CHECK_EQ(um_send(fds[0], "abcd", 4, 0, UM_FOREVER), 4); /* while another fiber reads it */
  CHECK_EQ(um_recv(fds[1], bytes, 4, 0, UM_FOREVER), 4);
  CHECK_EQ(um_send(fds[1], "abcd", 4, 0, UM_FOREVER), 4);
  CHECK_EQ(join(reader), 4);
  return 0;
}

TEST(io_sockets, one_reads_while_another_writes) {
  int fds[2];
  tcp_pair(fds);
  run_fibers(full_duplex, fds);
  close(fds[0]);
  close(fds[1]);
}

static int recv_null(void *argument) {
  int *fds = argument;
  CHECK_EQ(um_send(fds[1], "abcd", 4, 0, UM_FOREVER), 4);
  CHECK_EQ(um_recv(fds[0], NULL, 4, MSG_TRUNC, um_after(100)), -EFAULT);
  return 0;
}

TEST(io_sockets, a_null_buffer_does_not_take_a_provided_one) {
  int fds[2];
  local_pair(fds);
  run_fibers(recv_null, fds); /* which checks that no buffer is missing */
  close(fds[0]);
  close(fds[1]);
}

/* ---- messages ---- */

static int passes_descriptor(void *argument) {
  int *fds = argument, pair[2];
  local_pair(pair);
  char byte = 'd';
  union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control = {.bytes = {0}};
  struct iovec part = {&byte, 1};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes,
                           .msg_controllen = sizeof control.bytes};
  struct cmsghdr *c = CMSG_FIRSTHDR(&message);
  *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
  memcpy(CMSG_DATA(c), &pair[0], sizeof(int));
  CHECK_EQ(um_sendmsg(fds[0], &message, 0, UM_FOREVER), 1);
  CHECK(message.msg_control == control.bytes); /* the caller's header is not touched */
  memset(&control, 0, sizeof control);
  byte = 0;
  CHECK_EQ(um_recvmsg(fds[1], &message, MSG_CMSG_CLOEXEC, UM_FOREVER), 1);
  CHECK_EQ(byte, 'd');
  c = CMSG_FIRSTHDR(&message);
  CHECK(c && c->cmsg_type == SCM_RIGHTS);
  int passed;
  memcpy(&passed, CMSG_DATA(c), sizeof passed);
  CHECK_EQ(um_send(passed, "via", 3, 0, UM_FOREVER), 3);
  char bytes[4];
  CHECK_EQ(um_recv(pair[1], bytes, 4, 0, UM_FOREVER), 3);
  CHECK_EQ(um_recvmsg(fds[1], &message, 0, um_after(1)), -ETIMEDOUT);
  CHECK_EQ(um_close(passed), 0);
  CHECK_EQ(um_close(pair[0]), 0);
  CHECK_EQ(um_close(pair[1]), 0);
  return 0;
}

TEST(io_sockets, descriptors_are_passed) {
  int fds[2];
  local_pair(fds);
  run_fibers(passes_descriptor, fds);
  close(fds[0]);
  close(fds[1]);
}

static int passes_with_much_data(void *argument) {
  int *fds = argument;
  unsigned char *bytes = malloc(BIG);
  CHECK(bytes != NULL);
  fill(bytes, BIG);
  union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control = {.bytes = {0}};
  struct iovec part = {bytes, BIG};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes,
                           .msg_controllen = sizeof control.bytes};
  struct cmsghdr *c = CMSG_FIRSTHDR(&message);
  *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
  memcpy(CMSG_DATA(c), &fds[0], sizeof(int));
  sink s = {fds[1], BIG, 0, bytes, true};
  um_fiber *drain = spawn(drains_all, &s); /* plain recv: the kernel closes what was passed */
  CHECK_EQ(um_sendmsg(fds[0], &message, 0, UM_FOREVER), BIG);
  join(drain);
  free(bytes);
  return 0;
}

TEST(io_sockets, a_resumed_message_passes_its_descriptor_once) {
  int fds[2];
  local_pair(fds);
  set_small_buffers(fds[0], 8192);
  unsigned before = open_fds();
  run_fibers(passes_with_much_data, fds);
  CHECK_EQ(open_fds(), before);
  close(fds[0]);
  close(fds[1]);
}

static int datagrams(void *argument) {
  (void)argument;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, from;
  socklen_t length = sizeof address;
  int a = socket(AF_INET, SOCK_DGRAM, 0), b = socket(AF_INET, SOCK_DGRAM, 0);
  CHECK_EQ(bind(a, (struct sockaddr *)&address, sizeof address), 0);
  CHECK_EQ(getsockname(a, (struct sockaddr *)&address, &length), 0);
  char bytes[32];
  for (int size = 0; size < 4; size++) { /* an empty one, too */
    struct iovec part = {(void *)(uintptr_t) "abc", (size_t)size};
    struct msghdr message = {.msg_name = &address, .msg_namelen = sizeof address, .msg_iov = &part,
                             .msg_iovlen = 1};
    CHECK_EQ(um_sendmsg(b, &message, 0, UM_FOREVER), size);
    part = (struct iovec){bytes, sizeof bytes};
    message = (struct msghdr){.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &part, .msg_iovlen = 1};
    CHECK_EQ(um_recvmsg(a, &message, 0, UM_FOREVER), size);
    CHECK_EQ(message.msg_namelen, sizeof from);
    CHECK(!memcmp(bytes, "abc", (size_t)size));
  }
  struct iovec part = {bytes, sizeof bytes};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
  CHECK_EQ(um_recvmsg(a, &message, 0, um_after(1)), -ETIMEDOUT);
  message.msg_namelen = sizeof address;
  message.msg_name = &address;
  part.iov_len = 0;
  CHECK_EQ(um_sendmsg(b, &message, 0, UM_FOREVER), 0);
  close(a);
  close(b);
  return 0;
}

TEST(io_sockets, datagrams) { run_fibers(datagrams, NULL); }

/* ---- connecting and accepting ---- */

static struct sockaddr_in at(uint16_t port) {
  return (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                              .sin_port = htons(port)};
}

static int connects(void *argument) {
  bool nonblocking = *(bool *)argument;
  uint16_t port;
  int listen_fd = listener(&port, 8), fd = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in address = at(port), peer;
  if (nonblocking) set_nonblocking(fd);
  if (nonblocking) set_nonblocking(listen_fd);
  CHECK_EQ(um_accept(listen_fd, NULL, NULL, 0, um_after(1)), -ETIMEDOUT);
  CHECK_EQ(um_connect(fd, (struct sockaddr *)&address, sizeof address, UM_FOREVER), 0);
  socklen_t length = sizeof peer;
  int accepted = um_accept(listen_fd, (struct sockaddr *)&peer, &length, SOCK_CLOEXEC, UM_FOREVER);
  CHECK(accepted >= 0);
  CHECK_EQ(length, sizeof peer);
  CHECK_EQ(peer.sin_family, AF_INET);
  char byte;
  CHECK_EQ(um_send(fd, "x", 1, 0, UM_FOREVER), 1);
  CHECK_EQ(um_recv(accepted, &byte, 1, 0, UM_FOREVER), 1);
  CHECK_EQ(um_close(fd), 0); /* sends FIN */
  CHECK_EQ(um_recv(accepted, &byte, 1, 0, UM_FOREVER), 0);
  CHECK_EQ(um_close(accepted), 0);
  CHECK_EQ(um_close(listen_fd), 0);
  fd = socket(AF_INET, SOCK_STREAM, 0);
  if (nonblocking) set_nonblocking(fd);
  CHECK_EQ(um_connect(fd, (struct sockaddr *)&address, sizeof address, UM_FOREVER), -ECONNREFUSED);
  close(fd);
  CHECK_EQ(um_accept(-1, NULL, NULL, 0, UM_FOREVER), -EBADF);
  return 0;
}

TEST(io_sockets, connects_and_accepts) {
  for (int i = 0; i < 2; i++) run_fibers(connects, &(bool){i == 1});
}

static int accepts_forever(void *argument) {
  return um_accept(*(int *)argument, NULL, NULL, 0, UM_FOREVER);
}

static int cancels_accept(void *argument) {
  (void)argument;
  uint16_t port;
  int fd = listener(&port, 8), client;
  CHECK_EQ(cancelled(spawn(accepts_forever, &fd)), -ECANCELED);
  CHECK_EQ(dial(port, &client), 0);
  int accepted = um_accept(fd, NULL, NULL, 0, um_now() - 1); /* there: a try succeeds */
  CHECK(accepted >= 0);
  close(accepted);
  close(client);
  close(fd);
  return 0;
}

TEST(io_sockets, a_cancelled_accept) { run_fibers(cancels_accept, NULL); }

/* A local listener with a full backlog lets connects wait. */
static int full_listener(struct sockaddr_un *address, int *filler) {
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  *address = (struct sockaddr_un){.sun_family = AF_UNIX};
  snprintf(address->sun_path + 1, sizeof address->sun_path - 1, "um-test-%d-%p", (int)getpid(), (void *)&fd);
  CHECK_EQ(bind(fd, (struct sockaddr *)address, sizeof *address), 0);
  CHECK_EQ(listen(fd, 0), 0);
  *filler = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK_EQ(connect(*filler, (struct sockaddr *)address, sizeof *address), 0);
  return fd;
}

static int connect_interrupted(void *argument) {
  (void)argument;
  struct sockaddr_un address;
  int filler, fd = full_listener(&address, &filler), client = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK_EQ(um_connect(client, (struct sockaddr *)&address, sizeof address, um_after(3)), -ETIMEDOUT);
  for (int i = 0; i < 400; i++) /* whatever the kernel is at */
    CHECK_EQ(um_connect(client, (struct sockaddr *)&address, sizeof address, um_now() + i * 1000 - 1), -ETIMEDOUT);
  int first = um_accept(fd, NULL, NULL, 0, UM_FOREVER);
  CHECK(first >= 0);
  CHECK_EQ(um_connect(client, (struct sockaddr *)&address, sizeof address, UM_FOREVER), 0);
  close(first);
  close(client);
  close(filler);
  close(fd);
  return 0;
}

TEST(io_sockets, a_connect_may_time_out_and_be_repeated) { run_fibers(connect_interrupted, NULL); }

/* ---- poll ---- */

static int polls(void *argument) {
  int *fds = argument;
  CHECK_EQ(um_poll(fds[0], POLLIN, um_after(1)), -ETIMEDOUT);
  CHECK_EQ(um_poll(fds[0], POLLOUT, UM_FOREVER), POLLOUT);
  CHECK_EQ(um_send(fds[1], "x", 1, 0, UM_FOREVER), 1);
  CHECK_EQ(um_poll(fds[0], POLLIN | POLLOUT, UM_FOREVER), POLLIN | POLLOUT);
  CHECK_EQ(um_close(fds[1]), 0);
  CHECK(um_poll(fds[0], POLLIN, UM_FOREVER) & POLLHUP);
  CHECK_EQ(um_poll(-1, POLLIN, UM_FOREVER), -EBADF);
  return 0;
}

TEST(io_sockets, polls) {
  int fds[2];
  local_pair(fds);
  run_fibers(polls, fds);
  close(fds[0]);
}

TEST(io_sockets, all_need_a_fiber) {
  char byte = 0;
  struct iovec part = {&byte, 1};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
  CHECK_EQ(um_recv(0, &byte, 1, 0, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_send(1, &byte, 1, 0, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_sendv(1, &part, 1, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_sendmsg(1, &message, 0, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_recvmsg(0, &message, 0, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_connect(0, NULL, 0, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_accept(0, NULL, NULL, 0, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_shutdown(0, SHUT_WR, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_close(-1), UM_ENOTFIBER);
  CHECK_EQ(um_poll(0, POLLIN, UM_FOREVER), UM_ENOTFIBER);
}
