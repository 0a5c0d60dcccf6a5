/* um_tls_serve(): parked connections, limits, timeouts and stopping, driven by plain
 * OpenSSL clients in threads. */
#include "support.h"

#include "reactor/alloc.h"
#include "reactor/reactor.h"

#include <poll.h>

SUITE(serve);

typedef struct server {
  um_tls_server_config config;
  um_tls_listener *listener;
  SSL_CTX *ours, *theirs;
  char port[8];
  int fd;
  int calls, ended, reason;
  void *data;          /* what closed() was given last */
  fiber_fn test;
  unsigned stop_after; /* ms; deadline of the stop */
  int stop_result;
} server;

static um_reactor_config reactor_config;
static server *now; /* one at a time; handlers find it here, too */

static void closed(um_tls *tls, void *data, void *argument, int reason) {
  server *s = argument;
  CHECK(um_tls_fd(tls) >= 0);
  s->ended++;
  s->data = data;
  s->reason = reason;
}

static int echoes(um_tls *tls, void **data, void *argument) {
  server *s = argument;
  char bytes[4096];
  s->calls++;
  *data = s;
  ssize_t n = um_tls_read(tls, bytes, sizeof bytes, UM_FOREVER);
  if (n <= 0) return (int)n;
  n = um_tls_write(tls, bytes, (size_t)n, UM_FOREVER);
  return n < 0 ? (int)n : UM_TLS_PARK;
}

#define NEVER_TOO_SLOW 600000 /* ms: machines may be emulated */

static int run_server(void *argument) {
  server *s = argument;
  now = s;
  s->fd = listener(s->port);
  s->ours = um_server_ctx("server", 0);
  s->theirs = plain_client_ctx(0);
  s->config.ctx = s->ours;
  s->config.arg = s;
  s->config.closed = closed;
  if (!s->config.handler) s->config.handler = echoes;
  if (!s->config.handshake_timeout_ms) s->config.handshake_timeout_ms = NEVER_TOO_SLOW;
  if (!s->config.idle_timeout_ms) s->config.idle_timeout_ms = NEVER_TOO_SLOW;
  CHECK_EQ(um_tls_serve(&s->listener, s->fd, &s->config), 0);
  SSL_CTX_free(s->ours); /* it holds its own reference */
  int result = s->test(s);
  s->stop_result = um_tls_listener_stop(s->listener, um_after(s->stop_after ? s->stop_after : 5000));
  close(s->fd);
  SSL_CTX_free(s->theirs);
  return result;
}

static server serve(um_tls_server_config config, fiber_fn test) {
  server s = {.config = config, .test = test};
  CHECK_EQ(run_fibers_with(&reactor_config, run_server, &s), 0);
  return s;
}

static um_tls_listener_stats stats(void) {
  um_tls_listener_stats s;
  um_tls_listener_stats_get(now->listener, &s);
  return s;
}

/* So many connections have been told of as closed, and are. */
static bool gone(const server *s, int count) {
  um_tls_listener_stats seen = stats();
  return s->ended == count && seen.open + (uint64_t)count == seen.accepted;
}

static um_metrics metrics(void) {
  um_metrics m;
  um_reactor_metrics(um_reactor_current(), &m);
  return m;
}

static uint64_t fibers(void) { return metrics().fibers; }

/* Waits until the condition holds; the watchdog is there for when it never does. */
#define UNTIL(condition) \
  while (!(condition)) CHECK_EQ(um_fiber_sleep(um_after(1)), 0)

static void client(peer *p, void (*script)(peer *), void *argument) {
  peer_start(p, dial(now->port), now->theirs, false, script, argument);
}

/* ---- parking ---- */

static void says_something_twice(peer *p) {
  char bytes[5];
  volatile int *step = p->argument;
  peer_shake(p);
  for (int i = 0; i < 2; i++) {
    peer_write(p, "hello", 5);
    peer_read(p, bytes, 5);
    p->count++;
    while (*step <= i) usleep(200);
  }
  SSL_shutdown(p->ssl);
  peer_drain(p);
}

#define PARKED 20

static int parks(void *argument) {
  server *s = argument;
  peer peers[PARKED];
  volatile int step = 0;
  uint64_t before = fibers();
  for (int i = 0; i < PARKED; i++) client(&peers[i], says_something_twice, (void *)&step);
  for (int i = 0; i < 2; i++) {
    UNTIL(s->calls >= PARKED * (i + 1) && stats().parked == PARKED);
    CHECK_EQ(fibers(), before); /* nobody's fiber is there */
    CHECK_EQ(stats().open, PARKED);
    step = i + 1;
  }
  for (int i = 0; i < PARKED; i++) peer_join(&peers[i]);
  UNTIL(gone(s, PARKED));
  CHECK_EQ(stats().handshakes, PARKED);
  CHECK_EQ(stats().accepted, PARKED);
  CHECK_EQ(stats().failed, 0);
  CHECK_EQ(stats().open, 0);
  CHECK_EQ(stats().parked, 0);
  CHECK_EQ(s->reason, 0);
  CHECK(s->data == s);
  return 0;
}
Test(serve, parked_connections_hold_no_fiber) {
  server s = serve((um_tls_server_config){0}, parks);
  CHECK_EQ(s.stop_result, 0);
  CHECK_EQ(s.calls, 2 * PARKED); /* tickets, handshakes and close_notify are not data */
}

