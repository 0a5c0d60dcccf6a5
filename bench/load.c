/* The load: TLS clients over epoll, in a closed loop (each connection waits for its
 * answer before it asks again). It shares no code with libbio_uring, so that a fault
 * or a favour there cannot show up on both ends.
 *
 * Every echoed byte is compared. Each message is a window into one random block, at a
 * place that depends on the connection and on the turn: bytes of another connection
 * or of an earlier message are noticed.
 */
#define _GNU_SOURCE
#include "util.h"

#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 512
#define PLACES 4096          /* windows into the random block */
#define CONNECTING_AT_ONCE 64 /* stays below any listen backlog */
#define STEPS 64             /* histogram: steps per doubling, so 1.6 % */
#define OCTAVES 40
#define CONNECT_SECONDS 60
#define WARM_UP_SECONDS 0.25

typedef struct client {
  SSL *ssl;
  int fd;
  uint32_t watched;
  bool connected;      /* had its first answer */
  bool full;           /* the socket has no room for what must be sent */
  unsigned id, turn;
  const char *message;
  size_t sent, received;
  size_t expected;     /* HTTP: size of the response once its header is there */
  char header[512];
  int64_t started;
} client;

static struct {
  const char *connect;
  unsigned connections, first;
  size_t size;
  double seconds;
  pid_t server;
  bool http, handshakes, idle, cubic;
} options = { .connections = 64, .size = 64, .seconds = 1 };

static SSL_CTX *context;
static int epoll_fd;
static struct sockaddr_storage server;
static socklen_t server_length;
static client *clients;
static char *block, *input;
static size_t input_size;

static unsigned begun, connected;
static bool running; /* until then each connection speaks once and rests */
static uint64_t operations, histogram[OCTAVES * STEPS];

/* ---- latency ---- */

static void record(int64_t nanoseconds) {
  uint64_t value = nanoseconds < STEPS ? STEPS : (uint64_t)nanoseconds;
  unsigned octave = 63 - (unsigned)__builtin_clzll(value);
  unsigned step = (unsigned)(value >> (octave - 6)) & (STEPS - 1);
  unsigned slot = (octave - 6) * STEPS + step;
  histogram[slot < OCTAVES * STEPS ? slot : OCTAVES * STEPS - 1]++;
}

static double percentile_us(double part) {
  uint64_t wanted = (uint64_t)((double)operations * part), seen = 0;
  for (unsigned slot = 0; slot < OCTAVES * STEPS; slot++) {
    seen += histogram[slot];
    if (seen > wanted) {
      uint64_t step = slot % STEPS;
      return (double)((STEPS + step) << (slot / STEPS)) / 1e3;
    }
  }
  return 0;
}

/* ---- one connection ---- */

static const char request[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

static size_t message_size(void) {
  return options.http ? sizeof request - 1 : options.size;
}

static void watch(client *c, uint32_t events) {
  struct epoll_event event = { .events = events, .data.ptr = c };
  if (c->watched == events) return;
  if (epoll_ctl(epoll_fd, c->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &event))
    fail("epoll_ctl: %s", strerror(errno));
  c->watched = events;
}

static void begin(client *c) {
  /* Load generators that share one source address run out of ports. */
  struct sockaddr_in from = { .sin_family = AF_INET };
  const int on = 1;
  c->fd = socket(server.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (c->fd < 0) fail("socket %u of %u: %s", begun, options.connections, strerror(errno));
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (options.cubic) use_cubic(c->fd);
  if (options.handshakes && server.ss_family == AF_INET) {
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + c->turn % 64);
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(c->fd, (struct sockaddr *)&from, sizeof from)) fail("bind: %s", strerror(errno));
  }
  if (connect(c->fd, (struct sockaddr *)&server, server_length) && errno != EINPROGRESS)
    fail("cannot connect to %s: %s", options.connect, strerror(errno));
  c->ssl = SSL_new(context);
  if (!c->ssl || !SSL_set_fd(c->ssl, c->fd)) fail("no memory for connection %u", c->id);
  SSL_set_connect_state(c->ssl);
  c->started = now_ns();
  c->watched = 0;
  watch(c, EPOLLOUT);
}

static void end(client *c) {
  SSL_shutdown(c->ssl);
  ERR_clear_error();
  SSL_free(c->ssl);
  close(c->fd);
}

_Noreturn static void lose(const client *c, int error) {
  const char *reason = error == SSL_ERROR_SYSCALL && errno ? strerror(errno)
                     : error == SSL_ERROR_SSL              ? "TLS failure"
                                                           : "closed by the server";
  if (c->connected || SSL_is_init_finished(c->ssl))
    fail("connection %u lost after %u messages: %s", c->id, c->turn, reason);
  fail("cannot connect to %s: %s", options.connect, reason);
}

/* 0 when the kernel must be waited for. */
static int progress(client *c, int result) {
  if (result > 0) return result;
  int error = SSL_get_error(c->ssl, result);
  if (error == SSL_ERROR_WANT_WRITE) c->full = true;
  else if (error != SSL_ERROR_WANT_READ) lose(c, error);
  return 0;
}

