/* The load: many clients in closed loops (each waits for its answer before it asks again), or
 * at a rate, or as a nuisance for others.
 *
 * Every echoed byte is compared. Each message is a window into one random block, at a
 * place that depends on the connection and on the turn: bytes of another connection
 * or of an earlier message are noticed.
 */
#define _GNU_SOURCE
#include "histogram.h"
#include "load_client.h"

#include <errno.h>
#include <getopt.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define PLACES 4096           /* windows into the random block */
#define CONNECTING_AT_ONCE 64 /* stays below any listen backlog */
#define CONNECT_SECONDS 60
#define PIDS 16
#define TURN_NS 50000000
#define SETTLE_NS 1000000000
#define PACE_NS 50000         /* between two looks at what is due */
#define FLOOD_SLICE (16u << 10)
#define KEY_UPDATE_ROOM 64    /* bytes of its record, at most */

static struct {
  unsigned connections, first, depth, updates, burst;
  size_t size, answer;
  double seconds, warm_up, rate;
  pid_t servers[PIDS];
  int server_count;
  bool http, handshakes, idle, ready, accept_close, tls12;
} options = { .connections = 64, .size = 64, .depth = 1, .burst = 1, .seconds = 1,
              .warm_up = 0.25 };

static client *clients, **resting;
static unsigned resting_first, resting_count;
static char *block, *input;

static unsigned begun, connected;
static bool running; /* until then each connection speaks once and rests */
static uint64_t operations, resumed, due, late, flooded;
static size_t http_length; /* of a whole response, once the first was seen */
static size_t key_update_length;
static volatile sig_atomic_t stopped;

/* ---- one exchange ---- */

static size_t request_length(void) {
  return options.http ? http_request_length : options.size * options.depth;
}

static size_t response_length(void) {
  if (options.http) return http_length;
  return (options.answer ? options.answer : options.size) * options.depth;
}

static void choose_message(client *c) {
  c->message = options.http ? http_request : block + (c->id * 61u + c->turn * 17u) % PLACES;
  c->sent = c->received = 0;
}

/* A pipelined message has a record of its own, as from a client that writes when it likes. */
static void send_message(client *c) {
  size_t total = request_length();
  size_t unit = options.depth > 1 ? options.size : total;
  while (c->sent < total) {
    size_t part = unit - c->sent % unit;
    size_t taken = client_write(c, c->message + c->sent, part);
    c->sent += taken;
    if (taken < part) break;
  }
  client_flush(c);
}

static void check_echo(const client *c, size_t length) {
  if (c->received + length > response_length() ||
      memcmp(input, c->message + c->received, length) != 0)
    fail("connection %u, message %u: the echo differs from what was sent", c->id, c->turn);
}

static void check_answer(const client *c, size_t length) {
  if (c->received + length > response_length() || input[0] != 'x' || input[length - 1] != 'x')
    fail("connection %u, message %u: not the answer that was expected", c->id, c->turn);
}

/* Once: all responses of a server have one length. */
static void learn_http(size_t length) {
  char header[1024];
  snprintf(header, sizeof header, "%.*s", (int)length, input);
  char *blank_line = strstr(header, "\r\n\r\n");
  char *field = strcasestr(header, "content-length:");
  if (!blank_line || !field || field > blank_line)
    fail("not a response with a Content-Length at once: '%.40s'", header);
  size_t body = strtoul(field + 15, NULL, 10);
  if (body != options.size) fail("a body of %zu bytes, not %zu", body, options.size);
  http_length = (size_t)(blank_line + 4 - header) + body;
}

static void check_http(const client *c, size_t length) {
  if (!c->received && memcmp(input, "HTTP/1.1 200", length < 12 ? length : 12))
    fail("not a 200 response: '%.*s'", (int)(length < 40 ? length : 40), input);
  if (!http_length) learn_http(length);
  if (c->received + length > http_length) fail("bytes after the end of the response");
}

static void rest(client *c) {
  resting[(resting_first + resting_count++) % options.connections] = c;
}