/* A handler may look at half a message and park until there is more. */
static int wants_ten(um_tls *tls, void **data, void *argument) {
  server *s = argument;
  char bytes[10];
  (void)data;
  s->calls++;
  ssize_t n = um_tls_read_exact(tls, bytes, 10, 0);
  if (n == -ETIMEDOUT) return UM_TLS_PARK;
  if (n <= 0) return (int)n;
  n = um_tls_write(tls, bytes, 10, UM_FOREVER);
  return n < 0 ? (int)n : UM_TLS_PARK;
}

static void says_it_in_pieces(peer *p) {
  char bytes[20];
  peer_shake(p);
  for (int i = 0; i < 20; i++) {
    peer_write(p, &"0123456789"[i % 10], 1);
    usleep(3000);
  }
  peer_read(p, bytes, 20);
  CHECK(!memcmp(bytes, "01234567890123456789", 20));
  peer_write(p, "0123456789abcdefghij", 20); /* two at once */
  peer_read(p, bytes, 20);
  CHECK(!memcmp(bytes, "0123456789abcdefghij", 20));
  SSL_shutdown(p->ssl);
  peer_drain(p);
}

static int half_messages(void *argument) {
  server *s = argument;
  peer p;
  client(&p, says_it_in_pieces, NULL);
  peer_join(&p);
  UNTIL(gone(s, 1));
  CHECK_EQ(s->reason, 0);
  CHECK(s->calls <= 60); /* not again and again while nothing comes */
  return 0;
}
Test(serve, half_a_message_parks) { serve((um_tls_server_config){.handler = wants_ten}, half_messages); }

/* Whatever the sizes of the records and of the reads, and whoever reads first: each handler takes
 * one piece of another size and parks. */
#define MOST_PIECE 3000

static int takes_a_piece(um_tls *tls, void **data, void *argument) {
  server *s = argument;
  char bytes[MOST_PIECE];
  (void)data;
  size_t size = 1 + (size_t)(s->calls++ * 613) % MOST_PIECE;
  ssize_t n = um_tls_read(tls, bytes, size, UM_FOREVER);
  if (n > 0) n = um_tls_write(tls, bytes, (size_t)n, UM_FOREVER);
  return n < 0 ? (int)n : n ? UM_TLS_PARK : UM_TLS_CLOSE;
}

static void says_records(peer *p) {
  static const int sizes[] = {1, 1023, 1024, 1025, 2047, 2049, 16384, 3, 5000, 1024};
  char out[16384], in[16384];
  peer_shake(p);
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    for (int j = 0; j < sizes[i]; j++) out[j] = (char)(i * 31 + (size_t)j * 7 + (size_t)j / 251);
    peer_write(p, out, sizes[i]);
    peer_read(p, in, sizes[i]);
    CHECK(!memcmp(in, out, (size_t)sizes[i]));
  }
  SSL_shutdown(p->ssl);
  peer_drain(p);
}

static int pieces(void *argument) {
  peer p;
  client(&p, says_records, NULL);
  peer_join(&p);
  UNTIL(gone(argument, 1));
  CHECK_EQ(now->reason, 0);
  return 0;
}
Test(serve, records_and_reads_of_any_size) {
  serve((um_tls_server_config){.handler = takes_a_piece}, pieces);
}

/* A message that fits in what is read ahead, or just not, is one read. */
static int reads_whole(um_tls *tls, void **data, void *argument) {
  server *s = argument;
  char bytes[20000];
  (void)data;
  ssize_t n = um_tls_read(tls, bytes, sizeof bytes, UM_FOREVER);
  CHECK_EQ(n, s->calls++ ? 16384 : 1025);
  n = um_tls_write(tls, bytes, (size_t)n, UM_FOREVER);
  return n < 0 ? (int)n : UM_TLS_PARK;
}

static void says_two(peer *p) {
  char bytes[16384] = {0};
  peer_shake(p);
  peer_write(p, bytes, 1025);
  peer_read(p, bytes, 1025);
  peer_write(p, bytes, 16384);
  peer_read(p, bytes, 16384);
  SSL_shutdown(p->ssl);
  peer_drain(p);
}

static int whole(void *argument) {
  peer p;
  client(&p, says_two, NULL);
  peer_join(&p);
  UNTIL(gone(argument, 1));
  CHECK_EQ(now->reason, 0);
  CHECK_EQ(now->calls, 2);
  return 0;
}
Test(serve, a_record_is_read_whole) { serve((um_tls_server_config){.handler = reads_whole}, whole); }

/* Small records are read before the handler is called: they count all the same, so that a
 * connection with many of them gives way to the others. */
#define SMALL 500
#define SMALL_COUNT 200

static int echoes_late(um_tls *tls, void **data, void *argument) {
  server *s = argument;
  char bytes[SMALL];
  (void)data;
  ssize_t n = um_tls_read(tls, bytes, sizeof bytes, UM_FOREVER);
  if (!s->calls++) UNTIL(metrics().receive_queued >= SMALL_COUNT * SMALL / 5);
  if (n > 0) n = um_tls_write(tls, bytes, (size_t)n, UM_FOREVER);
  return n < 0 ? (int)n : n ? UM_TLS_PARK : UM_TLS_CLOSE;
}

