/* Cancelled, or out of time, at every single wait of a connection's life: afterwards
 * everything goes on, no byte is lost and none is doubled. */
#include "support.h"

SUITE(interrupt);

#define UP 700000u
#define DOWN 200000u

typedef struct life {
  int version;
  bool server; /* we are */
  enum strike how;
  unsigned hit;         /* calls that failed because of the strike */
  SSL_CTX *ours, *theirs;
  int (*steps)(struct life *l, um_tls *tls);
  void (*script)(peer *p);
} life;

/* Far away, so that only the strike makes it pass. */
static um_time some_deadline(const life *l) {
  return l->how == STRIKE_DEADLINE ? um_after(600000) : UM_FOREVER;
}

/* Whether a call was struck and is to be made again. */
static bool again(life *l, ssize_t result) {
  if (result != strike_code(l->how)) return false;
  CHECK_EQ(++l->hit, 1);
  return true;
}

static int handshake(life *l, um_tls *tls) {
  int result;
  do result = um_tls_handshake(tls, some_deadline(l));
  while (again(l, result));
  return result;
}

static void write_pattern(life *l, um_tls *tls, size_t total) {
  static char bytes[UP];
  pattern(bytes, total, 0);
  for (size_t done = 0; done < total;) {
    ssize_t n = um_tls_write(tls, bytes + done, total - done, some_deadline(l));
    if (again(l, n)) continue;
    CHECK(n > 0);
    done += (size_t)n;
  }
}

static void read_pattern(life *l, um_tls *tls, size_t total) {
  static char bytes[DOWN];
  size_t done = 0;
  while (done < total) {
    ssize_t n = done < total / 4 ? um_tls_read(tls, bytes + done, 3000, some_deadline(l))
                : done < total / 2
                    ? um_tls_read_until(tls, bytes + done, total - done, bytes, 1, some_deadline(l))
                    : um_tls_read_exact(tls, bytes + done, (total - done + 1) / 2, some_deadline(l));
    if (again(l, n)) continue;
    CHECK(n > 0);
    done += (size_t)n;
  }
  CHECK(is_pattern(bytes, total, 0));
}

static void flush(life *l, um_tls *tls) {
  int result;
  do result = um_tls_flush(tls, some_deadline(l));
  while (again(l, result));
  CHECK_EQ(result, 0);
}

static void shut(life *l, um_tls *tls) {
  int result;
  do result = um_tls_shutdown(tls, some_deadline(l));
  while (again(l, result));
  CHECK_EQ(result, 0);
}

static void read_end(life *l, um_tls *tls) {
  ssize_t result;
  char byte;
  do result = um_tls_read(tls, &byte, 1, some_deadline(l));
  while (again(l, result));
  CHECK_EQ(result, 0);
}

/* A cancellation that came too late for the calls before strikes here. */
static void closed(life *l, um_tls *tls) {
  int result = um_tls_close(tls, some_deadline(l));
  if (!again(l, result)) CHECK_EQ(result, 0);
}

/* ---- one life ---- */

static int live(void *argument) {
  life *l = argument;
  int fds[2];
  peer p;
  um_tls *tls;
  tcp_pair(fds);
  int small = 20000;
  setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
  um_tls_options options = {.hostname = l->server ? NULL : "localhost"};
  CHECK_EQ((l->server ? um_tls_server : um_tls_client)(&tls, fds[0], l->ours, &options), 0);
  peer_start(&p, fds[1], l->theirs, !l->server, l->script, NULL);
  int fd = l->steps(l, tls);
  /* One that was struck too late to be reported is still pending. */
  if (um_fiber_cancelled() && !l->hit) CHECK_EQ(um_fiber_yield(), -ECANCELED);
  strike_end();
  if (fd >= 0) close(fd);
  peer_join(&p);
  return 0;
}

static unsigned strike_at;

static int live_struck(void *argument) {
  strike_me(((life *)argument)->how, strike_at);
  return live(argument);
}

/* At wait 0, 1, 2, ... until a life has no more of them; of the first three, until five in a row
 * have not: where a peer is first, there is no wait. */
static void sweep(int (*steps)(life *, um_tls *), void (*script)(peer *)) {
  for (int i = 0; i < 8; i++) {
    life l = {.version = i & 1 ? TLS1_3_VERSION : TLS1_2_VERSION, .server = i & 2,
              .how = i & 4 ? STRIKE_DEADLINE : STRIKE_CANCEL, .steps = steps, .script = script};
    l.ours = l.server ? um_server_ctx("server", l.version) : um_client_ctx(l.version);
    l.theirs = l.server ? plain_client_ctx(l.version) : plain_server_ctx("server", l.version);
    int spared = 0;
    for (strike_at = 0; spared < (strike_at < 3 ? 5 : 1);) {
      l.hit = 0;
      CHECK_EQ(run_fibers(live_struck, &l), 0);
      if (strike_end()) strike_at++, spared = 0;
      else spared++;
      CHECK(strike_at < 500);
    }
    CHECK(strike_at >= 3); /* there were some */
    SSL_CTX_free(l.ours);
    SSL_CTX_free(l.theirs);
  }
}

