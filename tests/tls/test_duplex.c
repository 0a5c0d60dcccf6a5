/* Readers and writers at the same time: KeyUpdates both ways, writers in turn, slow and
 * hostile peers, bounded memory. */
#include "support.h"

#include "tls_internal.h"

SUITE(duplex);

typedef struct pair {
  SSL_CTX *ours, *theirs;
  int fds[2];
  peer peer;
  um_tls *tls;
} pair;

static void open_pair(pair *s, int version, void (*script)(peer *), void *argument) {
  um_tls_options options = {.hostname = "localhost"};
  s->ours = um_client_ctx(version);
  s->theirs = plain_server_ctx("server", version);
  if (!s->fds[0]) tcp_pair(s->fds);
  CHECK_EQ(um_tls_client(&s->tls, s->fds[0], s->ours, &options), 0);
  peer_start(&s->peer, s->fds[1], s->theirs, true, script, argument);
}

static void close_pair(pair *s) {
  peer_join(&s->peer);
  SSL_CTX_free(s->ours);
  SSL_CTX_free(s->theirs);
}

/* ---- both directions of our own streams, with new keys all the time ---- */

#define EACH_WAY (6u << 20)

typedef struct one_way {
  um_tls *tls;
  bool updates;
} one_way;

static int writes_all(void *argument) {
  one_way *w = argument;
  static char bytes[2][30000];
  static int users;
  char *mine = bytes[users++ % 2];
  for (size_t at = 0, i = 0; at < EACH_WAY; i++) {
    size_t part = 1 + i * 7919 % 30000;
    if (part > EACH_WAY - at) part = EACH_WAY - at;
    pattern(mine, part, at);
    CHECK_EQ(um_tls_write(w->tls, mine, part, UM_FOREVER), part);
    at += part;
    if (w->updates && i % 3 == 0) CHECK_EQ(um_tls_key_update(w->tls, i % 2, UM_FOREVER), 0);
  }
  return um_tls_shutdown(w->tls, UM_FOREVER);
}

static int reads_all(void *argument) {
  one_way *w = argument;
  char bytes[10000];
  size_t at = 0;
  for (ssize_t n; (n = um_tls_read(w->tls, bytes, sizeof bytes, UM_FOREVER)) != 0; at += (size_t)n) {
    if (n < 0) fprintf(stderr, "%s at %zu\n", um_tls_error(w->tls), at);
    CHECK(n > 0);
    CHECK(is_pattern(bytes, (size_t)n, at));
  }
  return (int)at;
}

static int both_ways(void *argument) {
  int version = *(int *)argument, fds[2];
  one_way ends[2];
  um_fiber *fibers[4];
  SSL_CTX *server = um_server_ctx("server", version), *client = um_client_ctx(version);
  um_tls_options options = {.hostname = "localhost"};
  tcp_pair(fds);
  CHECK_EQ(um_tls_client(&ends[0].tls, fds[0], client, &options), 0);
  CHECK_EQ(um_tls_server(&ends[1].tls, fds[1], server, NULL), 0);
  ends[0].updates = ends[1].updates = version == TLS1_3_VERSION;
  for (int i = 0; i < 2; i++) {
    fibers[i] = spawn(writes_all, &ends[i]);
    fibers[2 + i] = spawn(reads_all, &ends[i]);
  }
  for (int i = 0; i < 4; i++) CHECK_EQ(join(fibers[i]), i < 2 ? 0 : EACH_WAY);
  for (int i = 0; i < 2; i++) CHECK_EQ(um_tls_close(ends[i].tls, UM_FOREVER), 0);
  SSL_CTX_free(server);
  SSL_CTX_free(client);
  return 0;
}
Test(duplex, both_ways_with_new_keys) {
  int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
  for (int i = 0; i < 2; i++) CHECK_EQ(run_fibers(both_ways, &versions[i]), 0);
}

static void updates_and_echoes(peer *p) {
  char bytes[9000];
  size_t done;
  peer_shake(p);
  for (int i = 0; SSL_read_ex(p->ssl, bytes, sizeof bytes, &done) == 1; i++) {
    if (i % 2) CHECK_EQ(SSL_key_update(p->ssl, i % 3 ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED), 1);
    peer_write(p, bytes, done);
  }
  SSL_shutdown(p->ssl);
}

