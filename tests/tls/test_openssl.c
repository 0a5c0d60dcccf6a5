/* Every call of OpenSSL that can fail, failed one at a time over whole lives of contexts, clients
 * and servers, with and without an error in OpenSSL's queue: nothing crashes, hangs or leaks, no
 * wrong byte is delivered, and whoever asked is told. */
#include "openssl_fails.h"
#include "support.h"

SUITE(openssl);

static SSL_CTX *um_server, *um_client, *plain_server, *plain_client;
static unsigned failing; /* which call */
static bool reported;
static peer other;

static bool sane(ssize_t result) {
  if (result >= 0) return true;
  reported = true;
  switch (result) {
    case -ENOMEM: case -EINVAL: case -EPIPE: case -ECONNRESET:
    case UM_ETLS: case UM_ECERT: case UM_ETRUNCATED: case UM_ECLOSED:
      return true;
    default:
      fprintf(stderr, "call %u of OpenSSL: %s\n", failing, um_strerror((int)result));
      return false;
  }
}

static bool good(ssize_t result) {
  CHECK(sane(result));
  return result >= 0;
}

/* Calls whose failure takes nothing from the connection: no ticket is sent or taken, no session is
 * kept for later, a mode stays as it was. */
static bool may_pass(const char *name) {
  static const char *const names[] = {"SSL_get1_session", "EVP_CipherInit_ex", "SSL_ctrl",
                                      "EVP_MAC_CTX_set_params", "SSL_CTX_ctrl", "RAND_bytes"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (!strcmp(name, names[i])) return true;
  return false;
}

static void contexts(bool make) {
  if (make) {
    um_server = um_server_ctx("server", 0);
    um_client = um_client_ctx(0);
    plain_server = plain_server_ctx("server", 0);
    plain_client = plain_client_ctx(0);
    return;
  }
  SSL_CTX_free(um_server);
  SSL_CTX_free(um_client);
  SSL_CTX_free(plain_server);
  SSL_CTX_free(plain_client);
}

static unsigned sweep_once(void (*life)(void), bool queued) {
  const char *name = "";
  for (failing = 0; name; failing++) {
    unsigned before = open_fds();
    reported = false;
    fail_openssl(failing, queued);
    life();
    name = openssl_failed();
    ERR_clear_error();
    CHECK_EQ(open_fds(), before);
    /* Without an error in the queue it may look like a wait to SSL_get_error(). */
    if (name && queued && !reported && !may_pass(name)) {
      fprintf(stderr, "call %u of OpenSSL, %s(): nobody was told that it failed\n", failing, name);
      CHECK(reported);
    }
    CHECK(name || !reported);
    CHECK(failing < 1000);
  }
  return failing - 1;
}

static void sweep(void (*life)(void)) {
  contexts(true);
  life(); /* what OpenSSL and libc make once is there now */
  CHECK(sweep_once(life, true) > 5);
  CHECK(sweep_once(life, false) > 5);
  contexts(false);
}

static void start_peer(int fd, SSL_CTX *ctx, bool serves, void (*script)(peer *)) {
  spare_openssl(true);
  peer_start(&other, fd, ctx, serves, script, NULL);
  spare_openssl(false);
}

/* ---- contexts ---- */

static void a_context(int result, SSL_CTX **ctx, const um_error *error) {
  if (!good(result)) {
    CHECK(!*ctx);
    CHECK(error->message[0]);
  }
  SSL_CTX_free(*ctx);
}

static void contexts_life(void) {
  SSL_CTX *ctx = NULL;
  um_ticket_keys *keys = NULL;
  um_error error;
  char chain[300], key[300], ca[300];
  snprintf(chain, sizeof chain, "%s", cert("server.pem"));
  snprintf(key, sizeof key, "%s", cert("server.key"));
  snprintf(ca, sizeof ca, "%s", cert("ca.pem"));
  a_context(um_tls_ctx_server(&ctx, chain, key, &error), &ctx, &error);
  a_context(um_tls_ctx_client(&ctx, ca, &error), &ctx, &error);
  a_context(um_tls_ctx_client(&ctx, NULL, &error), &ctx, &error);
  if (!good(um_ticket_keys_create(&keys, 3600))) return;
  good(um_tls_ctx_tickets(um_server, keys));
  good(um_ticket_keys_rotate(keys));
  um_ticket_keys_free(keys);
}
Test(openssl, contexts) { sweep(contexts_life); }

/* ---- a client ---- */

static void forgiving_echo(peer *p) {
  char bytes[16384];
  size_t n;
  if (SSL_do_handshake(p->ssl) != 1) return;
  while (SSL_read_ex(p->ssl, bytes, sizeof bytes, &n) == 1)
    if (SSL_write_ex(p->ssl, bytes, n, &n) != 1) return;
  SSL_shutdown(p->ssl);
}

static SSL_SESSION *session;

static void talk(um_tls *tls) {
  static char out[40000], in[40000];
  pattern(out, sizeof out, 0);
  if (!good(um_tls_handshake(tls, UM_FOREVER))) return;
  if (!good(um_tls_write(tls, out, sizeof out, UM_FOREVER))) return;
  if (!good(um_tls_key_update(tls, 1, UM_FOREVER))) return;
  for (size_t have = 0; have < sizeof in;) {
    ssize_t n = um_tls_read(tls, in + have, sizeof in - have, UM_FOREVER);
    CHECK(n <= 0 || is_pattern(in + have, (size_t)n, have));
    if (!good(n)) return;
    CHECK(n > 0);
    have += (size_t)n;
  }
  SSL_SESSION *fresh = um_tls_session(tls);
  if (fresh) SSL_SESSION_free(session), session = fresh;
  if (good(um_tls_shutdown(tls, UM_FOREVER))) good(um_tls_read(tls, in, 1, UM_FOREVER));
}

static int client(void *argument) {
  um_tls_options options = {.hostname = argument, .alpn = "h2", .session = session};
  um_tls *tls;
  int fds[2];
  local_pair(fds);
  int result = um_tls_client(&tls, fds[0], um_client, &options);
  if (!good(result)) {
    CHECK(!tls);
    close(fds[1]);
    return 0;
  }
  start_peer(fds[1], plain_server, true, forgiving_echo);
  talk(tls);
  if (reported) CHECK(um_tls_error(tls)[0]);
  sane(um_tls_close(tls, um_after(2000)));
  peer_join(&other);
  return 0;
}

static void client_by_name(void) { run_fibers(client, (char[]){"localhost"}); }
static void client_by_address(void) { run_fibers(client, (char[]){"127.0.0.1"}); }
Test(openssl, a_client) {
  sweep(client_by_name);
  SSL_SESSION_free(session);
  session = NULL;
}
Test(openssl, a_client_of_an_address) {
  sweep(client_by_address);
  SSL_SESSION_free(session);
  session = NULL;
}

/* ---- a server ---- */

static void asks(peer *p) {
  char bytes[20];
  if (SSL_do_handshake(p->ssl) != 1 || SSL_write(p->ssl, "a line\n", 7) != 7) return;
  for (int have = 0, n; have < 7; have += n)
    if ((n = SSL_read(p->ssl, bytes, 7)) <= 0) return;
  p->count++;
  SSL_shutdown(p->ssl);
  p->result = SSL_read(p->ssl, bytes, 1);
  p->error = SSL_get_error(p->ssl, p->result);
}

static int echoes(um_tls *tls, void **data, void *argument) {
  char bytes[100];
  (void)data, (void)argument;
  ssize_t n = um_tls_read_until(tls, bytes, sizeof bytes, "\n", 1, UM_FOREVER);
  if (n <= 0) return (int)n;
  n = um_tls_write(tls, bytes, (size_t)n, UM_FOREVER);
  return n < 0 ? (int)n : UM_TLS_PARK;
}

static int server(void *argument) {
  um_tls_server_config config = {.ctx = um_server, .handler = echoes, .max_per_address = 10};
  um_tls_listener *l;
  char port[8];
  int at = listener(port);
  (void)argument;
  if (good(um_tls_serve(&l, at, &config))) {
    start_peer(dial(port), plain_client, false, asks);
    peer_join(&other);
    CHECK_EQ(um_tls_listener_stop(l, um_after(2000)), 0);
    /* Its client is told: by what it lacks, or by how it ended. */
    if (other.count != 1 || other.error != SSL_ERROR_ZERO_RETURN) reported = true;
  }
  close(at);
  return 0;
}

static void server_life(void) { run_fibers(server, NULL); }
Test(openssl, a_server) { sweep(server_life); }

static void server_with_tickets(void) {
  um_ticket_keys *keys = NULL;
  if (!good(um_ticket_keys_create(&keys, 3600))) return;
  if (good(um_tls_ctx_tickets(um_server, keys))) server_life();
  um_ticket_keys_free(keys);
}
Test(openssl, a_server_with_tickets) { sweep(server_with_tickets); }