/* ---- handshake, reading, writing, shutdown ---- */

static void sends_and_sinks(peer *p) {
  static char bytes[DOWN];
  char in[5000];
  size_t total = 0;
  peer_shake(p);
  pattern(bytes, sizeof bytes, 0);
  for (size_t at = 0; at < DOWN; at += 10000) {
    peer_write(p, bytes + at, 10000);
    if (at == 50000 || at == 150000) usleep(300); /* so that our reader waits */
    if (at == 100000 && SSL_version(p->ssl) == TLS1_3_VERSION)
      SSL_key_update(p->ssl, SSL_KEY_UPDATE_REQUESTED);
  }
  for (size_t n; total < UP; total += n) {
    if (total % 50000 == 0) usleep(50);
    CHECK_EQ(SSL_read_ex(p->ssl, in, UP - total < sizeof in ? UP - total : sizeof in, &n), 1);
    CHECK(is_pattern(in, n, total));
  }
  CHECK_EQ(peer_drain(p), 0);
  SSL_shutdown(p->ssl);
}

static int whole_life(life *l, um_tls *tls) {
  CHECK_EQ(handshake(l, tls), 0);
  read_pattern(l, tls, DOWN);
  write_pattern(l, tls, UP);
  flush(l, tls);
  shut(l, tls);
  read_end(l, tls);
  closed(l, tls);
  return -1;
}
Test(interrupt, at_every_wait_of_a_life, .timeout = 300) { sweep(whole_life, sends_and_sinks); }

/* ---- the handshake inside reads and writes ---- */

static void sends_first(peer *p) {
  static char bytes[DOWN];
  peer_shake(p);
  pattern(bytes, 5000, 0);
  peer_write(p, bytes, 5000);
  peer_sink_pattern(p); /* its handshake is done */
}

static int implicit_handshake(life *l, um_tls *tls) {
  read_pattern(l, tls, 5000);
  write_pattern(l, tls, 5000);
  shut(l, tls);
  read_end(l, tls);
  closed(l, tls);
  return -1;
}
Test(interrupt, handshake_inside_a_read) { sweep(implicit_handshake, sends_first); }

/* ---- unwrap ---- */

static void ends_tls(peer *p) {
  peer_shake(p);
  peer_write(p, "some words nobody reads", 23);
  CHECK_EQ(peer_drain(p), 0);
  usleep(300);
  SSL_shutdown(p->ssl);
  CHECK_EQ(send(p->fd, "plain", 5, MSG_NOSIGNAL), 5);
}

static int unwraps(life *l, um_tls *tls) {
  void *rest = NULL;
  size_t length = 0;
  int fd;
  CHECK_EQ(handshake(l, tls), 0);
  do fd = um_tls_unwrap(tls, &rest, &length, some_deadline(l));
  while (again(l, fd));
  CHECK(fd >= 0);
  char bytes[8];
  if (length) memcpy(bytes, rest, length);
  CHECK_EQ(recv(fd, bytes + length, 5 - length, MSG_WAITALL), 5 - length);
  CHECK(!memcmp(bytes, "plain", 5));
  free(rest);
  return fd;
}
Test(interrupt, unwrap) { sweep(unwraps, ends_tls); }

/* ---- close ---- */

static void reads_slowly(peer *p) {
  char bytes[4000];
  size_t n;
  if (SSL_do_handshake(p->ssl) != 1) return; /* our last message was still buffered */
  while (SSL_read_ex(p->ssl, bytes, sizeof bytes, &n) == 1) {
    CHECK(is_pattern(bytes, n, p->count));
    p->count += n;
    if (p->count % 10000 < 4000) usleep(20);
  }
}

/* Close frees whatever happens, and says when bytes may not have arrived. */
static int closes(life *l, um_tls *tls) {
  CHECK_EQ(handshake(l, tls), 0);
  write_pattern(l, tls, 200000);
  int result = um_tls_close(tls, some_deadline(l));
  CHECK(result == 0 || result == strike_code(l->how));
  if (result < 0) l->hit++;
  return -1;
}
Test(interrupt, close) { sweep(closes, reads_slowly); }

/* ---- before anything waits ---- */

/* Silent until told, then until told again: what is tried before finds nothing. */
static void echoes_when_told(peer *p) {
  volatile bool *told = p->argument;
  while (!told[0]) usleep(500);
  peer_shake(p);
  while (!told[1]) usleep(500);
  peer_echo(p);
}

