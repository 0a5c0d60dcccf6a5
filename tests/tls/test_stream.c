/* A stream against a plain OpenSSL peer: every call of tls.h, as client and as server,
 * TLS 1.2 and 1.3. */
#include "support.h"

#include <fcntl.h>
#include <poll.h>

SUITE(stream);

/* ---- the four combinations ---- */

typedef struct scene {
  int version;
  bool server; /* we are */
  int fds[2];  /* ours, the peer's */
  SSL_CTX *ours, *theirs;
  peer peer;
  um_tls *tls;
} scene;

static void open_scene(scene *s, void (*script)(peer *), void *argument) {
  s->ours = s->server ? um_server_ctx("server", s->version) : um_client_ctx(s->version);
  s->theirs = s->server ? plain_client_ctx(s->version) : plain_server_ctx("server", s->version);
  if (!s->fds[0]) tcp_pair(s->fds);
  um_tls_options options = {.hostname = s->server ? NULL : "localhost"};
  CHECK_EQ((s->server ? um_tls_server : um_tls_client)(&s->tls, s->fds[0], s->ours, &options), 0);
  peer_start(&s->peer, s->fds[1], s->theirs, !s->server, script, argument);
}

static void close_scene(scene *s) {
  peer_join(&s->peer);
  SSL_CTX_free(s->ours);
  SSL_CTX_free(s->theirs);
  s->fds[0] = 0;
}

static void in_all(fiber_fn fn) {
  for (int i = 0; i < 4; i++) {
    scene s = {.version = i & 1 ? TLS1_3_VERSION : TLS1_2_VERSION, .server = i & 2};
    CHECK_EQ(run_fibers(fn, &s), 0);
  }
}

/* ---- reading and writing ---- */

static int echo(void *argument) {
  scene *s = argument;
  char out[5000], in[5000];
  open_scene(s, peer_echo, NULL);
  for (size_t offset = 0; offset < 40000; offset += sizeof out) {
    pattern(out, sizeof out, offset);
    CHECK_EQ(um_tls_write(s->tls, out, sizeof out, UM_FOREVER), sizeof out);
    CHECK_EQ(um_tls_read_exact(s->tls, in, sizeof in, UM_FOREVER), sizeof in);
    CHECK(is_pattern(in, sizeof in, offset));
  }
  CHECK_EQ(SSL_version(um_tls_ssl(s->tls)), s->version);
  CHECK_EQ(um_tls_fd(s->tls), s->fds[0]);
  CHECK_EQ(strlen(um_tls_error(s->tls)), 0);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_scene(s);
  CHECK_EQ(s->peer.count, 40000);
  return 0;
}
Test(stream, echo) { in_all(echo); }

static int ends_cleanly(void *argument) {
  scene *s = argument;
  char byte;
  open_scene(s, peer_echo, NULL);
  CHECK_EQ(um_tls_handshake(s->tls, UM_FOREVER), 0);
  CHECK_EQ(um_tls_handshake(s->tls, 0), 0);
  CHECK_EQ(um_tls_shutdown(s->tls, UM_FOREVER), 0);
  CHECK_EQ(um_tls_shutdown(s->tls, UM_FOREVER), 0);
  CHECK_EQ(um_tls_write(s->tls, "x", 1, UM_FOREVER), -EPIPE);
  CHECK_EQ(um_tls_read(s->tls, &byte, 1, UM_FOREVER), 0);
  CHECK_EQ(um_tls_read(s->tls, &byte, 1, UM_FOREVER), 0);
  CHECK_EQ(um_tls_read_exact(s->tls, &byte, 1, UM_FOREVER), 0);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_scene(s);
  return 0;
}
Test(stream, ends_cleanly) { in_all(ends_cleanly); }

/* ---- half-close ---- */

static void half_closes_then_sinks(peer *p) {
  peer_shake(p);
  peer_write(p, "last words", 10);
  SSL_shutdown(p->ssl); /* close_notify, but the socket stays open */
  p->count = peer_drain(p);
}