static void says_much_in_little(peer *p) {
  char bytes[SMALL] = {0};
  peer_shake(p);
  for (int i = 0; i < SMALL_COUNT; i++) peer_write(p, bytes, SMALL);
  for (int i = 0; i < SMALL_COUNT; i++) peer_read(p, bytes, SMALL);
  SSL_shutdown(p->ssl);
  peer_drain(p);
}

static int small_records(void *argument) {
  peer p;
  client(&p, says_much_in_little, NULL);
  peer_join(&p);
  UNTIL(gone(argument, 1));
  CHECK(metrics().turns >= 10); /* of 1 KiB each, of the 19 and more that were there at once */
  return 0;
}
Test(serve, small_records_take_turns) {
  reactor_config = (um_reactor_config){.turn_bytes = 1024};
  serve((um_tls_server_config){.handler = echoes_late}, small_records);
}

/* ---- greeting ---- */

static int greets(um_tls *tls, void **data, void *argument) {
  server *s = argument;
  if (s->calls++ == 0 || !*data) {
    *data = s;
    CHECK_EQ(um_tls_write(tls, "welcome", 7, UM_FOREVER), 7);
    return UM_TLS_PARK;
  }
  return UM_TLS_CLOSE;
}

static void waits_to_be_greeted(peer *p) {
  char bytes[7];
  peer_shake(p);
  peer_read(p, bytes, 7);
  CHECK(!memcmp(bytes, "welcome", 7));
  peer_write(p, "x", 1);
  peer_drain(p);
}

static int greeting(void *argument) {
  server *s = argument;
  peer p;
  client(&p, waits_to_be_greeted, NULL);
  peer_join(&p);
  UNTIL(gone(s, 1));
  CHECK_EQ(s->calls, 2);
  return 0;
}
Test(serve, greets) { serve((um_tls_server_config){.handler = greets, .flags = UM_TLS_GREET}, greeting); }

/* ---- limits ---- */

static int cap(void *argument) {
  server *s = argument;
  peer peers[6];
  volatile int step = 0;
  for (int i = 0; i < 6; i++) client(&peers[i], says_something_twice, (void *)&step);
  UNTIL(stats().open == 2 && s->calls == 2);
  um_fiber_sleep(um_after(30));
  CHECK_EQ(stats().accepted, 2);
  CHECK_EQ(s->calls, 2);
  step = 2;
  for (int i = 0; i < 6; i++) peer_join(&peers[i]);
  UNTIL(gone(s, 6));
  CHECK_EQ(stats().accepted, 6);
  return 0;
}
Test(serve, accepting_stops_at_the_cap) { serve((um_tls_server_config){.max_connections = 2}, cap); }

static int half_a_hello(void *argument) {
  server *s = argument;
  int silent = dial(s->port), half = dial(s->port);
  char byte;
  CHECK_EQ(send(half, "\x16\x03\x01\x02\x00\x01\x00", 7, 0), 7);
  UNTIL(gone(s, 2));
  CHECK_EQ(s->reason, -ETIMEDOUT);
  CHECK_EQ(stats().timed_out, 2);
  CHECK_EQ(stats().failed, 2);
  CHECK_EQ(stats().handshakes, 0);
  CHECK_EQ(s->calls, 0);
  CHECK(recv(silent, &byte, 1, 0) <= 0);
  CHECK(recv(half, &byte, 1, 0) <= 0);
  close(silent), close(half);
  return 0;
}
Test(serve, handshake_timeout) { serve((um_tls_server_config){.handshake_timeout_ms = 30}, half_a_hello); }

static void says_nothing(peer *p) {
  peer_shake(p);
  CHECK_EQ(peer_drain(p), 0);
}

static int idle(void *argument) {
  server *s = argument;
  peer p;
  client(&p, says_nothing, NULL);
  peer_join(&p);
  UNTIL(gone(s, 1));
  CHECK_EQ(s->reason, 0);
  CHECK_EQ(stats().timed_out, 1);
  CHECK_EQ(stats().failed, 0);
  return 0;
}
Test(serve, idle_timeout) { serve((um_tls_server_config){.idle_timeout_ms = 30}, idle); }

static void floods_and_never_reads(peer *p) {
  peer_shake(p);
  for (;;) {
    if (SSL_key_update(p->ssl, SSL_KEY_UPDATE_REQUESTED) != 1 || SSL_do_handshake(p->ssl) != 1) break;
  }
}