/* The same against OpenSSL's own idea of it; small pieces, one at a time. */
static int updates_with_openssl(void *argument) {
  pair *s = argument;
  char out[3000], in[3000];
  open_pair(s, TLS1_3_VERSION, updates_and_echoes, NULL);
  for (size_t i = 0; i < 300; i++) {
    size_t length = 1 + i * 31 % sizeof out;
    pattern(out, length, i);
    CHECK_EQ(um_tls_write(s->tls, out, length, UM_FOREVER), length);
    if (i % 4 == 0) CHECK_EQ(um_tls_key_update(s->tls, i % 8 == 0, UM_FOREVER), 0);
    if (i % 16 == 0) CHECK_EQ(um_tls_key_update(s->tls, 0, UM_FOREVER), 0); /* twice */
    CHECK_EQ(um_tls_read_exact(s->tls, in, length, UM_FOREVER), length);
    CHECK(is_pattern(in, length, i));
  }
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_pair(s);
  return 0;
}
Test(duplex, key_updates_with_openssl) {
  pair s = {0};
  run_fibers(updates_with_openssl, &s);
}

/* New keys asked for right before the end: close_notify must come nevertheless. */
static int update_then_end(void *argument) {
  for (int i = 0; i < 3; i++) {
    pair s = {0};
    open_pair(&s, TLS1_3_VERSION, peer_sink_pattern, NULL);
    CHECK_EQ(um_tls_handshake(s.tls, UM_FOREVER), 0);
    CHECK_EQ(um_tls_key_update(s.tls, i == 1, UM_FOREVER), 0);
    if (i == 2) CHECK_EQ(um_tls_shutdown(s.tls, UM_FOREVER), 0);
    CHECK_EQ(um_tls_close(s.tls, UM_FOREVER), 0);
    close_pair(&s);
  }
  (void)argument;
  return 0;
}
Test(duplex, new_keys_then_the_end) { run_fibers(update_then_end, NULL); }

static int no_update_in_1_2(void *argument) {
  pair *s = argument;
  open_pair(s, TLS1_2_VERSION, peer_echo, NULL);
  char byte;
  CHECK_EQ(um_tls_key_update(s->tls, 1, UM_FOREVER), UM_ETLS);
  CHECK_EQ(um_tls_write(s->tls, "x", 1, UM_FOREVER), 1); /* no harm done */
  CHECK_EQ(um_tls_read(s->tls, &byte, 1, UM_FOREVER), 1);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_pair(s);
  return 0;
}
Test(duplex, no_key_update_before_1_3) {
  pair s = {0};
  run_fibers(no_update_in_1_2, &s);
}

/* ---- writers take turns ---- */

#define WRITERS 5
#define PIECES 40
#define PIECE 25000u

static int writer_count;

static int writes_pieces(void *argument) {
  um_tls *tls = argument;
  char me = (char)('a' + writer_count++), *piece = malloc(PIECE);
  memset(piece, me, PIECE);
  for (int i = 0; i < PIECES; i++) {
    struct iovec halves[2] = {{piece, 9000}, {piece + 9000, PIECE - 9000}};
    ssize_t n = i % 2 ? um_tls_write(tls, piece, PIECE, UM_FOREVER)
                      : um_tls_writev(tls, halves, 2, UM_FOREVER);
    CHECK_EQ(n, PIECE);
  }
  free(piece);
  return 0;
}

static void expects_whole_pieces(peer *p) {
  static char piece[PIECE];
  peer_shake(p);
  for (int i = 0; i < WRITERS * PIECES; i++) {
    peer_read(p, piece, PIECE);
    CHECK(!memcmp(piece, piece + 1, PIECE - 1)); /* all the same letter */
    if (i % 7 == 0) usleep(200);
  }
  CHECK_EQ(peer_drain(p), 0);
  SSL_shutdown(p->ssl);
}

static int in_turn(void *argument) {
  pair *s = argument;
  um_fiber *writers[WRITERS];
  open_pair(s, TLS1_3_VERSION, expects_whole_pieces, NULL);
  for (int i = 0; i < WRITERS; i++) writers[i] = spawn(writes_pieces, s->tls);
  for (int i = 0; i < WRITERS; i++) join(writers[i]);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_pair(s);
  return 0;
}
Test(duplex, writers_never_interleave) {
  pair s = {0};
  run_fibers(in_turn, &s);
}

/* ---- a reader does not wait behind a writer ---- */

