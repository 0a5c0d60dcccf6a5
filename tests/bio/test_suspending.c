/* Suspending mode: unmodified blocking-style OpenSSL code in fibers. */
#include "support.h"

#include <fcntl.h>
#include <poll.h>

SUITE(suspending);

typedef struct scene {
  int version;
  bool server;
  int fds[2];
  SSL_CTX *ours, *theirs;
  SSL *ssl;
  BIO *bio;
  peer peer;
} scene;

static void open_scene(scene *s, void (*script)(peer *), void *argument) {
  s->ours = s->server ? plain_server_ctx("server", s->version) : plain_client_ctx(s->version);
  s->theirs = s->server ? plain_client_ctx(s->version) : plain_server_ctx("server", s->version);
  if (!s->fds[0]) tcp_pair(s->fds);
  CHECK(s->ssl = SSL_new(s->ours));
  CHECK(s->bio = BIO_new_uring(s->fds[0], BIO_CLOSE));
  SSL_set_bio(s->ssl, s->bio, s->bio);
  peer_start(&s->peer, s->fds[1], s->theirs, !s->server, script, argument);
}

static int shake(scene *s) { return s->server ? SSL_accept(s->ssl) : SSL_connect(s->ssl); }

static void close_scene(scene *s) {
  SSL_free(s->ssl);
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

static void read_all(SSL *ssl, void *bytes, size_t length) {
  size_t n;
  for (size_t have = 0; have < length; have += n)
    CHECK_EQ(SSL_read_ex(ssl, (char *)bytes + have, length - have, &n), 1);
}

static int echo(void *argument) {
  scene *s = argument;
  static char out[30000], in[30000];
  open_scene(s, peer_echo, NULL);
  CHECK_EQ(shake(s), 1);
  CHECK_EQ(SSL_get_fd(s->ssl), s->fds[0]);
  for (size_t at = 0; at < 300000; at += sizeof out) {
    pattern(out, sizeof out, at);
    CHECK_EQ(SSL_write(s->ssl, out, sizeof out), sizeof out);
    read_all(s->ssl, in, sizeof in);
    CHECK(is_pattern(in, sizeof in, at));
  }
  CHECK_EQ(SSL_shutdown(s->ssl), 0);
  CHECK_EQ(SSL_shutdown(s->ssl), 1);
  close_scene(s);
  return 0;
}
Test(suspending, echo) { in_all(echo); }

static int chains(void *argument) {
  scene *s = argument;
  char bytes[100];
  s->ours = plain_client_ctx(0);
  s->theirs = plain_server_ctx("server", 0);
  tcp_pair(s->fds);
  peer_start(&s->peer, s->fds[1], s->theirs, true, peer_echo, NULL);
  BIO *chain = BIO_push(BIO_new(BIO_f_buffer()),
                        BIO_push(BIO_new_ssl(s->ours, 1), BIO_new_uring(s->fds[0], BIO_CLOSE)));
  for (int i = 0; i < 50; i++) {
    CHECK_EQ(BIO_puts(chain, "a line of text\n"), 15);
    if (i % 10 == 9) CHECK_EQ(BIO_flush(chain), 1);
  }
  for (int i = 0; i < 50; i++) CHECK_EQ(BIO_gets(chain, bytes, sizeof bytes), 15);
  BIO_ssl_shutdown(chain);
  BIO_free_all(chain);
  peer_join(&s->peer);
  SSL_CTX_free(s->ours);
  SSL_CTX_free(s->theirs);
  return 0;
}
Test(suspending, chains) {
  scene s = {0};
  run_fibers(chains, &s);
}

/* ---- the error queue is each fiber's own ---- */

static int reads_four(void *argument) {
  scene *s = argument;
  char bytes[4];
  ERR_raise_data(ERR_LIB_USER, 42, "of the %s", "reader");
  size_t n;
  ERR_clear_error();
  CHECK_EQ(SSL_read_ex(s->ssl, bytes, 4, &n), 1);
  CHECK_EQ(ERR_peek_error(), 0); /* nothing of the others */
  return 0;
}

static int keeps_its_errors(void *argument) {
  BIO *bio = argument;
  char byte;
  const char *data;
  int flags;
  ERR_raise_data(ERR_LIB_USER, 42, "of the %s", "one who waits");
  ERR_raise(ERR_LIB_USER, 43);
  CHECK_EQ(BIO_read(bio, &byte, 1), 1);
  CHECK_EQ(ERR_GET_REASON(ERR_get_error_all(NULL, NULL, NULL, &data, &flags)), 42);
  CHECK(!strcmp(data, "of the one who waits"));
  CHECK_EQ(ERR_GET_REASON(ERR_get_error()), 43);
  CHECK_EQ(ERR_get_error(), 0);
  return 0;
}

static int makes_a_mess(void *argument) {
  volatile bool *over = argument;
  while (!*over) {
    for (int i = 0; i < 20; i++) ERR_raise(ERR_LIB_SSL, SSL_R_BAD_LENGTH);
    um_fiber_sleep(um_after(1));
  }
  return 0;
}

static int isolated(void *argument) {
  scene *s = argument;
  volatile bool over = false;
  int plain[2];
  open_scene(s, peer_echo, NULL);
  CHECK_EQ(shake(s), 1);
  tcp_pair(plain);
  BIO *bio = BIO_new_uring(plain[0], BIO_CLOSE);
  um_fiber *reader = spawn(reads_four, s), *keeper = spawn(keeps_its_errors, bio),
           *mess = spawn(makes_a_mess, (void *)&over);
  um_fiber_sleep(um_after(10));
  ERR_clear_error();
  CHECK_EQ(SSL_write(s->ssl, "ping", 4), 4);
  CHECK_EQ(send(plain[1], "x", 1, 0), 1);
  CHECK_EQ(join(reader), 0);
  CHECK_EQ(join(keeper), 0);
  over = true;
  join(mess);
  ERR_clear_error();
  BIO_free(bio);
  close(plain[1]);
  CHECK_EQ(SSL_shutdown(s->ssl), 0);
  CHECK_EQ(SSL_shutdown(s->ssl), 1);
  close_scene(s);
  return 0;
}
Test(suspending, error_queues_are_apart) { in_all(isolated); }

/* ---- re-entrancy ---- */

static int second_reader(void *argument) {
  scene *s = argument;
  char byte;
  int result = SSL_read(s->ssl, &byte, 1);
  CHECK(result <= 0);
  CHECK_EQ(BIO_get_uring_error(s->bio), UM_EREENTRANT);
  CHECK(SSL_get_error(s->ssl, result) != SSL_ERROR_WANT_READ);
  ERR_clear_error();
  return 0;
}

static int reentrant(void *argument) {
  scene *s = argument;
  open_scene(s, peer_echo, NULL);
  CHECK_EQ(shake(s), 1);
  um_fiber *first = spawn(reads_four, s), *second = spawn(second_reader, s);
  CHECK_EQ(join(second), 0);
  CHECK_EQ(SSL_write(s->ssl, "ping", 4), 4);
  CHECK_EQ(join(first), 0);
  CHECK_EQ(SSL_shutdown(s->ssl), 0);
  CHECK_EQ(SSL_shutdown(s->ssl), 1);
  close_scene(s);
  return 0;
}
Test(suspending, a_second_reader_is_told) { in_all(reentrant); }

static int fills(void *argument) {
  static char bytes[100000];
  BIO *bio = argument;
  int n;
  do n = BIO_write(bio, bytes, sizeof bytes);
  while (n > 0);
  return BIO_get_uring_error(bio);
}

static int second_writer(void *argument) {
  int fds[2];
  (void)argument;
  tcp_pair(fds);
  BIO *bio = BIO_new_uring(fds[0], BIO_CLOSE);
  um_fiber *first = spawn(fills, bio);
  um_fiber_sleep(um_after(20));
  CHECK_EQ(BIO_write(bio, "x", 1), -1);
  CHECK_EQ(BIO_get_uring_error(bio), UM_EREENTRANT);
  CHECK(!BIO_should_retry(bio));
  ERR_clear_error();
  um_fiber_cancel(first);
  CHECK_EQ(join(first), -ECANCELED);
  struct linger hard = {1, 0};
  setsockopt(fds[1], SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  close(fds[1]);
  BIO_free(bio);
  return 0;
}
Test(suspending, a_second_writer_is_told) { run_fibers(second_writer, NULL); }

/* One reader and one writer are fine. */
static int uploads(void *argument) {
  scene *s = argument;
  static char bytes[20000];
  for (size_t at = 0; at < 4000000; at += sizeof bytes) {
    pattern(bytes, sizeof bytes, at);
    CHECK_EQ(SSL_write(s->ssl, bytes, sizeof bytes), sizeof bytes);
  }
  return 0;
}

static int duplex(void *argument) {
  scene *s = argument;
  static char bytes[7000];
  open_scene(s, peer_echo, NULL);
  CHECK_EQ(shake(s), 1);
  um_fiber *writer = spawn(uploads, s);
  for (size_t at = 0, n; at < 4000000; at += n) {
    CHECK_EQ(SSL_read_ex(s->ssl, bytes, sizeof bytes, &n), 1);
    CHECK(is_pattern(bytes, n, at));
  }
  join(writer);
  CHECK_EQ(SSL_shutdown(s->ssl), 0);
  CHECK_EQ(SSL_shutdown(s->ssl), 1);
  close_scene(s);
  return 0;
}
Test(suspending, one_reader_and_one_writer) {
  scene s = {.version = TLS1_2_VERSION};
  run_fibers(duplex, &s);
}

/* ---- struck at every wait ---- */

static enum strike how;
static unsigned strike_at, hits;

/* Like a non-blocking socket's user: what was struck is called again. */
static bool again(scene *s, int result) {
  if (result > 0) return false;
  int error = SSL_get_error(s->ssl, result);
  if (error == SSL_ERROR_ZERO_RETURN) return false;
  CHECK(error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE);
  CHECK_EQ(BIO_get_uring_error(s->bio), strike_code(how));
  hits++;
  return true;
}

static void reads_slowly_then_talks(peer *p) {
  static char bytes[600000];
  peer_shake(p);
  usleep(300);
  for (size_t at = 0; at < 600000; at += 20000) peer_read(p, bytes + at, 20000), usleep(20);
  CHECK(is_pattern(bytes, 600000, 0));
  peer_write(p, bytes, 100000);
  SSL_shutdown(p->ssl);
  peer_drain(p);
}

static int struck_life(void *argument) {
  scene *s = argument;
  static char bytes[600000];
  int result, small = 20000;
  tcp_pair(s->fds);
  setsockopt(s->fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
  open_scene(s, reads_slowly_then_talks, NULL);
  BIO_set_uring_deadline(s->bio, um_after(600000));
  hits = 0;
  strike_me(how, strike_at);
  do result = shake(s);
  while (again(s, result));
  CHECK_EQ(result, 1);
  pattern(bytes, 600000, 0);
  for (int at = 0; at < 600000; at += 50000) {
    do result = SSL_write(s->ssl, bytes + at, 50000);
    while (again(s, result));
    CHECK_EQ(result, 50000);
  }
  memset(bytes, 0, 100000);
  for (int have = 0; have < 100000; have += result) {
    do result = SSL_read(s->ssl, bytes + have, 100000 - have);
    while (again(s, result));
    CHECK(result > 0);
  }
  CHECK(is_pattern(bytes, 100000, 0));
  do result = SSL_read(s->ssl, bytes, 1);
  while (again(s, result));
  CHECK_EQ(result, 0);
  CHECK_EQ(SSL_shutdown(s->ssl), 1);
  CHECK(hits <= 1);
  SSL_free(s->ssl); /* still strikes here: not one byte may be lost by it */
  strike_end();
  peer_join(&s->peer);
  SSL_CTX_free(s->ours);
  SSL_CTX_free(s->theirs);
  return 0;
}

Test(suspending, struck_at_every_wait) {
  for (int i = 0; i < 8; i++) {
    scene s = {.version = i & 1 ? TLS1_3_VERSION : TLS1_2_VERSION, .server = i & 2};
    how = i & 4 ? STRIKE_DEADLINE : STRIKE_CANCEL;
    int spared = 0; /* of the first three waits a life has fewer where its peer was first */
    for (strike_at = 0; spared < (strike_at < 3 ? 5 : 1);) {
      CHECK_EQ(run_fibers(struck_life, &s), 0);
      if (strike_end()) strike_at++, spared = 0;
      else spared++;
      CHECK(strike_at < 500);
    }
    CHECK(strike_at >= 3);
  }
}

/* ---- deadlines ---- */

static int deadlines(void *argument) {
  scene *s = argument;
  char byte;
  open_scene(s, peer_echo, NULL);
  CHECK_EQ(shake(s), 1);
  BIO_set_uring_deadline(s->bio, um_after(5));
  int result = SSL_read(s->ssl, &byte, 1);
  CHECK_EQ(SSL_get_error(s->ssl, result), SSL_ERROR_WANT_READ);
  CHECK_EQ(BIO_get_uring_error(s->bio), -ETIMEDOUT);
  CHECK_EQ(ERR_peek_error(), 0);
  CHECK_EQ(SSL_write(s->ssl, "x", 1), 1); /* needs no waiting */
  BIO_set_uring_deadline(s->bio, UM_FOREVER);
  CHECK_EQ(SSL_read(s->ssl, &byte, 1), 1);
  CHECK_EQ(BIO_get_uring_error(s->bio), 0);
  CHECK_EQ(SSL_shutdown(s->ssl), 0);
  CHECK_EQ(SSL_shutdown(s->ssl), 1);
  close_scene(s);
  return 0;
}
Test(suspending, deadlines) { in_all(deadlines); }

/* ---- ends ---- */

static int ends(void *argument) {
  int fds[2];
  char bytes[10];
  struct linger hard = {1, 0};
  (void)argument;
  tcp_pair(fds);
  BIO *bio = BIO_new_uring(fds[0], BIO_CLOSE);
  CHECK_EQ(send(fds[1], "abc", 3, 0), 3);
  shutdown(fds[1], SHUT_WR);
  CHECK_EQ(BIO_read(bio, bytes, 10), 3);
  CHECK_EQ(BIO_read(bio, bytes, 10), 0);
  CHECK(BIO_eof(bio) && !BIO_should_retry(bio));
  CHECK_EQ(BIO_get_uring_error(bio), 0);
  CHECK_EQ(BIO_puts(bio, "still"), 5); /* only one way is over */
  BIO_free(bio);
  CHECK_EQ(recv(fds[1], bytes, 10, 0), 5);
  CHECK_EQ(recv(fds[1], bytes, 10, 0), 0);
  close(fds[1]);

  tcp_pair(fds);
  bio = BIO_new_uring(fds[0], BIO_CLOSE);
  setsockopt(fds[1], SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  close(fds[1]);
  CHECK_EQ(BIO_read(bio, bytes, 10), -1);
  CHECK_EQ(BIO_get_uring_error(bio), -ECONNRESET);
  CHECK(!BIO_eof(bio) && !BIO_should_retry(bio));
  BIO_free(bio);
  return 0;
}
Test(suspending, ends_can_be_told_apart) { run_fibers(ends, NULL); }

/* ---- freeing ---- */

static void *reads_it_all(void *argument) {
  size_t *total = argument;
  int fd = (int)*total;
  static char bytes[50000];
  ssize_t n;
  usleep(20000);
  for (*total = 0; (n = recv(fd, bytes, sizeof bytes, 0)) > 0; *total += (size_t)n)
    CHECK(is_pattern(bytes, (size_t)n, *total));
  CHECK_EQ(n, 0); /* FIN, no reset */
  return NULL;
}

/* With a receive armed and output queued, cancelled or not. */
static int frees(void *argument) {
  bool cancelled = argument;
  static char bytes[250000];
  int fds[2];
  size_t total;
  char byte;
  pthread_t thread;
  tcp_pair(fds);
  int small = 5000;
  setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
  total = (size_t)fds[1];
  CHECK_EQ(pthread_create(&thread, NULL, reads_it_all, &total), 0);
  BIO *bio = BIO_new_uring(fds[0], BIO_CLOSE);
  BIO_set_uring_deadline(bio, um_after(1));
  CHECK_EQ(BIO_read(bio, &byte, 1), -1); /* leaves it armed */
  pattern(bytes, sizeof bytes, 0);
  CHECK_EQ(BIO_write(bio, bytes, sizeof bytes), sizeof bytes);
  if (cancelled) um_fiber_cancel(um_fiber_self());
  BIO_free(bio);
  if (cancelled) CHECK_EQ(um_fiber_yield(), -ECANCELED); /* still to be told */
  CHECK_EQ(fcntl(fds[0], F_GETFD), -1);
  pthread_join(thread, NULL);
  CHECK_EQ(total, sizeof bytes);
  close(fds[1]);
  return 0;
}
Test(suspending, free_sends_everything) { run_fibers(frees, NULL); }
Test(suspending, free_sends_everything_when_cancelled) { run_fibers(frees, (void *)1); }

static int keeps_fd(void *argument) {
  int fds[2];
  char byte;
  (void)argument;
  tcp_pair(fds);
  BIO *bio = BIO_new_uring(fds[0], BIO_NOCLOSE);
  BIO_set_uring_deadline(bio, um_after(1));
  CHECK_EQ(BIO_read(bio, &byte, 1), -1);
  CHECK_EQ(BIO_puts(bio, "x"), 1);
  BIO_free(bio);
  CHECK_EQ(recv(fds[1], &byte, 1, 0), 1);
  CHECK_EQ(send(fds[1], "y", 1, 0), 1);
  CHECK_EQ(recv(fds[0], &byte, 1, 0), 1); /* nothing armed stole it */
  CHECK_EQ(byte, 'y');
  close(fds[0]);
  CHECK_EQ(recv(fds[1], &byte, 1, 0), 0); /* FIN */
  close(fds[1]);
  return 0;
}
Test(suspending, noclose_leaves_the_descriptor_alone) { run_fibers(keeps_fd, NULL); }

/* ---- inside and outside ---- */

static int leaves_half(void *argument) {
  BIO *bio = argument;
  static char bytes[100000];
  char byte;
  pattern(bytes, sizeof bytes, 0);
  BIO_set_uring_deadline(bio, um_after(5));
  CHECK_EQ(BIO_read(bio, &byte, 1), -1); /* armed */
  BIO_set_uring_deadline(bio, UM_FOREVER);
  CHECK_EQ(BIO_write(bio, bytes, sizeof bytes), sizeof bytes);
  return 0;
}

static int reads_two(void *argument) {
  char bytes[2];
  CHECK_EQ(BIO_read(argument, bytes, 2), 2);
  return 0;
}

static void *answers(void *argument) {
  size_t *fd_and_total = argument;
  int fd = (int)*fd_and_total;
  static char bytes[100000];
  usleep(20000);
  CHECK_EQ(recv(fd, bytes, sizeof bytes, MSG_WAITALL), sizeof bytes);
  CHECK(is_pattern(bytes, sizeof bytes, 0));
  CHECK_EQ(send(fd, "answer", 6, 0), 6);
  return NULL;
}

/* What a fiber queued leaves although nobody but a blocking read comes after it. */
static void inside_then_outside(bool stuck) {
  um_reactor *r;
  int fds[2], small = 5000;
  char bytes[10];
  pthread_t thread;
  tcp_pair(fds);
  if (stuck) set_buffers(fds[0], small), set_buffers(fds[1], small);
  BIO *bio = BIO_new_uring(fds[0], BIO_CLOSE);
  CHECK_EQ(um_reactor_create(&r, NULL, NULL), 0);
  CHECK_EQ(um_fiber_spawn(r, NULL, leaves_half, bio, NULL), 0);
  CHECK_EQ(um_reactor_run(r), 0);
  if (stuck) { /* the kernel cannot take it all: nothing may wait for that */
    BIO_set_uring_deadline(bio, um_after(20));
    CHECK_EQ(BIO_read(bio, bytes, 1), -1);
    CHECK_EQ(BIO_get_uring_error(bio), -ETIMEDOUT);
    BIO_set_uring_deadline(bio, UM_FOREVER);
  }
  size_t fd = (size_t)fds[1];
  CHECK_EQ(pthread_create(&thread, NULL, answers, &fd), 0);
  CHECK_EQ(BIO_read(bio, bytes, 4), 4);
  pthread_join(thread, NULL);
  CHECK(!memcmp(bytes, "answ", 4));
  CHECK_EQ(um_fiber_spawn(r, NULL, reads_two, bio, NULL), 0);
  CHECK_EQ(um_reactor_run(r), 0);
  BIO_free(bio);
  CHECK_EQ(recv(fds[1], bytes, 1, 0), 0);
  close(fds[1]);
  CHECK_EQ(um_reactor_destroy(r), 0);
}
Test(suspending, inside_then_outside) { inside_then_outside(false); }
Test(suspending, inside_then_outside_with_output_stuck) { inside_then_outside(true); }

/* ---- threads ---- */

static BIO *foreign;

static int arms(void *argument) {
  char byte;
  BIO_set_uring_deadline(argument, um_after(2));
  CHECK_EQ(BIO_read(argument, &byte, 1), -1);
  return 0;
}

static void *elsewhere(void *argument) {
  char byte;
  (void)argument;
  CHECK_EQ(BIO_read(foreign, &byte, 1), -1);
  CHECK_EQ(BIO_get_uring_error(foreign), UM_EWRONGTHREAD);
  CHECK(!BIO_should_retry(foreign));
  CHECK_EQ(BIO_write(foreign, "x", 1), -1);
  CHECK_EQ(BIO_get_uring_error(foreign), UM_EWRONGTHREAD);
  ERR_clear_error();
  return NULL;
}

static int wrong_thread(void *argument) {
  int fds[2];
  pthread_t thread;
  (void)argument;
  tcp_pair(fds);
  foreign = BIO_new_uring(fds[0], BIO_CLOSE);
  arms(foreign);
  CHECK_EQ(pthread_create(&thread, NULL, elsewhere, NULL), 0);
  pthread_join(thread, NULL);
  BIO_free(foreign);
  close(fds[1]);
  return 0;
}
Test(suspending, another_thread_is_told) { run_fibers(wrong_thread, NULL); }

/* ---- many at once, on one thread ---- */

static SSL_CTX *many_ctx;
static char many_port[8];
static int many_done;

static int one_of_many(void *argument) {
  char bytes[4];
  (void)argument;
  SSL *ssl = SSL_new(many_ctx);
  int fd = dial(many_port);
  CHECK_EQ(SSL_set_uring_fd(ssl, fd), 1);
  CHECK_EQ(SSL_connect(ssl), 1);
  CHECK_EQ(SSL_write(ssl, "ping", 4), 4);
  read_all(ssl, bytes, 4);
  CHECK(!memcmp(bytes, "ping", 4));
  CHECK_EQ(SSL_shutdown(ssl), 0);
  CHECK_EQ(SSL_shutdown(ssl), 1);
  SSL_free(ssl);
  close(fd);
  many_done++;
  return 0;
}

static int answers_one(um_tls *tls, void **data, void *argument) {
  char bytes[4];
  (void)data, (void)argument;
  if (um_tls_read_exact(tls, bytes, 4, UM_FOREVER) != 4) return UM_TLS_CLOSE;
  um_tls_write(tls, bytes, 4, UM_FOREVER);
  return UM_TLS_PARK;
}

#define MANY 200

static int many(void *argument) {
  um_tls_listener *l;
  um_tls_server_config config = {.ctx = um_server_ctx("server", 0), .handler = answers_one,
                                 .handshake_timeout_ms = 60000}; /* an emulated machine is slow */
  um_group group;
  (void)argument;
  int fd = listener(many_port);
  many_ctx = plain_client_ctx(0);
  CHECK_EQ(um_tls_serve(&l, fd, &config), 0);
  um_group_init(&group);
  for (int i = 0; i < MANY; i++) CHECK_EQ(um_group_spawn(&group, one_of_many, NULL, NULL), 0);
  CHECK_EQ(um_group_join(&group, UM_FOREVER), 0);
  CHECK_EQ(many_done, MANY);
  CHECK_EQ(um_tls_listener_stop(l, um_after(5000)), 0);
  SSL_CTX_free(config.ctx);
  SSL_CTX_free(many_ctx);
  close(fd);
  return 0;
}
Test(suspending, many_on_one_thread) { run_fibers(many, NULL); }
