// Hostile peers, one subcommand each, and the good client that is measured beside them.
//
//   attacker ATTACK PORT COUNT SECONDS      say "ready" when it is on; then a line of counts
//   attacker client PORT LIVE NEW SECONDS   latency of a live connection and of new ones, JSON;
//                                           pauses of LIVE and NEW microseconds between requests
//
// Uses OpenSSL only, nothing of the library under attack. TLS runs over memory, so that each
// attack decides itself what leaves, when, and in which pieces. Ends on SIGTERM as well.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SOURCES = 8, PATIENCE_MS = 5000, PIECE = 16384 };

typedef struct {
  int fd;
  SSL *ssl;
  BIO *in, *out;
} peer;

static SSL_CTX *context;
static int port;
static volatile sig_atomic_t stopped;
static double ends;
static long done;
static _Atomic long refused;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void pause_us(long us) {
  struct timespec t = {us / 1000000, us % 1000000 * 1000};
  nanosleep(&t, NULL);
}

static bool going(void) { return !stopped && now() < ends; }

static void on_stop(int signal_number) {
  (void)signal_number;
  stopped = 1;
}

static void ready(void) {
  printf("ready\n");
  fflush(stdout);
}

static void hold(void) {
  ready();
  while (going()) pause_us(20000);
}

// ---- sockets ----

// From one of several loopback addresses in turn; -1 if it was not accepted.
static int dial(void) {
  static _Atomic unsigned turn;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
  if (fd < 0) return -1;
  struct timeval patience = {PATIENCE_MS / 1000, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
  struct sockaddr_in from = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + turn++ % SOURCES)};
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                           .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (bind(fd, (void *)&from, sizeof from) || connect(fd, (void *)&to, sizeof to)) {
    close(fd);
    refused++;
    return -1;
  }
  return fd;
}

static bool put(int fd, const void *data, size_t length) {
  for (size_t sent = 0; sent < length;) {
    ssize_t n = send(fd, (const char *)data + sent, length - sent, MSG_NOSIGNAL);
    if (n <= 0) return false;
    sent += (size_t)n;
  }
  return true;
}

// close() that sends RST.
static void reset(int fd) {
  struct linger none = {1, 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
  close(fd);
}

static void hang_up(int fd, bool by_reset) {
  if (by_reset) reset(fd);
  else close(fd);
}

static void set_nonblocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

// ---- TLS over memory ----

static void peer_init(peer *p, int version) {
  *p = (peer){.fd = -1, .ssl = SSL_new(context)};
  p->in = BIO_new(BIO_s_mem());
  p->out = BIO_new(BIO_s_mem());
  SSL_set_bio(p->ssl, p->in, p->out);
  SSL_set_connect_state(p->ssl);
  if (version) {
    SSL_set_min_proto_version(p->ssl, version);
    SSL_set_max_proto_version(p->ssl, version);
  }
}

static void peer_end(peer *p, bool by_reset) {
  if (p->fd >= 0) hang_up(p->fd, by_reset);
  SSL_free(p->ssl);
}

// What TLS wants to send, in pieces of so many bytes (0: as one), but at most `most` of it.
static bool peer_flush(peer *p, size_t piece, size_t most) {
  char *data;
  size_t length = (size_t)BIO_get_mem_data(p->out, &data);
  bool good = true;
  if (length > most) length = most;
  for (size_t at = 0; good && at < length;) {
    size_t n = piece && piece < length - at ? piece : length - at;
    good = put(p->fd, data + at, n);
    at += n;
  }
  (void)BIO_reset(p->out);
  return good;
}

static bool peer_fill(peer *p) {
  char data[PIECE];
  ssize_t n = recv(p->fd, data, sizeof data, 0);
  return n > 0 && BIO_write(p->in, data, (int)n) == n;
}

// Handshake; stops after so many flights sent (-1: complete), the last cut to `cut` bytes.
static bool peer_shake(peer *p, int flights, size_t cut, size_t piece) {
  for (int sent = 0;;) {
    int result = SSL_do_handshake(p->ssl);
    if (BIO_ctrl_pending(p->out)) {
      sent++;
      if (!peer_flush(p, piece, sent == flights ? cut : SIZE_MAX)) return false;
      if (sent == flights) return true;
    }
    if (result == 1) return true;
    if (SSL_get_error(p->ssl, result) != SSL_ERROR_WANT_READ || !peer_fill(p)) return false;
  }
}

static bool peer_open(peer *p, int version) {
  peer_init(p, version);
  p->fd = dial();
  if (p->fd >= 0 && peer_shake(p, -1, SIZE_MAX, 0)) return true;
  peer_end(p, false);
  refused++;
  return false;
}

static bool peer_ask(peer *p, const char *path, size_t piece) {
  char text[200];
  int length = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path);
  return SSL_write(p->ssl, text, length) == length && peer_flush(p, piece, SIZE_MAX);
}