static void talks_and_never_listens(peer *p) {
  char bytes[1000];
  volatile bool *over = p->argument;
  peer_shake(p);
  for (size_t i = 0; i < 200; i++) {
    pattern(bytes, sizeof bytes, i * sizeof bytes);
    /* In two segments, so that our reader waits inside a record, too. */
    BIO *memory = BIO_new(BIO_s_mem());
    char *record;
    BIO_up_ref(memory);
    BIO *socket = SSL_get_wbio(p->ssl);
    BIO_up_ref(socket);
    SSL_set0_wbio(p->ssl, memory);
    peer_write(p, bytes, sizeof bytes);
    long length = BIO_get_mem_data(memory, &record);
    CHECK_EQ(send(p->fd, record, 3, MSG_NOSIGNAL), 3);
    if (i % 20 == 0) usleep(1000);
    CHECK_EQ(send(p->fd, record + 3, (size_t)length - 3, MSG_NOSIGNAL), length - 3);
    SSL_set0_wbio(p->ssl, socket);
    BIO_free(memory);
  }
  while (!*over) usleep(500);
}

static int fills_up(void *argument) {
  static char bytes[1 << 20];
  for (;;) {
    ssize_t n = um_tls_write(argument, bytes, sizeof bytes, UM_FOREVER);
    if (n < 0) return (int)n;
  }
}

static int reads_beside_writer(void *argument) {
  pair *s = argument;
  char bytes[1000];
  volatile bool over = false;
  open_pair(s, TLS1_3_VERSION, talks_and_never_listens, (void *)&over);
  CHECK_EQ(um_tls_handshake(s->tls, UM_FOREVER), 0);
  um_fiber *writer = spawn(fills_up, s->tls);
  um_fiber_sleep(um_after(20)); /* it is stuck now */
  for (size_t i = 0; i < 200; i++) {
    CHECK_EQ(um_tls_read_exact(s->tls, bytes, sizeof bytes, um_after(10000)), sizeof bytes);
    CHECK(is_pattern(bytes, sizeof bytes, i * sizeof bytes));
  }
  size_t limit = um_reactor_current()->config.send_limit;
  CHECK(s->tls->conn.output <= limit + 70000); /* at the limit one more part is let in */
  over = true;
  um_tls_abort(s->tls);
  CHECK_EQ(join(writer), UM_ECLOSED);
  close_pair(s);
  return 0;
}
Test(duplex, a_reader_never_waits_behind_a_writer) {
  um_reactor_config configs[] = {{0}, {.send_limit = 16384}, {.send_limit = 65536}};
  for (int i = 0; i < 3; i++) {
    pair s = {0};
    run_fibers_with(&configs[i], reads_beside_writer, &s);
  }
}

/* ---- flush beside a writer ---- */

static void reads_steadily(peer *p) {
  static char bytes[16384];
  size_t n;
  peer_shake(p);
  while (SSL_read_ex(p->ssl, bytes, sizeof bytes, &n) == 1) usleep(20);
}

/* "Everything written so far", although more is written all the time. */
static int flush_ends(void *argument) {
  pair *s = argument;
  open_pair(s, TLS1_3_VERSION, reads_steadily, NULL);
  CHECK_EQ(um_tls_handshake(s->tls, UM_FOREVER), 0);
  um_fiber *writer = spawn(fills_up, s->tls);
  um_fiber_sleep(um_after(20));
  for (int i = 0; i < 3; i++) CHECK_EQ(um_tls_flush(s->tls, um_after(10000)), 0);
  um_tls_abort(s->tls);
  CHECK_EQ(join(writer), UM_ECLOSED);
  close_pair(s);
  return 0;
}
Test(duplex, flush_ends_while_others_write) {
  pair s = {0};
  run_fibers(flush_ends, &s);
}

/* ---- late errors ---- */