static void complete(client *c) {
  int64_t now = now_ns();
  histogram_add(now - c->started);
  operations += options.depth;
  c->turn++;
  if (!c->connected) {
    c->connected = true;
    connected++;
  }
  c->started = now;
  choose_message(c);
  if (options.handshakes) client_close(c);
  else if (options.rate > 0) rest(c);
  else if (running) send_message(c);
}

/* ---- what the transport tells ---- */

static void flood_on(client *c);

static void on_connected(client *c) {
  if (options.accept_close) {
    client_close(c);
    return;
  }
  if (c->ssl && options.handshakes && SSL_session_reused(c->ssl)) resumed++;
  choose_message(c);
  send_message(c);
}

static void on_readable(client *c) {
  for (size_t length; (length = client_read(c, input, SSL3_RT_MAX_PLAIN_LENGTH));) {
    if (options.http) check_http(c, length);
    else if (options.answer) check_answer(c, length);
    else check_echo(c, length);
    c->received += length;
    if (c->received < response_length()) continue;
    complete(c);
    if (c->closing) return;
  }
}

static void on_room(client *c) {
  if (c->flood) flood_on(c);
  else if (c->sent && c->sent < request_length()) send_message(c);
}

static void on_closed(client *c) {
  if (options.accept_close) {
    histogram_add(now_ns() - c->started);
    operations++;
    c->turn++;
    if (!c->connected) connected++;
    c->connected = true;
  }
  if (options.rate > 0) rest(c);
  else if (!stopped) client_connect(c);
}

/* ---- KeyUpdate flood ---- */

/* Made beforehand, so that during the flood it costs this side only the sending. */
static void prepare_flood(client *c) {
  c->flood_room = (size_t)options.updates * KEY_UPDATE_ROOM;
  if (!(c->flood = malloc(c->flood_room))) fail("no memory for %u KeyUpdates", options.updates);
  for (unsigned i = 0; i < options.updates; i++)
    if (SSL_key_update(c->ssl, SSL_KEY_UPDATE_NOT_REQUESTED) != 1 || SSL_do_handshake(c->ssl) != 1)
      fail("KeyUpdate");
  key_update_length = c->flood_length / options.updates;
  c->sent = 0;
}

static void flood_on(client *c) {
  flooded += c->sent;
  c->flood += c->sent;
  c->flood_length -= c->sent;
  c->sent = 0;
  size_t length = c->flood_length < FLOOD_SLICE ? c->flood_length : FLOOD_SLICE;
  if (length) client_send_raw(c, c->flood, length);
}

/* ---- phases ---- */

static void connect_until(unsigned wanted) {
  int64_t give_up = now_ns() + CONNECT_SECONDS * INT64_C(1000000000);
  while (connected < wanted) {
    while (begun < wanted && begun - connected < CONNECTING_AT_ONCE) {
      clients[begun].id = begun;
      client_connect(&clients[begun++]);
    }
    transport_turn(TURN_NS);
    if (now_ns() > give_up)
      fail("only %u of %u connections answered within %d s", connected, wanted, CONNECT_SECONDS);
  }
}

/* Operations that are due use connections that rest. When none does, they are left out and
 * counted as late: the latency of a server that stalls is that of the messages it holds. */
static void send_due(int64_t since) {
  uint64_t target = (uint64_t)((double)(now_ns() - since) * options.rate / 1e9);
  target -= target % options.burst;
  while (due < target && resting_count) {
    client *c = resting[resting_first];
    resting_first = (resting_first + 1) % options.connections;
    resting_count--;
    due++;
    c->started = now_ns();
    if (options.handshakes) client_connect(c);
    else send_message(c);
  }
  late += target - due;
  due = target;
}

static void run_for(double seconds) {
  int64_t start = now_ns(), end_at = start + (int64_t)(seconds * 1e9);
  due = late = 0;
  while (!stopped && now_ns() < end_at) {
    if (options.rate > 0) send_due(start);
    transport_turn(options.rate > 0 ? PACE_NS : TURN_NS);
  }
}