/* It keeps us busy with answers it never takes: no reason to live longer than an idle one. */
static int idle_flood(void *argument) {
  server *s = argument;
  peer p;
  int small = 8000; /* inherited: what the kernel keeps for the client is soon full */
  setsockopt(s->fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
  peer_start(&p, dial(s->port), s->theirs, false, floods_and_never_reads, NULL);
  UNTIL(gone(s, 1));
  /* Its kernel, too, may be so full that it falls silent, and idle. */
  CHECK(s->reason == -ETIMEDOUT || s->reason == 0);
  shutdown(p.fd, SHUT_RDWR); /* its kernel may not have noticed */
  peer_join(&p);
  return 0;
}
Test(serve, a_flooder_that_never_reads_is_let_go) {
  reactor_config.send_limit = 16384;
  serve((um_tls_server_config){.idle_timeout_ms = 200}, idle_flood);
}

/* ---- bad input ---- */

typedef struct bad {
  const char *bytes;
  size_t length;
  int reason;
} bad;

static int bad_input(void *argument) {
  server *s = argument;
  static const bad all[] = {
      {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 27, UM_EPLAINTEXT},
      {"POST / HTTP/1.1\r\n\r\n", 19, UM_EPLAINTEXT},
      {"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16, UM_ETLS},
      {"SSH-2.0-OpenSSH_9.2\r\n", 21, UM_ETLS},
      {"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", 10, UM_ETLS},
      {"\x16\x03\x01", 3, UM_ETRUNCATED},
      {"", 0, UM_ETRUNCATED},
  };
  for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
    int fd = dial(s->port);
    char bytes[100];
    CHECK_EQ(send(fd, all[i].bytes, all[i].length, MSG_NOSIGNAL), all[i].length);
    shutdown(fd, SHUT_WR);
    UNTIL(gone(s, (int)i + 1));
    if (s->reason != all[i].reason) fprintf(stderr, "input %u\n", i);
    CHECK_EQ(s->reason, all[i].reason);
    if (i == 4) CHECK(recv(fd, bytes, sizeof bytes, 0) > 0); /* an alert says why */
    close(fd);
  }
  CHECK_EQ(s->calls, 0);
  CHECK_EQ(stats().failed, sizeof all / sizeof *all);
  volatile int step = 2; /* and the others do not notice */
  peer p;
  client(&p, says_something_twice, (void *)&step);
  peer_join(&p);
  return 0;
}
Test(serve, bad_input) { serve((um_tls_server_config){0}, bad_input); }

/* ---- handlers that fail ---- */

static int fails(um_tls *tls, void **data, void *argument) {
  server *s = argument;
  char byte;
  (void)data;
  s->calls++;
  if (um_tls_read(tls, &byte, 1, UM_FOREVER) != 1) return UM_TLS_CLOSE;
  if (byte == 'x') return -EIO;
  um_tls_write(tls, &byte, 1, UM_FOREVER);
  return UM_TLS_PARK;
}

static void is_aborted(peer *p) {
  char byte;
  peer_shake(p);
  peer_write(p, "x", 1);
  int result = SSL_read(p->ssl, &byte, 1);
  CHECK(result <= 0 && SSL_get_error(p->ssl, result) != SSL_ERROR_ZERO_RETURN);
}

static void is_served(peer *p) {
  char byte;
  volatile bool *over = p->argument;
  peer_shake(p);
  while (!*over) {
    peer_write(p, "y", 1);
    peer_read(p, &byte, 1);
    p->count++;
  }
  SSL_shutdown(p->ssl);
  peer_drain(p);
}

static int failing(void *argument) {
  server *s = argument;
  peer good, wrong[5];
  volatile bool over = false;
  client(&good, is_served, (void *)&over);
  for (int i = 0; i < 5; i++) client(&wrong[i], is_aborted, NULL);
  UNTIL(gone(s, 5));
  CHECK_EQ(s->reason, -EIO);
  over = true;
  for (int i = 0; i < 5; i++) peer_join(&wrong[i]);
  peer_join(&good);
  return 0;
}
Test(serve, a_failing_handler_aborts_only_its_connection) {
  serve((um_tls_server_config){.handler = fails}, failing);
}

/* ---- stopping ---- */

static bool may_end;

/* Until after the stop has begun, or cancelled. */
static int takes_a_while(um_tls *tls, void **data, void *argument) {
  server *s = argument;
  char bytes[4096];
  (void)data;
  s->calls++;
  ssize_t n = um_tls_read(tls, bytes, sizeof bytes, UM_FOREVER);
  if (n <= 0) return (int)n;
  while (!may_end || bytes[0] == 's') {
    int result = um_fiber_sleep(um_after(20));
    if (result < 0) return result;
  }
  um_tls_write(tls, bytes, (size_t)n, UM_FOREVER);
  return UM_TLS_PARK;
}

static void is_drained(peer *p) {
  char byte;
  peer_shake(p);
  peer_write(p, "d", 1);
  peer_read(p, &byte, 1);
  p->count = 1;
  CHECK_EQ(peer_drain(p), 0); /* and close_notify */
}

static peer drained[3];

static int stop_and_drain(void *argument) {
  server *s = argument;
  client(&drained[0], is_drained, NULL);
  client(&drained[1], says_nothing, NULL);
  UNTIL(s->calls == 1 && stats().parked == 1 && stats().handshakes == 2);
  may_end = true; /* seen by the handler when this fiber waits for the stop */
  return 0;
}
Test(serve, stop_lets_handlers_finish) {
  server s = serve((um_tls_server_config){.handler = takes_a_while}, stop_and_drain);
  CHECK_EQ(s.stop_result, 0);
  peer_join(&drained[0]);
  peer_join(&drained[1]);
  CHECK_EQ(drained[0].count, 1);
  CHECK_EQ(s.ended, 2);
}

static void is_cut_off(peer *p) {
  char byte;
  peer_shake(p);
  peer_write(p, "s", 1);
  CHECK(SSL_read(p->ssl, &byte, 1) <= 0);
}

static int stuck_handler(void *argument) {
  server *s = argument;
  client(&drained[0], is_cut_off, NULL);
  drained[1].fd = dial(s->port); /* in the handshake */
  UNTIL(s->calls == 1 && stats().accepted == 2);
  s->stop_after = 20;
  return 0;
}
Test(serve, stop_cancels_at_the_deadline) {
  server s = serve((um_tls_server_config){.handler = takes_a_while}, stuck_handler);
  CHECK_EQ(s.stop_result, -ETIMEDOUT);
  peer_join(&drained[0]);
  close(drained[1].fd);
  CHECK_EQ(s.ended, 2);
}

/* A handler that leaves another fiber behind in its connection, and a connection whose
 * client never reads what it is sent. */
static int pushes(um_tls *tls, void **data, void *argument) {
  server *s = argument;
  static char bytes[100000];
  (void)data;
  s->calls++;
  ssize_t n;
  do n = um_tls_write(tls, bytes, sizeof bytes, UM_FOREVER);
  while (n > 0);
  return (int)n;
}

static void never_reads(peer *p) {
  volatile bool *over = p->argument;
  peer_shake(p);
  peer_write(p, "go", 2);
  while (!*over) usleep(500);
}

static volatile bool push_over;

static int pushing(void *argument) {
  server *s = argument;
  client(&drained[0], never_reads, (void *)&push_over);
  UNTIL(s->calls == 1);
  um_fiber_sleep(um_after(20));
  s->stop_after = 20;
  return 0;
}
Test(serve, stop_with_a_client_that_never_reads) {
  server s = serve((um_tls_server_config){.handler = pushes}, pushing);
  CHECK_EQ(s.stop_result, -ETIMEDOUT);
  push_over = true;
  peer_join(&drained[0]);
  CHECK_EQ(s.ended, 1);
}

static int stops_at_once(void *argument) {
  (void)argument;
  return 0;
}
Test(serve, stop_without_a_connection) {
  CHECK_EQ(serve((um_tls_server_config){0}, stops_at_once).stop_result, 0);
}

/* ---- no memory for a moment ---- */

static int refuses_all(void) { return 1; }

static int waits_until(void *argument) {
  volatile bool *over = argument;
  while (!*over) um_fiber_sleep(um_after(1));
  return 0;
}

static um_group takers;
static volatile bool may_give;

/* Every fiber's stack in the pool is taken away, too: who starts needs a fresh one. */
static void take_memory(void) {
  may_give = false;
  um_group_init(&takers);
  um__alloc_fails = refuses_all;
  while (um_group_spawn(&takers, waits_until, (void *)&may_give, NULL) == 0)
    CHECK(takers.count < 100000);
}

static void give_memory(void) {
  um__alloc_fails = NULL;
  may_give = true;
  CHECK_EQ(um_group_join(&takers, UM_FOREVER), 0);
}

static int out_of_memory(void *argument) {
  server *s = argument;
  peer p;
  volatile int step = 0;
  client(&p, says_something_twice, (void *)&step);
  UNTIL(s->calls == 1 && stats().parked == 1);
  take_memory();
  step = 1;
  um_fiber_sleep(um_after(60));
  CHECK_EQ(s->calls, 1);
  give_memory();
  step = 2;
  peer_join(&p); /* it was served, a little late */
  CHECK_EQ(p.count, 2);
  CHECK_EQ(stats().timed_out, 0);
  return 0;
}
Test(serve, a_moment_without_memory) { serve((um_tls_server_config){0}, out_of_memory); }

/* ---- what cannot be served ---- */

static int refused(void *argument) {
  um_tls_listener *l;
  um_tls_server_config config = {0};
  (void)argument;
  CHECK_EQ(um_tls_serve(&l, 0, &config), -EINVAL);
  CHECK(!l);
  return 0;
}
Test(serve, needs_a_context_and_a_handler) {
  um_tls_listener *l;
  um_tls_server_config config = {0};
  CHECK_EQ(um_tls_serve(&l, 0, &config), UM_ENOTFIBER);
  run_fibers(refused, NULL);
}

/* ---- floods ---- */

static void send_all(int fd, const char *bytes, size_t length) {
  while (length) {
    ssize_t n = send(fd, bytes, length, MSG_NOSIGNAL);
    if (n <= 0) return; /* it was cut */
    bytes += n;
    length -= (size_t)n;
  }
}

#define FLOOD 3000

/* KeyUpdates that come in one piece, so that each turn finds more than it does; the echo after
 * them is read if it comes. */
static void floods(peer *p) {
  char bytes[5] = "";
  const char *flood;
  peer_shake(p);
  BIO *memory = BIO_new(BIO_s_mem()), *socket = SSL_get_wbio(p->ssl);
  BIO_up_ref(socket);
  SSL_set0_wbio(p->ssl, memory);
  for (int i = 0; i < FLOOD; i++) {
    CHECK_EQ(SSL_key_update(p->ssl, SSL_KEY_UPDATE_NOT_REQUESTED), 1);
    CHECK_EQ(SSL_do_handshake(p->ssl), 1);
  }
  CHECK_EQ(SSL_write(p->ssl, "after", 5), 5);
  long length = BIO_get_mem_data(memory, (char **)&flood);
  send_all(p->fd, flood, (size_t)length);
  p->result = SSL_read(p->ssl, bytes, 5);
  SSL_set0_wbio(p->ssl, socket);
  if (p->result == 5) CHECK(!memcmp(bytes, "after", 5));
}

static uint64_t flood_turns(void) { return metrics().floods; }

static int is_flooded(void *argument) {
  server *s = argument;
  peer p;
  bool limited = s->config.max_floods != 0;
  client(&p, floods, NULL);
  peer_join(&p);
  UNTIL(gone(s, 1));
  CHECK_EQ(p.result == 5, !limited);
  CHECK_EQ(stats().too_much, limited);
  if (limited) {
    CHECK_EQ(s->reason, UM_ETOOLONG);
    CHECK_EQ(flood_turns(), s->config.max_floods + 1);
  } else {
    unsigned records = reactor_config.turn_records ? reactor_config.turn_records : 16;
    CHECK(flood_turns() >= FLOOD / records / 4); /* bounded turns, all of them counted */
  }
  return 0;
}
Test(serve, a_flood_of_key_updates_is_counted) { serve((um_tls_server_config){0}, is_flooded); }
Test(serve, a_turn_may_be_a_record) {
  reactor_config.turn_records = 1;
  serve((um_tls_server_config){0}, is_flooded);
}
Test(serve, a_flood_of_key_updates_may_be_cut) {
  serve((um_tls_server_config){.max_floods = 10}, is_flooded);
}

/* Data in between is no flood, however often. */
static void updates_and_data(peer *p) {
  char bytes[5];
  peer_shake(p);
  for (int i = 0; i < 300; i++) {
    CHECK_EQ(SSL_key_update(p->ssl, SSL_KEY_UPDATE_REQUESTED), 1);
    peer_write(p, "hello", 5);
    peer_read(p, bytes, 5);
  }
  SSL_shutdown(p->ssl);
  peer_drain(p);
}

static int updates_often(void *argument) {
  server *s = argument;
  peer p;
  client(&p, updates_and_data, NULL);
  peer_join(&p);
  UNTIL(gone(s, 1));
  CHECK_EQ(s->reason, 0);
  CHECK_EQ(stats().too_much, 0);
  return 0;
}
Test(serve, key_updates_between_data_are_no_flood) {
  serve((um_tls_server_config){.max_floods = 1}, updates_often);
}

/* ---- another certificate ---- */

static void tells_key_type(peer *p) {
  peer_shake(p);
  X509 *certificate = SSL_get1_peer_certificate(p->ssl);
  p->count = (size_t)EVP_PKEY_get_base_id(X509_get0_pubkey(certificate));
  X509_free(certificate);
  volatile int *go_on = p->argument;
  while (go_on && !*go_on) usleep(200);
  char bytes[5];
  peer_write(p, "hello", 5);
  peer_read(p, bytes, 5);
  SSL_shutdown(p->ssl);
  peer_drain(p);
}

static int changes_certificate(void *argument) {
  server *s = argument;
  peer old, new;
  volatile int go_on = 0;
  client(&old, tells_key_type, (void *)&go_on);
  UNTIL(stats().handshakes == 1);
  SSL_CTX *rsa = um_server_ctx("server-rsa", 0);
  CHECK_EQ(um_tls_listener_set_ctx(s->listener, NULL), -EINVAL);
  CHECK_EQ(um_tls_listener_set_ctx(s->listener, rsa), 0);
  SSL_CTX_free(rsa);
  client(&new, tells_key_type, NULL);
  peer_join(&new);
  go_on = 1;
  peer_join(&old); /* was there before: goes on */
  CHECK_EQ(old.count, EVP_PKEY_EC);
  CHECK_EQ(new.count, EVP_PKEY_RSA);
  UNTIL(gone(s, 2));
  return 0;
}
Test(serve, another_certificate) { serve((um_tls_server_config){0}, changes_certificate); }

/* ---- addresses ---- */

static int two_of_an_address(void *argument) {
  server *s = argument;
  char byte;
  int first = dial(s->port), second = dial(s->port);
  UNTIL(stats().open == 2);
  int third = dial(s->port);
  UNTIL(stats().refused == 1);
  CHECK(recv(third, &byte, 1, 0) <= 0);
  CHECK_EQ(stats().open, 2);
  close(first);
  UNTIL(stats().open == 1);
  peer p;
  client(&p, tells_key_type, NULL);
  peer_join(&p);
  close(second);
  close(third);
  UNTIL(gone(s, 3));
  return 0;
}
Test(serve, at_most_two_of_an_address) {
  serve((um_tls_server_config){.max_per_address = 2}, two_of_an_address);
}

/* ---- what all may have queued ---- */

static bool handlers_go_on;

/* Reads a byte and then nothing until it may. */
static int reads_late(um_tls *tls, void **data, void *argument) {
  char bytes[16384];
  server *s = argument;
  *data = s;
  CHECK_EQ(um_tls_read(tls, bytes, 1, UM_FOREVER), 1);
  s->calls++;
  while (!handlers_go_on) um_fiber_sleep(um_after(2));
  ssize_t n;
  do n = um_tls_read(tls, bytes, sizeof bytes, UM_FOREVER);
  while (n > 0);
  return (int)n;
}

#define PUSHED (2u << 20)

static void pushes_all(peer *p) {
  char bytes[16384] = "";
  peer_shake(p);
  for (size_t sent = 0; sent < PUSHED; sent += sizeof bytes) peer_write(p, bytes, sizeof bytes);
  SSL_shutdown(p->ssl);
  peer_drain(p);
}

#define PUSHERS 12

static uint64_t most_queued;

static int pushed_at(void *argument) {
  server *s = argument;
  peer peers[PUSHERS];
  handlers_go_on = false;
  for (int i = 0; i < PUSHERS; i++) client(&peers[i], pushes_all, NULL);
  UNTIL(s->calls == PUSHERS && metrics().receive_queued >= 65536);
  um_fiber_sleep(um_after(300)); /* they push on meanwhile */
  most_queued = metrics().receive_queued;
  handlers_go_on = true;
  for (int i = 0; i < PUSHERS; i++) peer_join(&peers[i]);
  UNTIL(gone(s, PUSHERS));
  CHECK_EQ(metrics().receive_queued, 0);
  CHECK_EQ(metrics().send_held, 0);
  CHECK_EQ(s->reason, 0); /* and every byte came */
  return metrics().squeezed > 0 ? 0 : 1;
}

/* Each may have a megabyte, all together 64 KiB. What comes before the cancellations act is on top
 * of it, and far from 12 MB. */
Test(serve, a_reactor_queues_so_much_and_no_more) {
  reactor_config = (um_reactor_config){.receive_limit = 1u << 20, .receive_total = 65536,
                                       .buffer_count = 16, .buffer_size = 4096};
  serve((um_tls_server_config){.handler = reads_late}, pushed_at);
  CHECK(most_queued <= 65536 + (PUSHERS << 20) / 8);
}

/* ---- handshakes have a share ---- */

static uint64_t hello_tick;
static int hellos, crowded, overtaken;
static volatile bool storm_over;

static uint64_t ticks(void) { return metrics().ticks; }

/* Takes longer than the share, which grows with the wait for it, whatever the machine. */
static int slow_hello(SSL *ssl, int *alert, void *argument) {
  um_time begin = um_now(), end = begin + UM_MS + (begin - um_reactor_current()->long_since) / 4;
  (void)ssl, (void)alert, (void)argument;
  hellos++;
  crowded += hello_tick == ticks();
  hello_tick = ticks();
  while (!crowded && um_now() < end) continue;
  return SSL_CLIENT_HELLO_SUCCESS;
}

static int echoes_first(um_tls *tls, void **data, void *argument) {
  overtaken += hello_tick == ticks();
  return echoes(tls, data, argument);
}

#define STORM 32
#define SHAKES_EACH 4

static void shakes(peer *p) {
  peer_shake(p);
  SSL_shutdown(p->ssl);
  peer_drain(p);
}

static void asks_all_the_time(peer *p) {
  char byte = 'x';
  peer_shake(p);
  while (!storm_over) {
    peer_write(p, &byte, 1);
    peer_read(p, &byte, 1);
    p->count++;
  }
  SSL_shutdown(p->ssl);
  peer_drain(p);
}

static int storms(void *argument) {
  server *s = argument;
  peer asker, peers[STORM];
  SSL_CTX_set_client_hello_cb(s->ours, slow_hello, NULL);
  hellos = crowded = overtaken = 0;
  storm_over = false;
  client(&asker, asks_all_the_time, NULL);
  UNTIL(s->calls);
  for (int round = 0; round < SHAKES_EACH; round++) {
    int calls = s->calls;
    for (int i = 0; i < STORM; i++) client(&peers[i], shakes, NULL);
    for (int i = 0; i < STORM; i++) peer_join(&peers[i]);
    CHECK(s->calls > calls);
  }
  storm_over = true;
  peer_join(&asker);
  CHECK_EQ(hellos, STORM * SHAKES_EACH + 1);
  CHECK_EQ(crowded, 0);   /* one that uses up the share is the last of its tick */
  CHECK_EQ(overtaken, 0); /* and comes after those that are established */
  UNTIL(gone(s, STORM * SHAKES_EACH + 1));
  CHECK_EQ(stats().handshakes, STORM * SHAKES_EACH + 1);
  return 0;
}
Test(serve, established_connections_go_before_handshakes_and_both_progress) {
  serve((um_tls_server_config){.handler = echoes_first}, storms);
}

/* ---- who is gone ---- */

#define GONE 8

static size_t client_hello(SSL_CTX *ctx, char *into, int size) {
  SSL *ssl = SSL_new(ctx);
  BIO *out = BIO_new(BIO_s_mem());
  SSL_set_bio(ssl, BIO_new(BIO_s_mem()), out);
  CHECK(SSL_connect(ssl) < 0);
  int length = BIO_read(out, into, size);
  CHECK(length > 0 && length < size);
  SSL_free(ssl);
  return (size_t)length;
}

static int resets_at_once(void *argument) {
  server *s = argument;
  char bytes[4096];
  size_t length = client_hello(s->theirs, bytes, sizeof bytes);
  struct linger at_once = {1, 0};
  SSL_CTX_set_client_hello_cb(s->ours, slow_hello, NULL);
  hellos = 0;
  for (int i = 0; i < GONE; i++) {
    int fd = dial(s->port);
    CHECK_EQ(send(fd, bytes, length, 0), (ssize_t)length);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(fd);
  }
  UNTIL(gone(s, GONE));
  CHECK_EQ(hellos, 0);
  CHECK_EQ(s->reason, -ECONNRESET);
  CHECK_EQ(stats().failed, GONE);
  return 0;
}
Test(serve, who_has_reset_gets_no_handshake) { serve((um_tls_server_config){0}, resets_at_once); }

/* ---- long work waits ---- */

#define STEPS 4
#define TRIES 40
#define PATIENCE (UM_MS / 5) /* of long work */

static int step, step_at_hello;
static um_time hello_at;

static int notes_step(SSL *ssl, int *alert, void *argument) {
  (void)ssl, (void)alert, (void)argument;
  step_at_hello = step;
  hello_at = um_now();
  return SSL_CLIENT_HELLO_SUCCESS;
}

/* Each step is a tick. They are over before a handshake that was asked for in between, unless they
 * take so long that its patience ends: which on a fast machine they do not. */
static int steps_beside_handshakes(void *argument) {
  server *s = argument;
  char bytes[4096];
  size_t length = client_hello(s->theirs, bytes, sizeof bytes);
  SSL_CTX_set_client_hello_cb(s->ours, notes_step, NULL);
  for (int i = 0; i < TRIES; i++) {
    int fd = dial(s->port);
    UNTIL(stats().accepted == (uint64_t)i + 1);
    um_time asked = um_now();
    CHECK_EQ(send(fd, bytes, length, 0), (ssize_t)length);
    step_at_hello = -1;
    for (step = 0; step < STEPS; step++) CHECK_EQ(um_fiber_yield(), 0);
    UNTIL(step_at_hello >= 0);
    CHECK(step_at_hello == STEPS || hello_at - asked >= PATIENCE);
    close(fd);
    UNTIL(gone(s, i + 1)); /* the next does not join its wait */
  }
  return 0;
}
Test(serve, handshakes_wait_for_short_work) {
  serve((um_tls_server_config){0}, steps_beside_handshakes);
}

/* ---- handshakes that are not worth beginning ---- */

#define QUEUED 40

static void dial_all(int fds[QUEUED]) {
  for (int i = 0; i < QUEUED; i++) fds[i] = dial(now->port);
  UNTIL(stats().accepted == QUEUED);
}

static char hello[4096];
static size_t hello_length;

/* On a slow machine some have been cut already, for lateness. */
static void say(const int fds[QUEUED], size_t from, size_t to) {
  for (int i = 0; i < QUEUED; i++) send_all(fds[i], hello + from, to - from);
}

static void prepare_hello(void) {
  hello_length = client_hello(now->theirs, hello, sizeof hello);
  SSL_CTX_set_client_hello_cb(now->ours, slow_hello, NULL);
  hellos = 0;
}

/* All have said hello before the server looks. */
static void say_hello(const int fds[QUEUED]) {
  prepare_hello();
  say(fds, 0, hello_length);
}

static void hang_up(const int fds[QUEUED]) {
  for (int i = 0; i < QUEUED; i++) close(fds[i]);
}

/* Each takes a millisecond: the last ones' time is over before it is their turn. */
static int too_late(void *argument) {
  server *s = argument;
  int fds[QUEUED];
  dial_all(fds);
  say_hello(fds);
  UNTIL(gone(s, QUEUED));
  CHECK(hellos < QUEUED);
  CHECK_EQ(s->reason, -ETIMEDOUT);
  CHECK_EQ(stats().timed_out, QUEUED);
  CHECK_EQ(stats().failed, QUEUED);
  CHECK_EQ(stats().shaking, 0);
  hang_up(fds);
  return 0;
}
Test(serve, a_handshake_whose_time_is_over_is_not_begun) {
  serve((um_tls_server_config){.handshake_timeout_ms = QUEUED / 2}, too_late);
}

static int queued_at_stop[QUEUED];

static int waiting_for_handshakes(void *argument) {
  (void)argument;
  dial_all(queued_at_stop);
  say_hello(queued_at_stop);
  return 0;
}
Test(serve, no_handshake_begins_while_stopping) {
  server s = serve((um_tls_server_config){0}, waiting_for_handshakes);
  CHECK_EQ(hellos, 0);
  CHECK_EQ(s.ended, QUEUED);
  CHECK_EQ(s.reason, UM_ECLOSED);
  CHECK_EQ(s.stop_result, 0);
  hang_up(queued_at_stop);
}

/* For the last byte of a hello there may be a place left, or the connection is lost. */
static int without_memory(void *argument) {
  server *s = argument;
  int fds[QUEUED];
  dial_all(fds);
  prepare_hello();
  say(fds, 0, hello_length - 1);
  um_fiber_sleep(um_after(20));
  take_memory();
  say(fds, hello_length - 1, hello_length);
  um_fiber_sleep(um_after(60));
  CHECK_EQ(hellos, 0);
  CHECK_EQ(s->ended, 0);
  give_memory();
  UNTIL(hellos + s->ended == QUEUED);
  CHECK(hellos > 0);
  hang_up(fds);
  UNTIL(gone(s, QUEUED));
  CHECK_EQ(stats().failed, QUEUED);
  CHECK_EQ(stats().timed_out, 0);
  return 0;
}
Test(serve, handshakes_wait_for_memory) {
  serve((um_tls_server_config){.handshake_timeout_ms = 60000}, without_memory);
}