// At least so many bytes of answer.
static bool peer_answer(peer *p, size_t want) {
  char data[PIECE];
  for (size_t got = 0; got < want;) {
    int n = SSL_read(p->ssl, data, sizeof data);
    if (n > 0) got += (size_t)n;
    else if (SSL_get_error(p->ssl, n) != SSL_ERROR_WANT_READ || !peer_fill(p)) return false;
  }
  return true;
}

// The whole answer for /small: head, and 64 bytes.
static bool peer_small(peer *p) {
  enum { BODY = 64 };
  char data[4096];
  for (size_t got = 0; got < sizeof data - 1;) {
    int n = SSL_read(p->ssl, data + got, (int)(sizeof data - 1 - got));
    if (n > 0) {
      got += (size_t)n;
      data[got] = 0;
      char *body = strstr(data, "\r\n\r\n");
      if (body && data + got - body >= 4 + BODY) return true;
    } else if (SSL_get_error(p->ssl, n) != SSL_ERROR_WANT_READ || !peer_fill(p)) {
      return false;
    }
  }
  return false;
}

// A ClientHello as it goes on the wire.
static size_t hello(char *into, size_t size) {
  peer p;
  peer_init(&p, 0);
  SSL_do_handshake(p.ssl);
  int n = BIO_read(p.out, into, (int)size);
  peer_end(&p, false);
  return n > 0 ? (size_t)n : 0;
}

// ---- attacks that open many and hold them ----

static void silent(int count) {
  for (int i = 0; i < count && going(); i++) done += dial() >= 0;
  hold();
}

static void half_hello(int count) {
  char data[4096];
  size_t length = hello(data, sizeof data);
  for (int i = 0; i < count && going(); i++) {
    int fd = dial();
    done += fd >= 0 && put(fd, data, length - 1);
  }
  hold();
}

// Asks for the large file; then reads nothing, or 1 KB/s of what is on the wire.
static void readers(int count, bool slow) {
  int *fds = calloc((size_t)count, sizeof *fds), open_now = 0;
  for (int i = 0; i < count && going(); i++) {
    peer p;
    if (!peer_open(&p, 0)) continue;
    done += peer_ask(&p, "/large", 0);
    fds[open_now++] = p.fd;
    set_nonblocking(p.fd);
    p.fd = -1;
    peer_end(&p, false);
  }
  ready();
  while (going()) {
    char data[100];
    for (int i = 0; slow && i < open_now; i++) (void)!recv(fds[i], data, sizeof data, 0);
    pause_us(100000);
  }
  free(fds);
}

static void never_read(int count) { readers(count, false); }
static void slow_read(int count) { readers(count, true); }

// ---- attacks that go on as fast as they can ----

// Every place to stop: after TCP, within and after each flight of the client, TLS 1.3 and 1.2.
// The last `count` of them stay open.
static void stops(int count) {
  peer *held = calloc((size_t)count, sizeof *held);
  ready();
  for (long i = 0; going(); i++) {
    peer *p = &held[i % count];
    if (p->ssl) peer_end(p, i % 3 == 0);
    peer_init(p, i / 6 % 2 ? TLS1_2_VERSION : TLS1_3_VERSION);
    p->fd = dial();
    int step = (int)(i % 6);   // 0: silent; 1, 2: hello; 3, 4: the next flight; 5: complete
    if (p->fd < 0) continue;
    if (step == 5) peer_shake(p, -1, SIZE_MAX, 0);
    else if (step) peer_shake(p, (step + 1) / 2, step % 2 ? 20 : SIZE_MAX, 0);
    done++;
  }
  for (int i = 0; i < count; i++) {
    if (held[i].ssl) peer_end(&held[i], false);
  }
  free(held);
}

static void byte_by_byte(int count) {
  (void)count;
  ready();
  while (going()) {
    peer p;
    peer_init(&p, 0);
    p.fd = dial();
    done += p.fd >= 0 && peer_shake(&p, -1, SIZE_MAX, 1) && peer_ask(&p, "/small", 1) &&
            peer_small(&p);
    peer_end(&p, false);
  }
}