/* The scheduler's own nanoseconds for all threads of a process, past and present,
 * user and system: /proc/PID/stat would count in hundredths of a second. */
static int64_t cpu_ns(pid_t pid) {
  clockid_t clock;
  struct timespec used;
  if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &used))
    fail("cannot read the CPU time of process %d", (int)pid);
  return used.tv_sec * INT64_C(1000000000) + used.tv_nsec;
}

static int64_t servers_cpu_ns(void) {
  int64_t sum = 0;
  for (int i = 0; i < options.server_count; i++) sum += cpu_ns(options.servers[i]);
  return sum;
}

static void start_all(void) {
  running = true;
  for (unsigned i = 0; i < connected && !options.handshakes && !options.accept_close; i++) {
    clients[i].started = now_ns();
    if (options.updates) flood_on(&clients[i]);
    else if (!(options.rate > 0)) send_message(&clients[i]);
  }
}

static void report(double seconds, int64_t own, int64_t theirs) {
  double count = (double)operations;
  if (options.updates) count = (double)(flooded / key_update_length);
  /* Beside a nuisance that is a result. */
  if (count == 0 && !options.ready) fail("no operation completed in %.1f s", seconds);
  if (count == 0) count = 1e-9;
  printf("operations=%.0f seconds=%.3f rate=%.0f p50_us=%.2f p99_us=%.2f load_cpu_us=%.3f", count,
         seconds, count / seconds, histogram_us(0.50), histogram_us(0.99),
         (double)own / count / 1e3);
  if (options.server_count) printf(" cpu_us=%.3f", (double)theirs / count / 1e3);
  if (options.rate > 0) printf(" late=%.0f wanted=%.0f", (double)late, options.rate);
  if (options.handshakes) printf(" resumed=%.0f", (double)resumed);
  printf(" connections=%u\n", connected);
  fflush(stdout);
}

/* A message that waits longer than nearly all that were answered counts with its age, or a
 * server that answers nothing would look fast. */
static void count_waiting(void) {
  double usual = histogram_us(0.99);
  int64_t now = now_ns();
  for (unsigned i = 0; i < connected; i++) {
    int64_t age = now - clients[i].started;
    if (clients[i].sent && (double)age / 1e3 > usual) histogram_add(age);
  }
}

static void measure(void) {
  start_all();
  run_for(options.warm_up);
  histogram_clear();
  operations = resumed = flooded = 0;
  int64_t start = now_ns(), own = cpu_ns(0), theirs = servers_cpu_ns();
  run_for(options.seconds);
  theirs = servers_cpu_ns() - theirs;
  if (options.ready) count_waiting();
  report((double)(now_ns() - start) / 1e9, cpu_ns(0) - own, theirs);
}

static void wait_for_line(void) {
  struct pollfd line = { .fd = STDIN_FILENO, .events = POLLIN };
  char skipped[64];
  printf("holding %u\n", connected);
  fflush(stdout);
  while (poll(&line, 1, 0) == 0) transport_turn(TURN_NS);
  if (read(STDIN_FILENO, skipped, sizeof skipped) <= 0) exit(0);
}

/* In two steps, so that a reader of the server's memory can take the slope between
 * them and what the server holds without any connection drops out; then all but the
 * first go, to see what is given back. */
static void hold(void) {
  const unsigned steps[] = { options.first, options.connections };
  for (unsigned i = options.first ? 0 : 1; i < 2; i++) {
    connect_until(steps[i]);
    wait_for_line();
  }
  stopped = 1; /* closed connections stay closed */
  for (unsigned i = options.first; i < connected; i++) client_close(&clients[i]);
  for (int64_t end = now_ns() + SETTLE_NS; now_ns() < end;) transport_turn(TURN_NS);
  connected = options.first;
  wait_for_line();
}

/* ---- set-up ---- */