static void resets_at_once(peer *p) {
  struct linger hard = {1, 0};
  peer_shake(p);
  setsockopt(p->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  SSL_set_quiet_shutdown(p->ssl, 1);
}

static int late_write_error(void *argument) {
  pair *s = argument;
  static char bytes[200000];
  int result = 0;
  open_pair(s, TLS1_3_VERSION, resets_at_once, NULL);
  CHECK_EQ(um_tls_handshake(s->tls, UM_FOREVER), 0);
  CHECK_EQ(um_tls_flush(s->tls, UM_FOREVER), 0);
  peer_join(&s->peer);
  /* Taken, because it is only queued. */
  CHECK_EQ(um_tls_write(s->tls, bytes, 100, UM_FOREVER), 100);
  um_fiber_sleep(um_after(5));
  result = (int)um_tls_write(s->tls, bytes, 100, UM_FOREVER);
  CHECK(result == -ECONNRESET || result == -EPIPE);
  CHECK_EQ(um_tls_write(s->tls, bytes, 100, UM_FOREVER), result);
  CHECK_EQ(um_tls_flush(s->tls, UM_FOREVER), result);
  CHECK_EQ(um_tls_shutdown(s->tls, UM_FOREVER), result);
  CHECK_EQ(s->tls->conn.output, 0);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), result);
  SSL_CTX_free(s->ours);
  SSL_CTX_free(s->theirs);
  return 0;
}
Test(duplex, late_errors_are_kept) {
  pair s = {0};
  run_fibers(late_write_error, &s);
}

/* ---- floods ---- */

typedef struct flood {
  pair bad, good;
  volatile bool over;
  bool reads; /* the flooder reads our answers */
} flood;

static void floods(peer *p) {
  flood *f = p->argument;
  char scrap[16384];
  peer_shake(p);
  while (!f->over) {
    SSL_key_update(p->ssl, SSL_KEY_UPDATE_REQUESTED);
    if (SSL_do_handshake(p->ssl) != 1) break;
    if (f->reads) /* ciphertext it need not understand */
      while (recv(p->fd, scrap, sizeof scrap, MSG_DONTWAIT) > 0) continue;
  }
}

static int reads_flood(void *argument) {
  char byte;
  return (int)um_tls_read(argument, &byte, 1, UM_FOREVER);
}

static int flooded(void *argument) {
  flood *f = argument;
  char bytes[500];
  open_pair(&f->bad, TLS1_3_VERSION, floods, f);
  open_pair(&f->good, TLS1_3_VERSION, peer_echo, NULL);
  um_fiber *victim = spawn(reads_flood, f->bad.tls);
  um_fiber_sleep(um_after(100));
  for (int i = 0; i < 300; i++) {
    CHECK_EQ(um_tls_write(f->good.tls, bytes, sizeof bytes, UM_FOREVER), sizeof bytes);
    CHECK_EQ(um_tls_read_exact(f->good.tls, bytes, sizeof bytes, UM_FOREVER), sizeof bytes);
    CHECK(f->bad.tls->conn.output < 1u << 20);
  }
  CHECK_EQ(um_tls_close(f->good.tls, UM_FOREVER), 0);
  um_fiber_cancel(victim);
  CHECK_EQ(join(victim), -ECANCELED);
  char byte; /* neither may a deadline be forgotten over it */
  CHECK_EQ(um_tls_read(f->bad.tls, &byte, 1, um_after(50)), -ETIMEDOUT);
  CHECK_EQ(um_tls_read_exact(f->bad.tls, &byte, 1, um_after(50)), -ETIMEDOUT);
  CHECK_EQ(um_tls_read(f->bad.tls, &byte, 1, 0), -ETIMEDOUT);
  f->over = true;
  um_tls_abort(f->bad.tls);
  close_pair(&f->bad);
  close_pair(&f->good);
  return 0;
}
Test(duplex, key_update_flood) {
  for (int reads = 0; reads < 2; reads++) {
    flood f = {.reads = reads};
    run_fibers(flooded, &f);
  }
}

/* ---- EOF is told at once, also to one who only waits ---- */

static void ends_after_a_while(peer *p) {
  peer_shake(p);
  usleep(20000);
  *(um_time *)p->argument = um_now(); /* before it is looked at */
  SSL_shutdown(p->ssl);
}

static int prompt_end(void *argument) {
  pair *s = argument;
  um_time ended = 0;
  char byte;
  open_pair(s, TLS1_3_VERSION, ends_after_a_while, &ended);
  CHECK_EQ(um_tls_read(s->tls, &byte, 1, UM_FOREVER), 0);
  CHECK(um_now() - ended < 20 * UM_SECOND); /* not after a timeout of somebody's */
  um_tls_close(s->tls, UM_FOREVER);
  close_pair(s);
  return 0;
}
Test(duplex, the_end_comes_at_once) {
  pair s = {0};
  run_fibers(prompt_end, &s);
}

/* ---- a ticket in several records, half of it there ---- */