static int already_cancelled(void *argument) {
  life *l = argument;
  int fds[2];
  volatile bool told[2] = {false, false};
  peer p;
  um_tls *tls;
  char bytes[4];
  tcp_pair(fds);
  um_tls_options options = {.hostname = "localhost"};
  CHECK_EQ(um_tls_client(&tls, fds[0], l->ours, &options), 0);
  peer_start(&p, fds[1], l->theirs, true, echoes_when_told, (void *)told);
  um_fiber_cancel(um_fiber_self());
  CHECK_EQ(um_tls_handshake(tls, UM_FOREVER), -ECANCELED);
  CHECK_EQ(um_tls_handshake(tls, 0), -ETIMEDOUT); /* tries without waiting */
  told[0] = true;
  CHECK_EQ(um_tls_handshake(tls, UM_FOREVER), 0);
  CHECK(um_fiber_cancelled());
  um_fiber_cancel(um_fiber_self());
  CHECK_EQ(um_tls_write(tls, "ping", 4, UM_FOREVER), 4); /* does not wait */
  CHECK_EQ(um_tls_read(tls, bytes, 4, UM_FOREVER), -ECANCELED);
  told[1] = true;
  CHECK_EQ(um_tls_read_exact(tls, bytes, 4, UM_FOREVER), 4);
  CHECK_EQ(um_tls_read(tls, bytes, 4, 0), -ETIMEDOUT);
  CHECK_EQ(um_tls_write(tls, "pong", 4, 0), 4); /* a past deadline is a try, and this one works */
  CHECK_EQ(um_tls_read_exact(tls, bytes, 4, UM_FOREVER), 4);
  CHECK_EQ(um_tls_close(tls, UM_FOREVER), 0);
  peer_join(&p);
  return 0;
}
Test(interrupt, before_the_first_wait) {
  life l = {.ours = um_client_ctx(0), .theirs = plain_server_ctx("server", 0)};
  run_fibers(already_cancelled, &l);
  SSL_CTX_free(l.ours);
  SSL_CTX_free(l.theirs);
}

/* ---- short counts ---- */

static void reads_when_told(peer *p) {
  volatile bool *told = p->argument;
  peer_shake(p);
  while (!*told) usleep(500);
  char bytes[16384];
  size_t n;
  while (SSL_read_ex(p->ssl, bytes, sizeof bytes, &n) == 1) {
    CHECK(is_pattern(bytes, n, p->count));
    p->count += n;
  }
}

static int cancel_soon(void *argument) {
  um_fiber_sleep(um_after(20));
  um_fiber_cancel(argument);
  return 0;
}

/* What was taken is counted, the reason comes with the next call, the rest goes on. */
static int short_counts(void *argument) {
  life *l = argument;
  int fds[2];
  peer p;
  um_tls *tls;
  volatile bool told = false;
  const size_t total = 8u << 20;
  char *bytes = malloc(total);
  pattern(bytes, total, 0);
  tcp_pair(fds);
  set_buffers(fds[0], 20000);
  um_tls_options options = {.hostname = "localhost"};
  CHECK_EQ(um_tls_client(&tls, fds[0], l->ours, &options), 0);
  peer_start(&p, fds[1], l->theirs, true, reads_when_told, (void *)&told);
  CHECK_EQ(um_tls_handshake(tls, UM_FOREVER), 0);

  ssize_t first = um_tls_write(tls, bytes, total, um_after(30));
  CHECK(first > 0 && (size_t)first < total);
  size_t at = (size_t)first;
  for (ssize_t n; (n = um_tls_write(tls, bytes + at, total - at, um_after(20))) != -ETIMEDOUT;) {
    CHECK(n > 0); /* the kernel found some more room */
    at += (size_t)n;
  }

  um_fiber *other = spawn(cancel_soon, um_fiber_self());
  CHECK_EQ(um_tls_write(tls, bytes + at, total - at, UM_FOREVER), -ECANCELED);
  join(other);
  CHECK_EQ(um_tls_flush(tls, um_after(1)), -ETIMEDOUT);

  told = true;
  CHECK_EQ(um_tls_write(tls, bytes + at, total - at, UM_FOREVER), total - at);
  CHECK_EQ(um_tls_close(tls, UM_FOREVER), 0);
  peer_join(&p);
  CHECK_EQ(p.count, total);
  free(bytes);
  return 0;
}
Test(interrupt, short_counts) {
  life l = {.ours = um_client_ctx(0), .theirs = plain_server_ctx("server", 0)};
  run_fibers(short_counts, &l);
  SSL_CTX_free(l.ours);
  SSL_CTX_free(l.theirs);
}