static void make_context(void) {
  SSL_CTX *context = SSL_CTX_new(TLS_client_method());
  int version = options.tls12 ? TLS1_2_VERSION : TLS1_3_VERSION;
  /* The certificate's chain is not verified: that would only cost the load CPU. */
  if (!context || SSL_CTX_set_min_proto_version(context, version) != 1 ||
      SSL_CTX_set_max_proto_version(context, version) != 1 || !use_one_cipher(context))
    fail("no TLS context");
  SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_read_ahead(context, 1);
  SSL_CTX_set_mode(context, SSL_MODE_AUTO_RETRY);
  if (options.idle) SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
  transport_setup.context = context;
}

static void make_memory(void) {
  size_t length = options.size * options.depth + PLACES;
  clients = calloc(options.connections, sizeof *clients);
  resting = calloc(options.connections, sizeof *resting);
  block = malloc(length);
  input = malloc(SSL3_RT_MAX_PLAIN_LENGTH);
  if (!clients || !resting || !block || !input ||
      RAND_bytes((unsigned char *)block, (int)length) != 1)
    fail("no memory for %u connections", options.connections);
}

static void usage(FILE *to) {
  fputs("usage: bench-load --connect HOST:PORT [options]\n"
        "\n"
        "TLS 1.3 load; prints one line of key=value pairs. SIGTERM ends the measured time.\n"
        "\n"
        "  --connections N      at once (default 64)\n"
        "  --size BYTES         of a message, or of the expected HTTP body (default 64)\n"
        "  --seconds S          measured (default 1)\n"
        "  --warm-up S          before that (default 0.25)\n"
        "  --rate R             so many operations a second, not as fast as they complete;\n"
        "                       `late` counts those left out because no connection was free\n"
        "  --burst N            with --rate: so many at a time\n"
        "  --server-pid P,Q     report these processes' CPU time per operation as cpu_us\n"
        "  --cubic              cubic congestion control\n"
        "  --plain              no TLS\n"
        "  --tls12              TLS 1.2\n"
        "  --ready              when connected print 'holding N' and wait for a line on\n"
        "                       standard input; no answer in all the time is then a result\n"
        "what an operation is (default: a message echoed and compared):\n"
        "  --answer BYTES       a message answered by so many bytes\n"
        "  --pipeline N         N messages sent together; each counts\n"
        "  --http               GET / with keep-alive, a body of --size bytes back\n"
        "  --handshakes         connect, full handshake, one such exchange, close\n"
        "  --resume             with --handshakes: resumed by ticket\n"
        "  --accept-close       connect, FIN without a byte, wait for the server's\n"
        "or:\n"
        "  --key-updates N      after one exchange send so many KeyUpdates, made beforehand\n"
        "  --idle               after one exchange each print 'holding N', hold until a line on\n"
        "                       standard input; then close all but the first, and again\n"
        "  --first N            with --idle: first hold N, and the rest after a line\n"
        "  --version            the OpenSSL it runs on\n", to);
}

static void parse_pids(char *list) {
  for (char *pid; (pid = strsep(&list, ","));) {
    if (options.server_count == PIDS) fail("at most %d processes", PIDS);
    options.servers[options.server_count++] = (pid_t)number("server-pid", pid);
  }
}

static double positive(const char *option, const char *text) {
  char *end;
  double value = strtod(text, &end);
  if (*end || !(value > 0)) fail("--%s wants a positive number, not '%s'", option, text);
  return value;
}