typedef struct halves {
  volatile bool first_sent, second_wanted;
} halves;

static void splits_its_ticket(peer *p) {
  halves *h = p->argument;
  char *bytes, answer[5];
  long length;
  SSL_set_max_send_fragment(p->ssl, 512);
  peer_shake(p);
  peer_read(p, answer, 5);
  BIO *memory = BIO_new(BIO_s_mem()), *socket = SSL_get_wbio(p->ssl);
  BIO_up_ref(socket);
  BIO_up_ref(memory);
  SSL_set0_wbio(p->ssl, memory);
  CHECK_EQ(SSL_new_session_ticket(p->ssl), 1);
  CHECK_EQ(SSL_do_handshake(p->ssl), 1);
  length = BIO_get_mem_data(memory, &bytes);
  CHECK(length > 600); /* more than one record: the first is nothing alone */
  CHECK_EQ(send(p->fd, bytes, 540, MSG_NOSIGNAL), 540);
  SSL_set0_wbio(p->ssl, socket);
  h->first_sent = true;
  while (!h->second_wanted) usleep(500);
  CHECK_EQ(send(p->fd, bytes + 540, (size_t)length - 540, MSG_NOSIGNAL), length - 540);
  BIO_free(memory);
  peer_read(p, answer, 5);
  CHECK(!memcmp(answer, "again", 5));
  peer_write(p, "pong", 4);
  CHECK_EQ(peer_drain(p), 0);
  SSL_shutdown(p->ssl);
}

static int reads_pong(void *argument) {
  char bytes[4];
  CHECK_EQ(um_tls_read_exact(argument, bytes, 4, UM_FOREVER), 4);
  return memcmp(bytes, "pong", 4);
}

static bool with_reader;

static int write_beside_half_a_ticket(void *argument) {
  pair *s = argument;
  halves h = {0};
  um_tls_options options = {.hostname = "localhost"};
  s->ours = um_client_ctx(TLS1_3_VERSION);
  s->theirs = plain_server_ctx("server", TLS1_3_VERSION);
  /* A client's certificate makes tickets long. */
  CHECK_EQ(SSL_CTX_use_certificate_chain_file(s->ours, cert("client.pem")), 1);
  CHECK_EQ(SSL_CTX_use_PrivateKey_file(s->ours, cert("client.key"), SSL_FILETYPE_PEM), 1);
  CHECK_EQ(SSL_CTX_load_verify_file(s->theirs, cert("client-ca.pem")), 1);
  SSL_CTX_set_verify(s->theirs, SSL_VERIFY_PEER, NULL);
  SSL_CTX_set_session_id_context(s->theirs, (const unsigned char *)"x", 1);
  tcp_pair(s->fds);
  CHECK_EQ(um_tls_client(&s->tls, s->fds[0], s->ours, &options), 0);
  peer_start(&s->peer, s->fds[1], s->theirs, true, splits_its_ticket, &h);
  CHECK_EQ(um_tls_write(s->tls, "hello", 5, UM_FOREVER), 5);
  um_fiber *reader = with_reader ? spawn(reads_pong, s->tls) : NULL;
  while (!h.first_sent) um_fiber_sleep(um_after(1));
  um_fiber_sleep(um_after(50)); /* the reader has taken it */
  char byte;                    /* or this has */
  if (!with_reader) CHECK_EQ(um_tls_read(s->tls, &byte, 1, um_after(50)), -ETIMEDOUT);
  /* OpenSSL cannot write now; nothing may break over it. */
  CHECK_EQ(um_tls_write(s->tls, "again", 5, um_after(10)), -ETIMEDOUT);
  CHECK_EQ(um_tls_key_update(s->tls, 0, um_after(10)), -ETIMEDOUT);
  CHECK_EQ(um_tls_shutdown(s->tls, um_after(10)), -ETIMEDOUT);
  h.second_wanted = true;
  CHECK_EQ(um_tls_write(s->tls, "again", 5, um_after(10000)), 5);
  CHECK_EQ(reader ? join(reader) : reads_pong(s->tls), 0);
  CHECK_EQ(um_tls_close(s->tls, UM_FOREVER), 0);
  close_pair(s);
  return 0;
}
Test(duplex, writes_while_half_a_ticket_is_there) {
  for (int i = 0; i < 2; i++) {
    pair s = {0};
    with_reader = i;
    run_fibers(write_beside_half_a_ticket, &s);
  }
}