/* A clean end is one however often it is asked for, also while the socket is open. */
static int reads_zero_again(void *argument) {
  scene *s = argument;
  char bytes[20];
  open_scene(s, half_closes_then_sinks, NULL);
  CHECK_EQ(um_tls_read_exact(s->tls, bytes, 10, UM_FOREVER), 10);
  for (int i = 0; i < 3; i++) CHECK_EQ(um_tls_read(s->tls, bytes, sizeof bytes, um_after(5000)), 0);
  CHECK_EQ(um_tls_read_exact(s->tls, bytes, 1, um_after(5000)), 0);
  CHECK_EQ(um_tls_read_until(s->tls, bytes, 10, "\n", 1, um_after(5000)), 0);
  CHECK_EQ(um_tls_write(s->tls, "still", 5, UM_FOREVER), 5);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_scene(s);
  CHECK_EQ(s->peer.count, 5);
  return 0;
}
Test(stream, a_clean_end_stays_one) { in_all(reads_zero_again); }

static void writes_after_our_close(peer *p) {
  char bytes[10000];
  peer_shake(p);
  peer_read(p, bytes, 5);
  CHECK_EQ(peer_drain(p), 0);
  for (size_t i = 0; i < 50; i++) {
    if (SSL_version(p->ssl) == TLS1_3_VERSION && i % 5 == 1) SSL_key_update(p->ssl, SSL_KEY_UPDATE_REQUESTED);
    pattern(bytes, sizeof bytes, i * sizeof bytes);
    peer_write(p, bytes, sizeof bytes);
    usleep(i % 10 == 0 ? 1000 : 0);
  }
  SSL_shutdown(p->ssl);
}

/* The answers to the peer's KeyUpdates can no longer be sent: nothing may be lost by that. */
static int reads_on_after_shutdown(void *argument) {
  scene *s = argument;
  char bytes[10000];
  open_scene(s, writes_after_our_close, NULL);
  CHECK_EQ(um_tls_write(s->tls, "hello", 5, UM_FOREVER), 5);
  CHECK_EQ(um_tls_shutdown(s->tls, UM_FOREVER), 0);
  for (size_t i = 0; i < 50; i++) {
    CHECK_EQ(um_tls_read_exact(s->tls, bytes, sizeof bytes, UM_FOREVER), sizeof bytes);
    CHECK(is_pattern(bytes, sizeof bytes, i * sizeof bytes));
  }
  CHECK_EQ(um_tls_read(s->tls, bytes, 1, UM_FOREVER), 0);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_scene(s);
  return 0;
}
Test(stream, reads_on_after_shutdown) { in_all(reads_on_after_shutdown); }

/* ---- truncation ---- */

static void vanishes(peer *p) {
  peer_shake(p);
  peer_write(p, "cut off", 7);
  shutdown(p->fd, SHUT_WR);
  char bytes[100]; /* unread bytes would make close(2) send a reset */
  while (recv(p->fd, bytes, sizeof bytes, 0) > 0) continue;
}

static int truncated(void *argument) {
  scene *s = argument;
  char bytes[20];
  open_scene(s, vanishes, NULL);
  CHECK_EQ(um_tls_read_exact(s->tls, bytes, 20, UM_FOREVER), UM_ETRUNCATED);
  CHECK_EQ(um_tls_read(s->tls, bytes, 20, UM_FOREVER), 7); /* kept */
  CHECK(!memcmp(bytes, "cut off", 7));
  CHECK_EQ(um_tls_read(s->tls, bytes, 20, UM_FOREVER), UM_ETRUNCATED);
  CHECK_HAS(um_tls_error(s->tls), "close_notify");
  um_tls_close(s->tls, UM_FOREVER);
  close_scene(s);
  return 0;
}
Test(stream, truncation_is_its_own_error) { in_all(truncated); }