static void parse(int argc, char **argv) {
  enum { CONNECT = 256, CONNECTIONS, SIZE, SECONDS, WARM_UP, RATE, BURST, SERVER, CUBIC, PLAIN,
         TLS12, READY, ANSWER, PIPELINE, HTTP, HANDSHAKES, RESUME, ACCEPT_CLOSE, UPDATES, IDLE,
         FIRST, HELP, VERSION };
  static const struct option known[] = {
    { "connect", required_argument, NULL, CONNECT },
    { "connections", required_argument, NULL, CONNECTIONS },
    { "size", required_argument, NULL, SIZE },
    { "seconds", required_argument, NULL, SECONDS },
    { "warm-up", required_argument, NULL, WARM_UP },
    { "rate", required_argument, NULL, RATE },
    { "burst", required_argument, NULL, BURST },
    { "server-pid", required_argument, NULL, SERVER },
    { "cubic", no_argument, NULL, CUBIC },
    { "plain", no_argument, NULL, PLAIN },
    { "tls12", no_argument, NULL, TLS12 },
    { "ready", no_argument, NULL, READY },
    { "answer", required_argument, NULL, ANSWER },
    { "pipeline", required_argument, NULL, PIPELINE },
    { "http", no_argument, NULL, HTTP },
    { "handshakes", no_argument, NULL, HANDSHAKES },
    { "resume", no_argument, NULL, RESUME },
    { "accept-close", no_argument, NULL, ACCEPT_CLOSE },
    { "key-updates", required_argument, NULL, UPDATES },
    { "idle", no_argument, NULL, IDLE },
    { "first", required_argument, NULL, FIRST },
    { "help", no_argument, NULL, HELP },
    { "version", no_argument, NULL, VERSION },
    { NULL, 0, NULL, 0 },
  };
  for (int choice; (choice = getopt_long(argc, argv, "", known, NULL)) != -1;) {
    switch (choice) {
      case CONNECT: transport_setup.address = optarg; break;
      case CONNECTIONS: options.connections = (unsigned)number("connections", optarg); break;
      case SIZE: options.size = number("size", optarg); break;
      case SECONDS: options.seconds = positive("seconds", optarg); break;
      case WARM_UP: options.warm_up = positive("warm-up", optarg); break;
      case RATE: options.rate = positive("rate", optarg); break;
      case BURST: options.burst = (unsigned)number("burst", optarg); break;
      case SERVER: parse_pids(optarg); break;
      case CUBIC: transport_setup.cubic = true; break;
      case PLAIN: transport_setup.plain = true; break;
      case TLS12: options.tls12 = true; break;
      case READY: options.ready = true; break;
      case ANSWER: options.answer = number("answer", optarg); break;
      case PIPELINE: options.depth = (unsigned)number("pipeline", optarg); break;
      case HTTP: options.http = true; break;
      case HANDSHAKES: options.handshakes = true; break;
      case RESUME: transport_setup.resume = true; break;
      case ACCEPT_CLOSE: options.accept_close = true; break;
      case UPDATES: options.updates = (unsigned)number("key-updates", optarg); break;
      case IDLE: options.idle = true; break;
      case FIRST: options.first = (unsigned)number("first", optarg); break;
      case HELP: usage(stdout); exit(0);
      case VERSION: puts(OpenSSL_version(OPENSSL_VERSION)); exit(0);
      default: usage(stderr); exit(2);
    }
  }
  bool right = transport_setup.address && optind == argc &&
               options.handshakes + options.idle + options.accept_close + !!options.updates <= 1 &&
               !(options.rate > 0 && (options.idle || options.accept_close || options.updates)) &&
               options.size * options.depth <= (1u << 30) && options.first <= options.connections;
  if (right) return;
  usage(stderr);
  exit(2);
}

static void set_up_transport(void) {
  transport_setup.connected = on_connected;
  transport_setup.readable = on_readable;
  transport_setup.room = on_room;
  transport_setup.closed = on_closed;
  transport_setup.many_sources = options.handshakes || options.accept_close;
  if (options.accept_close) transport_setup.plain = true;
  make_context();
  transport_start(options.connections);
}

static void stop(int number_of_signal) {
  (void)number_of_signal;
  stopped = 1;
}

int main(int argc, char **argv) {
  const struct sigaction end = { .sa_handler = stop };
  parse(argc, argv);
  signal(SIGPIPE, SIG_IGN);
  sigaction(SIGTERM, &end, NULL);
  prctl(PR_SET_TIMERSLACK, 1); /* the pace */
  raise_descriptor_limit();
  make_memory();
  set_up_transport();
  if (options.idle) {
    hold();
    return 0;
  }
  connect_until(options.connections);
  for (unsigned i = 0; i < connected && options.updates; i++) prepare_flood(&clients[i]);
  if (options.ready) wait_for_line();
  measure();
  return 0;
}
