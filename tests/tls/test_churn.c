/* Thousands of connections opened and closed in every way: descriptors, memory and gauges
 * come back to where they were. UM_TEST_CHURN says how many; a few thousand otherwise. */
#include "support.h"

#include <malloc.h>

SUITE(churn);

enum way { CLEAN, SERVER_CLOSES, RESET, ABORT, CANCELLED, TIMED_OUT, IN_HANDSHAKE, GARBAGE, VANISHES, WAYS };

#define AT_ONCE 16

static SSL_CTX *client;
static char port[8];
static int ended, begun;
static int numbers;

static int handler(um_tls *tls, void **data, void *argument) {
  char bytes[64];
  (void)data, (void)argument;
  ssize_t n = um_tls_read(tls, bytes, sizeof bytes, UM_FOREVER);
  if (n <= 0) return (int)n;
  ssize_t sent = um_tls_write(tls, bytes, (size_t)n, UM_FOREVER);
  if (sent < 0) return (int)sent;
  return bytes[0] == 'c' ? UM_TLS_CLOSE : bytes[0] == 'a' ? -EIO : UM_TLS_PARK;
}

static void closed(um_tls *tls, void *data, void *argument, int reason) {
  (void)tls, (void)data, (void)argument, (void)reason;
  ended++;
}

static int cancels(void *argument) {
  um_fiber_cancel(argument);
  return 0;
}

static void reset(int fd) {
  struct linger hard = {1, 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
}

static void connect_once(enum way way) {
  um_tls *tls;
  um_tls_options options = {.hostname = "localhost"};
  char bytes[8];
  int fd = dial(port);
  begun++;
  if (way == GARBAGE) {
    send(fd, "GET / HTTP/1.0\r\n\r\n", 18, MSG_NOSIGNAL);
    um_recv(fd, bytes, sizeof bytes, 0, UM_FOREVER);
    close(fd);
    return;
  }
  CHECK_EQ(um_tls_client(&tls, fd, client, &options), 0);
  if (way == IN_HANDSHAKE) {
    CHECK(um_tls_handshake(tls, 0) < 0);
    um_tls_abort(tls);
    return;
  }
  CHECK_EQ(um_tls_handshake(tls, UM_FOREVER), 0);
  CHECK_EQ(um_tls_write(tls, way == SERVER_CLOSES ? "c" : way == ABORT ? "a" : "e", 1, UM_FOREVER), 1);
  if (way == CANCELLED) {
    um_fiber *other = spawn(cancels, um_fiber_self());
    do bytes[0] = 0;
    while (um_tls_read(tls, bytes, 1, UM_FOREVER) == 1);
    join(other);
  } else if (way == TIMED_OUT) {
    CHECK_EQ(um_tls_read_exact(tls, bytes, 2, um_after(1)), -ETIMEDOUT);
  } else {
    CHECK_EQ(um_tls_read(tls, bytes, 1, UM_FOREVER) == 1 || way == ABORT, true);
  }
  if (way == SERVER_CLOSES) CHECK_EQ(um_tls_read(tls, bytes, 1, UM_FOREVER), 0);
  if (way == ABORT) CHECK(um_tls_read(tls, bytes, 1, UM_FOREVER) < 0);
  if (way == RESET) reset(fd);
  if (way == VANISHES || way == RESET) um_tls_abort(tls);
  else um_tls_close(tls, um_after(5000));
}

static int connects(void *argument) {
  int *left = argument;
  while ((*left)-- > 0) connect_once((enum way)(numbers++ % WAYS));
  return 0;
}

static size_t in_use(void) { return mallinfo2().uordblks; }

static int churn(void *argument) {
  int total = *(int *)argument, at = listener(port);
  um_tls_listener *l;
  um_tls_listener_stats stats;
  um_metrics before, after;
  um_tls_server_config config = {.ctx = um_server_ctx("server", 0), .handler = handler, .closed = closed};
  client = um_client_ctx(0);
  CHECK_EQ(um_tls_serve(&l, at, &config), 0);
  unsigned fds = 0;
  size_t memory = 0;
  for (int round = 0; round < 2; round++) { /* the first fills the pools */
    um_group group;
    int left = round ? total : 20 * WAYS;
    um_group_init(&group);
    for (int i = 0; i < AT_ONCE; i++) CHECK_EQ(um_group_spawn(&group, connects, &left, NULL), 0);
    CHECK_EQ(um_group_join(&group, UM_FOREVER), 0);
    do {
      um_fiber_sleep(um_after(5));
      um_tls_listener_stats_get(l, &stats);
    } while (stats.open || (int)stats.accepted < begun);
    if (round == 0) {
      fds = open_fds();
      memory = in_use();
      um_reactor_metrics(um_reactor_current(), &before);
    }
  }
  um_reactor_metrics(um_reactor_current(), &after);
  CHECK_EQ(open_fds(), fds);
  CHECK_EQ(after.fibers, before.fibers);
  CHECK_EQ(after.pending, before.pending);
  CHECK_EQ(after.buffers_used, before.buffers_used);
  CHECK_EQ(ended, begun);
  CHECK_EQ(stats.accepted, begun);
  size_t now = in_use();
  if (now > memory + (2u << 20)) fprintf(stderr, "%zu bytes before, %zu after\n", memory, now);
  CHECK(now <= memory + (2u << 20)); /* OpenSSL's session cache may grow a little */
  CHECK_EQ(um_tls_listener_stop(l, um_after(5000)), 0);
  SSL_CTX_free(config.ctx);
  SSL_CTX_free(client);
  close(at);
  return 0;
}

Test(churn, in_every_way, .timeout = 3600) {
  const char *wanted = getenv("UM_TEST_CHURN");
  int total = wanted ? atoi(wanted) : 3000;
  run_fibers(churn, &total);
}