static void choose_message(client *c) {
  c->message = options.http ? request : block + (c->id * 61u + c->turn * 17u) % PLACES;
  c->sent = c->received = c->expected = 0;
}

static void send_message(client *c) {
  size_t size = message_size();
  while (c->sent < size) {
    int written = progress(c, SSL_write(c->ssl, c->message + c->sent, (int)(size - c->sent)));
    if (!written) return;
    c->sent += (size_t)written;
  }
}

static void check_echo(const client *c, size_t length) {
  if (c->received + length > options.size ||
      memcmp(input, c->message + c->received, length) != 0)
    fail("connection %u, message %u: the echo differs from what was sent", c->id, c->turn);
}

static void read_header(client *c, size_t length) {
  size_t room = sizeof c->header - 1 - c->received;
  memcpy(c->header + c->received, input, length < room ? length : room);
  c->header[c->received + (length < room ? length : room)] = 0;
  char *blank_line = strstr(c->header, "\r\n\r\n");
  if (!blank_line) {
    if (length >= room) fail("the response header is longer than %zu bytes", sizeof c->header);
    return;
  }
  const char *field = strcasestr(c->header, "content-length:");
  if (strncmp(c->header, "HTTP/1.1 200", 12) || !field || field > blank_line)
    fail("not a 200 response with a Content-Length: '%.40s'", c->header);
  size_t body = strtoul(field + 15, NULL, 10);
  if (body != options.size) fail("a body of %zu bytes, not %zu", body, options.size);
  c->expected = (size_t)(blank_line + 4 - c->header) + body;
}

/* True when the answer is complete. */
static bool receive_answer(client *c) {
  for (;;) {
    int length = progress(c, SSL_read(c->ssl, input, (int)input_size));
    if (!length) return false;
    if (!options.http) check_echo(c, (size_t)length);
    else if (!c->expected) read_header(c, (size_t)length);
    c->received += (size_t)length;
    if (!options.http) c->expected = options.size;
    if (c->received == c->expected) return true;
    if (c->expected && c->received > c->expected) fail("bytes after the end of the response");
    if (!SSL_has_pending(c->ssl)) return false;
  }
}

static void complete(client *c) {
  int64_t now = now_ns();
  record(now - c->started);
  operations++;
  c->turn++;
  if (!c->connected) {
    c->connected = true;
    connected++;
  }
  c->started = now;
  choose_message(c);
}