// What may come instead of TLS, or amid it once the handshake is done.
static size_t rubbish(long kind, unsigned char *into) {
  static const char http[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
  RAND_bytes(into, PIECE);
  switch (kind % 6) {
    case 0: return 4096;                                                       // noise
    case 1: memcpy(into, http, sizeof http); return sizeof http - 1;
    case 2: memcpy(into, "\x16\x03\x01\xff\xff", 5); return PIECE;             // oversized
    case 3: memcpy(into, "\x17\x03\x03\x48\x01", 5); return PIECE;             // by one, once on
    case 4:                                                                    // empty ones
      for (int i = 0; i < 200; i++) memcpy(into + 5 * i, "\x16\x03\x01\x00\x00", 5);
      return 1000;
    default: memcpy(into, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 9); return 100;   // truncated
  }
}

static void garbage(int count) {
  (void)count;
  unsigned char data[PIECE];
  ready();
  for (long i = 0; going(); i++) {
    peer p;
    bool in_tls = i / 6 % 4 == 3;
    if (in_tls) {
      if (!peer_open(&p, i / 24 % 2 ? TLS1_2_VERSION : 0)) continue;
    } else {
      peer_init(&p, 0);
      p.fd = dial();
    }
    if (p.fd >= 0) {
      put(p.fd, data, rubbish(i, data));
      shutdown(p.fd, SHUT_WR);
      while (recv(p.fd, data, sizeof data, 0) > 0) continue;   // until it has had enough
      done++;
    }
    peer_end(&p, false);
  }
}

static void reset_handshake(int count) {
  (void)count;
  ready();
  for (long i = 0; going(); i++) {
    peer p;
    peer_init(&p, i & 1 ? TLS1_2_VERSION : TLS1_3_VERSION);
    p.fd = dial();
    if (p.fd >= 0) {
      peer_shake(&p, 1, SIZE_MAX, 0);
      if (i & 2) peer_fill(&p);
      done++;
    }
    peer_end(&p, true);
  }
}

static void reset_transfer(int count) {
  (void)count;
  ready();
  while (going()) {
    peer p;
    if (!peer_open(&p, 0)) continue;
    done += peer_ask(&p, "/large", 0) && peer_answer(&p, 200000);
    peer_end(&p, true);
  }
}

static void renegotiate(int count) {
  (void)count;
  ready();
  while (going()) {
    peer p;
    if (!peer_open(&p, TLS1_2_VERSION)) continue;
    if (SSL_renegotiate(p.ssl) == 1) {
      // Refused is what it should be: an alert, or the end of the connection.
      if (peer_shake(&p, -1, SIZE_MAX, 0)) printf("renegotiated\n");
      done++;
    }
    peer_end(&p, false);
  }
}

// FIN in the middle of everything: within the handshake, after the request, before the answer.
static void half_close(int count) {
  (void)count;
  ready();
  for (long i = 0; going(); i++) {
    peer p;
    char data[PIECE];
    if (i % 3 == 0) {
      peer_init(&p, 0);
      p.fd = dial();
      if (p.fd >= 0) peer_shake(&p, 1, SIZE_MAX, 0);
    } else {
      if (!peer_open(&p, 0)) continue;
      peer_ask(&p, "/small", 0);
    }
    if (p.fd >= 0) {
      shutdown(p.fd, SHUT_WR);
      while (i % 3 != 1 && recv(p.fd, data, sizeof data, 0) > 0) continue;
      done++;
    }
    peer_end(&p, false);
  }
}

static void connect_close(int count) {
  (void)count;
  ready();
  while (going()) {
    int fd = dial();
    if (fd >= 0) {
      hang_up(fd, done++ & 1);
    }
  }
}

// ---- KeyUpdates ----

// `count` peers; each asks for an answer to every one, and takes the answers or does not.
static void key_updates(int count, bool reading) {
  peer *peers = calloc((size_t)count, sizeof *peers);
  int gone = 0, open_now = 0;
  while (open_now < count && going()) open_now += peer_open(&peers[open_now], TLS1_3_VERSION);
  for (int i = 0; i < open_now; i++) set_nonblocking(peers[i].fd);
  ready();
  while (going() && gone < open_now) {
    bool moved = false;
    for (int i = 0; i < open_now; i++) {
      peer *p = &peers[i];
      char *data, answers[65536];
      if (p->fd < 0) continue;
      bool ended = false;
      ssize_t n;
      while (reading && (n = recv(p->fd, answers, sizeof answers, 0)) > 0) moved = true;
      if (reading) ended = n == 0 || errno != EAGAIN;
      for (int k = 0; k < 100 && BIO_ctrl_pending(p->out) < 8192; k++) {
        SSL_key_update(p->ssl, SSL_KEY_UPDATE_REQUESTED);
        SSL_do_handshake(p->ssl);
        done++;
      }
      long length = BIO_get_mem_data(p->out, &data);
      n = send(p->fd, data, (size_t)length, MSG_NOSIGNAL);
      if (n > 0) {
        char sent[16384];
        for (ssize_t left = n; left > 0;) {
          left -= BIO_read(p->out, sent, left < PIECE ? (int)left : PIECE);
        }
        moved = true;
      } else if (errno != EAGAIN) {
        ended = true;
      }
      if (ended) {
        close(p->fd);
        p->fd = -1;
        gone++;
      }
    }
    if (!moved) pause_us(500);
  }
  printf("disconnected %d\n", gone);
  for (int i = 0; i < open_now; i++) peer_end(&peers[i], false);
  free(peers);
}

static void key_updates_read(int count) { key_updates(count, true); }
static void key_updates_never_read(int count) { key_updates(count, false); }

// ---- the good client ----

typedef struct {
  double *seen;
  long count, errors;
  long gap_us;
  bool each_new;
} series;

static void *measure(void *argument) {
  enum { MOST = 2000000 };
  series *s = argument;
  s->seen = malloc(MOST * sizeof *s->seen);
  peer p = {.fd = -1};
  bool open_now = false;
  while (going() && s->count < MOST) {
    double start = now();
    if (!open_now) open_now = peer_open(&p, 0);
    bool first = !s->each_new && s->count + s->errors == 0;
    if (first) start = now();   // a live connection's handshake is not what is asked
    bool good = open_now && peer_ask(&p, "/small", 0) && peer_small(&p);
    s->errors += !good;
    s->seen[s->count++] = now() - start;   // of an error: what was waited
    if (open_now && (s->each_new || !good)) {
      peer_end(&p, false);
      open_now = false;
    }
    pause_us(s->gap_us);
  }
  if (open_now) peer_end(&p, false);
  return NULL;
}

static int by_size(const void *left, const void *right) {
  double a = *(const double *)left, b = *(const double *)right;
  return (a > b) - (a < b);
}

static void tell(const char *name, series *s) {
  qsort(s->seen, (size_t)s->count, sizeof *s->seen, by_size);
  double p50 = s->count ? s->seen[s->count / 2] : 0;
  double p99 = s->count ? s->seen[s->count * 99 / 100] : 0;
  double most = s->count ? s->seen[s->count - 1] : 0;
  printf("\"%s\": {\"n\": %ld, \"errors\": %ld, \"p50\": %.1f, \"p99\": %.1f, \"max\": %.1f}", name,
         s->count, s->errors, p50 * 1e6, p99 * 1e6, most * 1e6);
  free(s->seen);
}

static void client(long live_gap, long new_gap) {
  series live = {.gap_us = live_gap}, fresh = {.gap_us = new_gap, .each_new = true};
  pthread_t one, two;
  pthread_create(&one, NULL, measure, &live);
  pthread_create(&two, NULL, measure, &fresh);
  pthread_join(one, NULL);
  pthread_join(two, NULL);
  printf("{");
  tell("live", &live);
  printf(", ");
  tell("new", &fresh);
  printf("}\n");
}

static const struct {
  const char *name;
  void (*run)(int count);
} attacks[] = {
  {"silent", silent}, {"half-hello", half_hello}, {"stops", stops}, {"byte-by-byte", byte_by_byte},
  {"garbage", garbage}, {"reset-handshake", reset_handshake}, {"reset-transfer", reset_transfer},
  {"never-read", never_read}, {"slow-read", slow_read}, {"key-update-read", key_updates_read},
  {"key-update-never-read", key_updates_never_read}, {"renegotiate", renegotiate},
  {"half-close", half_close}, {"connect-close", connect_close},
};

int main(int argc, char **argv) {
  if (argc < 5) return 64;
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  signal(SIGTERM, on_stop);
  signal(SIGPIPE, SIG_IGN);
  context = SSL_CTX_new(TLS_client_method());
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  port = atoi(argv[2]);
  if (strcmp(argv[1], "client") == 0 && argc > 5) {
    ends = now() + atof(argv[5]);
    client(atol(argv[3]), atol(argv[4]));
    return 0;
  }
  ends = now() + atof(argv[4]);
  for (size_t i = 0; i < sizeof attacks / sizeof *attacks; i++) {
    if (strcmp(argv[1], attacks[i].name)) continue;
    attacks[i].run(atoi(argv[3]));
    printf("done %ld\nrefused %ld\n", done, (long)refused);
    return 0;
  }
  return 64;
}