static void resets(peer *p) {
  struct linger hard = {1, 0};
  char byte;
  peer_shake(p);
  peer_read(p, &byte, 1);
  setsockopt(p->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  SSL_set_quiet_shutdown(p->ssl, 1);
}

static int reset(void *argument) {
  scene *s = argument;
  char byte;
  open_scene(s, resets, NULL);
  CHECK_EQ(um_tls_write(s->tls, "x", 1, UM_FOREVER), 1);
  CHECK_EQ(um_tls_read(s->tls, &byte, 1, UM_FOREVER), -ECONNRESET);
  CHECK(um_tls_error(s->tls)[0]);
  CHECK_EQ(um_tls_read(s->tls, &byte, 1, UM_FOREVER), -ECONNRESET);
  um_tls_close(s->tls, UM_FOREVER);
  close_scene(s);
  return 0;
}
Test(stream, reset_is_its_own_error) { in_all(reset); }

static void closes_in_handshake(peer *p) {
  char bytes[100];
  CHECK(recv(p->fd, bytes, sizeof bytes, 0) > 0);
  shutdown(p->fd, SHUT_WR);
  while (recv(p->fd, bytes, sizeof bytes, 0) > 0) continue;
}

static int truncated_handshake(void *argument) {
  scene *s = argument;
  s->server = false;
  open_scene(s, closes_in_handshake, NULL);
  CHECK_EQ(um_tls_handshake(s->tls, UM_FOREVER), UM_ETRUNCATED);
  CHECK_EQ(um_tls_handshake(s->tls, UM_FOREVER), UM_ETRUNCATED);
  CHECK_EQ(um_tls_write(s->tls, "x", 1, UM_FOREVER), UM_ETRUNCATED);
  um_tls_close(s->tls, UM_FOREVER);
  close_scene(s);
  return 0;
}
Test(stream, end_in_the_handshake) { in_all(truncated_handshake); }

/* ---- read_exact and read_until ---- */

static void sends_lines(peer *p) {
  peer_shake(p);
  peer_write(p, "first\r", 6);
  usleep(2000);
  peer_write(p, "\nsecond\r\nthird without end", 26);
  usleep(2000);
  SSL_shutdown(p->ssl);
  peer_drain(p);
}

static int lines(void *argument) {
  scene *s = argument;
  char b[64];
  open_scene(s, sends_lines, NULL);
  CHECK_EQ(um_tls_read_until(s->tls, b, 3, "\r\n", 2, UM_FOREVER), UM_ETOOLONG);
  CHECK_EQ(um_tls_read_until(s->tls, b, sizeof b, "", 0, UM_FOREVER), -EINVAL);
  CHECK_EQ(um_tls_read_until(s->tls, b, sizeof b, "\r\n", 2, UM_FOREVER), 7);
  CHECK(!memcmp(b, "first\r\n", 7));
  CHECK_EQ(um_tls_read_exact(s->tls, b, 3, UM_FOREVER), 3);
  CHECK_EQ(um_tls_read_until(s->tls, b + 3, 5, "\r\n", 2, UM_FOREVER), 5); /* just fits */
  CHECK(!memcmp(b, "second\r\n", 8));
  CHECK_EQ(um_tls_read_until(s->tls, b, sizeof b, "\r\n", 2, UM_FOREVER), UM_ETRUNCATED);
  CHECK_EQ(um_tls_pending(s->tls), 17);
  CHECK_EQ(um_tls_read_exact(s->tls, b, 18, UM_FOREVER), UM_ETRUNCATED);
  CHECK_EQ(um_tls_read_until(s->tls, b, sizeof b, " ", 1, UM_FOREVER), 6);
  CHECK_EQ(um_tls_read(s->tls, b, sizeof b, UM_FOREVER), 11);
  CHECK(!memcmp(b, "without end", 11));
  CHECK_EQ(um_tls_read(s->tls, b, sizeof b, UM_FOREVER), 0);
  CHECK_EQ(um_tls_read_exact(s->tls, b, 0, UM_FOREVER), 0);
  CHECK_EQ(um_tls_read(s->tls, b, 0, UM_FOREVER), 0);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_scene(s);
  return 0;
}
Test(stream, read_until_and_exact) { in_all(lines); }

/* ---- writev ---- */

static int vectors(void *argument) {
  scene *s = argument;
  static char bytes[300000];
  struct iovec iov[300];
  size_t total = 0;
  pattern(bytes, sizeof bytes, 0);
  for (int i = 0; i < 300; i++) {
    size_t length = i % 7 == 0 ? 0 : i % 50 == 1 ? 20000 : i % 3 ? (size_t)(i * 7 % 300) : 4096;
    if (total + length > sizeof bytes) length = 0;
    iov[i] = (struct iovec){bytes + total, length};
    total += length;
  }
  open_scene(s, peer_sink_pattern, NULL);
  CHECK_EQ(um_tls_writev(s->tls, iov, 300, UM_FOREVER), total);
  CHECK_EQ(um_tls_writev(s->tls, iov, 0, UM_FOREVER), 0);
  CHECK_EQ(um_tls_write(s->tls, bytes, 0, UM_FOREVER), 0);
  CHECK_EQ(um_tls_flush(s->tls, UM_FOREVER), 0);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_scene(s);
  CHECK_EQ(s->peer.count, total);
  return 0;
}
Test(stream, writev) { in_all(vectors); }

/* ---- starting and stopping TLS ---- */

static void speaks_plain_then_tls(peer *p) {
  char bytes[16];
  CHECK_EQ(recv(p->fd, bytes, 8, MSG_WAITALL), 8);
  CHECK(!memcmp(bytes, "STARTTLS", 8));
  peer_echo(p);
}

/* The first bytes of TLS were read together with the plain ones. */
static int already_received(void *argument) {
  scene *s = argument;
  int relay[2];
  char bytes[700];
  s->server = true;
  s->ours = um_server_ctx("server", s->version);
  s->theirs = plain_client_ctx(s->version);
  tcp_pair(s->fds);
  tcp_pair(relay);
  (void)relay;
  peer_start(&s->peer, s->fds[1], s->theirs, false, peer_echo, NULL);
  ssize_t early = um_recv(s->fds[0], bytes, 100, 0, UM_FOREVER);
  CHECK(early > 0);
  um_tls_options options = {.received = bytes, .received_length = (size_t)early};
  CHECK_EQ(um_tls_server(&s->tls, s->fds[0], s->ours, &options), 0);
  memset(bytes, 'x', sizeof bytes); /* only a copy may be used */
  CHECK_EQ(um_tls_write(s->tls, "ping", 4, UM_FOREVER), 4);
  CHECK_EQ(um_tls_read_exact(s->tls, bytes, 4, UM_FOREVER), 4);
  CHECK(!memcmp(bytes, "ping", 4));
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close(relay[0]), close(relay[1]);
  close_scene(s);
  return 0;
}
Test(stream, bytes_already_received) { in_all(already_received); }

static int starttls(void *argument) {
  scene *s = argument;
  char bytes[4];
  s->server = false;
  open_scene(s, speaks_plain_then_tls, NULL);
  CHECK_EQ(um_send(s->fds[0], "STARTTLS", 8, 0, UM_FOREVER), 8);
  CHECK_EQ(um_tls_write(s->tls, "ping", 4, UM_FOREVER), 4);
  CHECK_EQ(um_tls_read_exact(s->tls, bytes, 4, UM_FOREVER), 4);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_scene(s);
  return 0;
}
Test(stream, plain_before_tls) { in_all(starttls); }

static void ends_tls_and_goes_on(peer *p) {
  char bytes[8];
  bool early = p->argument != NULL; /* plain bytes right behind close_notify */
  peer_shake(p);
  peer_write(p, "bye", 3);
  SSL_shutdown(p->ssl);
  if (early) CHECK_EQ(send(p->fd, "leftover", 8, MSG_NOSIGNAL), 8);
  CHECK_EQ(peer_drain(p), 4);
  if (!early) CHECK_EQ(send(p->fd, "leftover", 8, MSG_NOSIGNAL), 8);
  CHECK_EQ(recv(p->fd, bytes, 5, MSG_WAITALL), 5);
  CHECK(!memcmp(bytes, "plain", 5));
}

static int unwraps_when(scene *s, bool early, bool read_first) {
  char bytes[16];
  void *rest = NULL;
  size_t length = 0;
  open_scene(s, ends_tls_and_goes_on, early ? s : NULL);
  CHECK_EQ(um_tls_write(s->tls, "last", 4, UM_FOREVER), 4);
  if (read_first) {
    CHECK_EQ(um_tls_read_exact(s->tls, bytes, 3, UM_FOREVER), 3);
    CHECK_EQ(um_tls_read(s->tls, bytes, 3, UM_FOREVER), 0);
    usleep(3000); /* what follows close_notify has arrived */
    um_fiber_yield();
  }
  int fd = um_tls_unwrap(s->tls, &rest, &length, um_after(10000));
  CHECK_EQ(fd, s->fds[0]);
  CHECK(length <= 8);
  if (length) memcpy(bytes, rest, length);
  CHECK((rest != NULL) == (length != 0));
  while (length < 8) {
    ssize_t more = um_recv(fd, bytes + length, 8 - length, 0, UM_FOREVER);
    CHECK(more > 0);
    length += (size_t)more;
  }
  CHECK(!memcmp(bytes, "leftover", 8));
  CHECK_EQ(um_send(fd, "plain", 5, 0, UM_FOREVER), 5);
  free(rest);
  um_close(fd);
  close_scene(s);
  return 0;
}

static int unwraps(void *argument) {
  for (int i = 0; i < 4; i++) CHECK_EQ(unwraps_when(argument, i & 1, i & 2), 0);
  return 0;
}
Test(stream, unwrap_gives_leftovers_back) { in_all(unwraps); }

static int keeps_fd(void *argument) {
  scene *s = argument;
  char byte;
  s->ours = um_client_ctx(0);
  tcp_pair(s->fds);
  um_tls_options options = {.hostname = "localhost", .flags = UM_TLS_KEEP_FD};
  CHECK_EQ(um_tls_client(&s->tls, s->fds[0], s->ours, &options), 0);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  CHECK_EQ(send(s->fds[0], "x", 1, 0), 1);
  CHECK_EQ(recv(s->fds[1], &byte, 1, 0), 1);
  options.hostname = NULL; /* not without UM_TLS_INSECURE */
  CHECK_EQ(um_tls_client(&s->tls, s->fds[0], s->ours, &options), -EINVAL);
  CHECK_EQ(fcntl(s->fds[0], F_GETFD) & 0, 0);
  options.flags = 0;
  CHECK_EQ(um_tls_client(&s->tls, s->fds[0], s->ours, &options), -EINVAL);
  CHECK_EQ(fcntl(s->fds[0], F_GETFD), -1); /* the stream's, also on failure */
  close(s->fds[1]);
  SSL_CTX_free(s->ours);
  return 0;
}
Test(stream, who_owns_the_descriptor) {
  scene s = {0};
  run_fibers(keeps_fd, &s);
}

/* ---- awkward peers ---- */

/* Passes bytes on, one per segment, in both directions. */
static void *trickle(void *argument) {
  int *fds = argument;
  struct pollfd polls[2] = {{fds[0], POLLIN, 0}, {fds[1], POLLIN, 0}};
  int open = 2;
  char byte;
  while (open) {
    poll(polls, 2, -1);
    for (int i = 0; i < 2; i++) {
      if (!polls[i].revents) continue;
      if (recv(fds[i], &byte, 1, 0) == 1) {
        if (send(fds[1 - i], &byte, 1, MSG_NOSIGNAL) != 1) polls[i].fd = -1, open--;
      } else {
        shutdown(fds[1 - i], SHUT_WR);
        polls[i].fd = -1, open--;
      }
    }
  }
  close(fds[0]), close(fds[1]);
  return NULL;
}

static int one_byte_at_a_time(void *argument) {
  scene *s = argument;
  pthread_t thread;
  int left[2], right[2];
  char out[500], in[500];
  tcp_pair(left);
  tcp_pair(right);
  int relay[2] = {left[1], right[0]};
  s->fds[0] = left[0];
  s->fds[1] = right[1];
  CHECK_EQ(pthread_create(&thread, NULL, trickle, relay), 0);
  open_scene(s, peer_echo, NULL);
  for (int i = 0; i < 3; i++) {
    pattern(out, sizeof out, 7);
    CHECK_EQ(um_tls_write(s->tls, out, sizeof out, UM_FOREVER), sizeof out);
    CHECK_EQ(um_tls_read_exact(s->tls, in, sizeof in, UM_FOREVER), sizeof in);
    CHECK(is_pattern(in, sizeof in, 7));
  }
  CHECK_EQ(um_tls_shutdown(s->tls, UM_FOREVER), 0);
  CHECK_EQ(um_tls_read(s->tls, in, 1, UM_FOREVER), 0);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_scene(s);
  pthread_join(thread, NULL);
  return 0;
}
Test(stream, one_byte_per_segment) { in_all(one_byte_at_a_time); }

static int nonblocking_descriptor(void *argument) {
  scene *s = argument;
  static char out[400000], in[400000];
  tcp_pair(s->fds);
  fcntl(s->fds[0], F_SETFL, O_NONBLOCK);
  open_scene(s, peer_echo, NULL);
  for (size_t at = 0; at < sizeof out; at += 50000) {
    pattern(out + at, 50000, at);
    CHECK_EQ(um_tls_write(s->tls, out + at, 50000, UM_FOREVER), 50000);
    CHECK_EQ(um_tls_read_exact(s->tls, in + at, 50000, UM_FOREVER), 50000);
  }
  CHECK(is_pattern(in, sizeof in, 0));
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_scene(s);
  return 0;
}
Test(stream, nonblocking_descriptor) { in_all(nonblocking_descriptor); }

static int local_sockets(void *argument) {
  scene *s = argument;
  local_pair(s->fds);
  return echo(s);
}
Test(stream, local_sockets) { in_all(local_sockets); }

/* ---- bulk ---- */

#define BULK (64u << 20)

static void sends_bulk(peer *p) {
  static char bytes[1 << 16];
  peer_shake(p);
  for (size_t at = 0; at < BULK; at += sizeof bytes) {
    pattern(bytes, sizeof bytes, at);
    peer_write(p, bytes, sizeof bytes);
  }
  SSL_shutdown(p->ssl);
  peer_drain(p);
}

static int download(void *argument) {
  scene *s = argument;
  static char bytes[50000];
  open_scene(s, sends_bulk, NULL);
  size_t total = 0;
  for (ssize_t n; (n = um_tls_read(s->tls, bytes, sizeof bytes, UM_FOREVER)) > 0; total += (size_t)n)
    CHECK(is_pattern(bytes, (size_t)n, total));
  CHECK_EQ(total, BULK);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_scene(s);
  return 0;
}
Test(stream, download) {
  scene s = {.version = TLS1_3_VERSION};
  run_fibers(download, &s);
}

static int upload(void *argument) {
  scene *s = argument;
  static char bytes[200000];
  open_scene(s, peer_sink_pattern, NULL);
  for (size_t at = 0; at < BULK;) {
    size_t part = BULK - at < sizeof bytes ? BULK - at : sizeof bytes;
    pattern(bytes, part, at);
    CHECK_EQ(um_tls_write(s->tls, bytes, part, UM_FOREVER), part);
    at += part;
  }
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_scene(s);
  CHECK_EQ(s->peer.count, BULK);
  return 0;
}
Test(stream, upload) {
  scene s = {.version = TLS1_3_VERSION, .server = true};
  run_fibers(upload, &s);
}

/* ---- misuse ---- */

static int second_read(void *argument) {
  char byte;
  return (int)um_tls_read(argument, &byte, 1, UM_FOREVER);
}

static int second_reader(void *argument) {
  scene *s = argument;
  open_scene(s, peer_echo, NULL);
  CHECK_EQ(um_tls_handshake(s->tls, UM_FOREVER), 0);
  um_fiber *first = spawn(second_read, s->tls), *second = spawn(second_read, s->tls);
  CHECK_EQ(join(second), UM_EREENTRANT);
  CHECK_EQ(um_tls_write(s->tls, "x", 1, UM_FOREVER), 1);
  CHECK_EQ(join(first), 1);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_scene(s);
  return 0;
}
Test(stream, a_second_reader_is_told) { in_all(second_reader); }

static int writes_forever(void *argument) {
  static char bytes[100000];
  ssize_t result;
  do result = um_tls_write(argument, bytes, sizeof bytes, UM_FOREVER);
  while (result > 0);
  return (int)result;
}

static void shakes_and_waits(peer *p) {
  peer_shake(p);
  char byte;
  while (recv(p->fd, &byte, 1, MSG_PEEK) > 0 && !*(volatile bool *)p->argument) usleep(1000);
}

/* Close lets everyone out who waits in the stream. */
static int closed_under_them(void *argument) {
  scene *s = argument;
  bool closed = false;
  tcp_pair(s->fds);
  set_buffers(s->fds[0], 20000);
  set_buffers(s->fds[1], 20000);
  open_scene(s, shakes_and_waits, &closed);
  CHECK_EQ(um_tls_handshake(s->tls, UM_FOREVER), 0);
  um_fiber *reader = spawn(second_read, s->tls), *one = spawn(writes_forever, s->tls),
           *two = spawn(writes_forever, s->tls);
  um_fiber_sleep(um_after(30));
  CHECK_EQ(um_tls_close(s->tls, um_after(10)), -ETIMEDOUT);
  closed = true;
  CHECK_EQ(join(reader), UM_ECLOSED);
  CHECK_EQ(join(one), UM_ECLOSED);
  CHECK_EQ(join(two), UM_ECLOSED);
  close_scene(s);
  return 0;
}
Test(stream, close_lets_waiters_go) { in_all(closed_under_them); }

static int aborts(void *argument) {
  scene *s = argument;
  bool closed = false;
  tcp_pair(s->fds);
  set_buffers(s->fds[0], 20000);
  set_buffers(s->fds[1], 20000);
  open_scene(s, shakes_and_waits, &closed);
  CHECK_EQ(um_tls_handshake(s->tls, UM_FOREVER), 0);
  um_fiber *reader = spawn(second_read, s->tls), *writer = spawn(writes_forever, s->tls);
  um_fiber_sleep(um_after(20));
  um_tls_abort(s->tls);
  closed = true;
  CHECK_EQ(join(reader), UM_ECLOSED);
  CHECK_EQ(join(writer), UM_ECLOSED);
  close_scene(s);
  return 0;
}
Test(stream, abort_lets_waiters_go) { in_all(aborts); }

/* Outside fibers nothing waits. */
static int hands_out(void *argument) {
  scene *s = argument;
  open_scene(s, peer_echo, NULL);
  return um_tls_handshake(s->tls, UM_FOREVER);
}

static int from_a_post(void *argument) {
  scene *s = argument;
  char byte;
  CHECK_EQ(um_tls_read(s->tls, &byte, 1, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_tls_write(s->tls, &byte, 1, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_tls_flush(s->tls, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), UM_ENOTFIBER);
  s->peer.result = 1;
  return 0;
}

static int not_in_a_fiber(void *argument) {
  scene *s = argument;
  CHECK_EQ(hands_out(s), 0);
  s->peer.result = 0;
  CHECK_EQ(um_post(um_reactor_current(), from_a_post, s), 0);
  while (!s->peer.result) um_fiber_yield();
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_scene(s);
  return 0;
}
Test(stream, outside_fibers_nothing_waits) { in_all(not_in_a_fiber); }

/* ---- callbacks ---- */

static int in_callback;
static int callback_result;

static int looks_at_names(SSL *ssl, int *alert, void *argument) {
  (void)ssl, (void)alert, (void)argument;
  in_callback++;
  callback_result = um_fiber_sleep(um_after(1));
  return SSL_TLSEXT_ERR_OK;
}

static int callbacks_must_not_wait(void *argument) {
  scene *s = argument;
  s->server = true;
  s->ours = um_server_ctx("server", s->version);
  s->theirs = plain_client_ctx(s->version);
  SSL_CTX_set_tlsext_servername_callback(s->ours, looks_at_names);
  tcp_pair(s->fds);
  CHECK_EQ(um_tls_server(&s->tls, s->fds[0], s->ours, NULL), 0);
  in_callback = 0;
  peer_start(&s->peer, s->fds[1], s->theirs, false, peer_echo, NULL);
  CHECK_EQ(um_tls_handshake(s->tls, UM_FOREVER), 0);
  CHECK(in_callback > 0);
  CHECK_EQ(callback_result, UM_ENOTFIBER);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_scene(s);
  return 0;
}
Test(stream, callbacks_must_not_wait) { in_all(callbacks_must_not_wait); }

/* ---- OpenSSL's error queue ---- */

static int errors_of_others(void *argument) {
  scene *s = argument;
  char byte;
  open_scene(s, peer_echo, NULL);
  for (int i = 0; i < 5; i++) {
    ERR_raise(ERR_LIB_USER, 17); /* somebody's mess, before each call */
    CHECK_EQ(um_tls_write(s->tls, "x", 1, UM_FOREVER), 1);
    ERR_raise(ERR_LIB_USER, 17);
    CHECK_EQ(um_tls_read(s->tls, &byte, 1, UM_FOREVER), 1);
  }
  ERR_raise(ERR_LIB_USER, 17);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  ERR_clear_error();
  close_scene(s);
  return 0;
}
Test(stream, errors_of_others_do_not_matter) { in_all(errors_of_others); }