static void proceed(client *c, uint32_t happened) {
  c->full = false;
  if (SSL_is_init_finished(c->ssl) || progress(c, SSL_do_handshake(c->ssl))) {
    if (running || !c->turn) send_message(c);
    if (happened & ~(uint32_t)EPOLLOUT && receive_answer(c)) {
      complete(c);
      if (options.handshakes) {
        end(c);
        begin(c);
        return;
      }
      if (running) send_message(c);
    }
  }
  watch(c, c->full ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

/* ---- phases ---- */

static void turn(int milliseconds) {
  struct epoll_event events[EVENTS];
  int count = epoll_wait(epoll_fd, events, EVENTS, milliseconds);
  for (int i = 0; i < count; i++) proceed(events[i].data.ptr, events[i].events);
}

static void connect_until(unsigned wanted) {
  int64_t give_up = now_ns() + CONNECT_SECONDS * INT64_C(1000000000);
  while (connected < wanted) {
    while (begun < wanted && begun - connected < CONNECTING_AT_ONCE) {
      client *c = &clients[begun];
      c->id = begun++;
      choose_message(c);
      begin(c);
    }
    turn(100);
    if (now_ns() > give_up)
      fail("only %u of %u connections answered within %d s", connected, wanted, CONNECT_SECONDS);
  }
}

static void run_for(double seconds) {
  int64_t end_at = now_ns() + (int64_t)(seconds * 1e9);
  while (now_ns() < end_at) turn(50);
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

static void measure(void) {
  running = true;
  for (unsigned i = 0; i < connected && !options.handshakes; i++) {
    clients[i].started = now_ns();
    proceed(&clients[i], 0);
  }
  run_for(WARM_UP_SECONDS);
  memset(histogram, 0, sizeof histogram);
  operations = 0;

  int64_t start = now_ns(), own = cpu_ns(0);
  int64_t theirs = options.server ? cpu_ns(options.server) : 0;
  run_for(options.seconds);
  double seconds = (double)(now_ns() - start) / 1e9;
  own = cpu_ns(0) - own;
  theirs = options.server ? cpu_ns(options.server) - theirs : 0;

  if (!operations) fail("no operation completed in %.1f s", seconds);
  double count = (double)operations;
  printf("operations=%.0f seconds=%.3f rate=%.0f p50_us=%.2f p99_us=%.2f load_cpu_us=%.3f", count,
         seconds, count / seconds, percentile_us(0.50), percentile_us(0.99),
         (double)own / count / 1e3);
  if (options.server) printf(" cpu_us=%.3f", (double)theirs / count / 1e3);
  printf(" connections=%u\n", connected);
  fflush(stdout);
}

static void wait_for_line(void) {
  struct pollfd line = { .fd = STDIN_FILENO, .events = POLLIN };
  char skipped[64];
  while (poll(&line, 1, 0) == 0) turn(50);
  if (read(STDIN_FILENO, skipped, sizeof skipped) <= 0) exit(0);
}

/* In two steps, so that a reader of the server's memory can take the slope between
 * them and what the server holds without any connection drops out. */
static void hold(void) {
  const unsigned steps[] = { options.first, options.connections };
  for (unsigned i = options.first ? 0 : 1; i < 2; i++) {
    connect_until(steps[i]);
    printf("holding %u\n", connected);
    fflush(stdout);
    wait_for_line();
  }
}

/* ---- set-up ---- */

static void make_context(void) {
  context = SSL_CTX_new(TLS_client_method());
  /* One cipher for every server, whatever it would rather have. The certificate's
   * chain is not verified: that would only cost the load CPU. */
  if (!context || SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") != 1)
    fail("no TLS context");
  SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_read_ahead(context, 1);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE);
  if (options.idle) SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
}

static void make_memory(void) {
  size_t length = options.size + PLACES;
  input_size = SSL3_RT_MAX_PLAIN_LENGTH;
  clients = calloc(options.connections, sizeof *clients);
  block = malloc(length);
  input = malloc(input_size);
  if (!clients || !block || !input || RAND_bytes((unsigned char *)block, (int)length) != 1)
    fail("no memory for %u connections", options.connections);
}

static void usage(FILE *to) {
  fputs("usage: bench-load --connect HOST:PORT [options]\n"
        "\n"
        "Closed-loop TLS 1.3 load; prints one line of key=value pairs.\n"
        "\n"
        "  --connections N      at once (default 64)\n"
        "  --size BYTES         of a message, or of the expected HTTP body (default 64)\n"
        "  --seconds S          measured, after a quarter second of warm-up (default 1)\n"
        "  --server-pid PID     report this process's CPU time per operation as cpu_us\n"
        "  --cubic              cubic congestion control\n"
        "what an operation is (default: a message echoed and compared):\n"
        "  --http               GET / with keep-alive, a body of --size bytes back\n"
        "  --handshakes         connect, full handshake, one echoed message, close\n"
        "or:\n"
        "  --idle               connect, echo one message each, print 'holding N', hold until a\n"
        "                       line or the end of file on standard input\n"
        "  --first N            with --idle: first hold N, and the rest after a line\n"
        "  --version            the OpenSSL it runs on\n", to);
}

static void parse(int argc, char **argv) {
  enum { CONNECT = 256, CONNECTIONS, SIZE, SECONDS, SERVER, HTTP, HANDSHAKES, IDLE, FIRST, CUBIC,
         HELP, VERSION };
  static const struct option known[] = {
    { "connect", required_argument, NULL, CONNECT },
    { "connections", required_argument, NULL, CONNECTIONS },
    { "size", required_argument, NULL, SIZE },
    { "seconds", required_argument, NULL, SECONDS },
    { "server-pid", required_argument, NULL, SERVER },
    { "http", no_argument, NULL, HTTP },
    { "handshakes", no_argument, NULL, HANDSHAKES },
    { "idle", no_argument, NULL, IDLE },
    { "first", required_argument, NULL, FIRST },
    { "cubic", no_argument, NULL, CUBIC },
    { "help", no_argument, NULL, HELP },
    { "version", no_argument, NULL, VERSION },
    { NULL, 0, NULL, 0 },
  };
  for (int choice; (choice = getopt_long(argc, argv, "", known, NULL)) != -1;) {
    switch (choice) {
      case CONNECT: options.connect = optarg; break;
      case CONNECTIONS: options.connections = (unsigned)number("connections", optarg); break;
      case SIZE: options.size = number("size", optarg); break;
      case SECONDS: options.seconds = atof(optarg); break;
      case SERVER: options.server = (pid_t)number("server-pid", optarg); break;
      case HTTP: options.http = true; break;
      case HANDSHAKES: options.handshakes = true; break;
      case IDLE: options.idle = true; break;
      case FIRST: options.first = (unsigned)number("first", optarg); break;
      case CUBIC: options.cubic = true; break;
      case HELP: usage(stdout); exit(0);
      case VERSION: puts(OpenSSL_version(OPENSSL_VERSION)); exit(0);
      default: usage(stderr); exit(2);
    }
  }
  if (optind < argc || !options.connect || options.seconds <= 0 ||
      options.http + options.handshakes + options.idle > 1 ||
      options.size > (1u << 30) || options.first > options.connections) {
    usage(stderr);
    exit(2);
  }
}

int main(int argc, char **argv) {
  parse(argc, argv);
  signal(SIGPIPE, SIG_IGN);
  raise_descriptor_limit();
  resolve(options.connect, 0, &server, &server_length);
  make_context();
  make_memory();
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd < 0) fail("epoll: %s", strerror(errno));

  if (options.idle) {
    hold();
  } else {
    connect_until(options.connections);
    measure();
  }
  for (unsigned i = 0; i < begun; i++) end(&clients[i]);
  return 0;
}
