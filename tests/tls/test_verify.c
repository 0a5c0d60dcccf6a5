/* Who the peer is: certificates accepted and refused, names, ALPN, resumption, and files
 * that make no context. */
#include "support.h"

SUITE(verify);

typedef struct meeting {
  const char *server;    /* certificate of the plain server */
  const char *name;      /* the client verifies */
  const char *ca;        /* the client trusts; NULL: the usual */
  const char *alpn;
  SSL_SESSION *session;
  unsigned flags;
  int version;
  const char *client;    /* certificate of the client, when the server asks for one */
  bool asks;
  /* what came of it */
  char sni[64], chosen[64], message[200];
  long names;
  int result;
  bool reused;
} meeting;

static int remembers_name(SSL *ssl, int *alert, void *argument) {
  meeting *m = argument;
  const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
  (void)alert;
  snprintf(m->sni, sizeof m->sni, "%s", name ? name : "");
  return SSL_TLSEXT_ERR_OK;
}

static int chooses(SSL *ssl, const unsigned char **out, unsigned char *length,
                   const unsigned char *in, unsigned in_length, void *argument) {
  static const unsigned char known[] = "\x08http/1.1\x02h2";
  (void)ssl, (void)argument;
  return SSL_select_next_proto((unsigned char **)(uintptr_t)out, length, known, sizeof known - 1, in,
                               in_length) == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK
                                                                    : SSL_TLSEXT_ERR_NOACK;
}

static void answers(peer *p) {
  char byte;
  if (SSL_do_handshake(p->ssl) != 1) return;
  if (SSL_read(p->ssl, &byte, 1) != 1) return;
  peer_write(p, "y", 1);
  SSL_shutdown(p->ssl);
  while (SSL_read(p->ssl, &byte, 1) > 0) continue;
}

static SSL_CTX *server_of(meeting *m) {
  SSL_CTX *ctx = plain_server_ctx(m->server, m->version);
  SSL_CTX_set_tlsext_servername_callback(ctx, remembers_name);
  SSL_CTX_set_tlsext_servername_arg(ctx, m);
  SSL_CTX_set_alpn_select_cb(ctx, chooses, NULL);
  SSL_CTX_set_session_id_context(ctx, (const unsigned char *)"m", 1);
  if (m->asks) {
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    CHECK_EQ(SSL_CTX_load_verify_file(ctx, cert("client-ca.pem")), 1);
  }
  return ctx;
}

static SSL_CTX *kept_server; /* for resumption: tickets are its own */

static int meet_in_fiber(void *argument) {
  meeting *m = argument;
  SSL_CTX *ours, *theirs = kept_server ? kept_server : server_of(m);
  int fds[2];
  char byte, file[64];
  unsigned length;
  um_tls *tls;
  peer p;
  CHECK_EQ(um_tls_ctx_client(&ours, cert(m->ca ? m->ca : "ca.pem"), NULL), 0);
  if (m->client) {
    snprintf(file, sizeof file, "%s.pem", m->client);
    CHECK_EQ(SSL_CTX_use_certificate_chain_file(ours, cert(file)), 1);
    snprintf(file, sizeof file, "%s.key", m->client);
    CHECK_EQ(SSL_CTX_use_PrivateKey_file(ours, cert(file), SSL_FILETYPE_PEM), 1);
  }
  tcp_pair(fds);
  um_tls_options options = {m->name, m->alpn, m->session, NULL, 0, m->flags};
  CHECK_EQ(um_tls_client(&tls, fds[0], ours, &options), 0);
  peer_start(&p, fds[1], theirs, true, answers, NULL);
  m->result = um_tls_handshake(tls, UM_FOREVER);
  if (m->result == 0) m->result = (int)um_tls_write(tls, "x", 1, UM_FOREVER);
  if (m->result == 1) m->result = (int)um_tls_read(tls, &byte, 1, UM_FOREVER);
  if (m->result == 1) {
    const char *name = um_tls_alpn(tls, &length);
    if (length) snprintf(m->chosen, sizeof m->chosen, "%.*s", (int)length, name);
    X509 *certificate = um_tls_peer_certificate(tls);
    CHECK(certificate);
    X509_free(certificate);
    m->reused = SSL_session_reused(um_tls_ssl(tls));
    m->session = um_tls_session(tls);
  }
  snprintf(m->message, sizeof m->message, "%s", um_tls_error(tls));
  um_tls_close(tls, UM_FOREVER);
  peer_join(&p);
  SSL_CTX_free(ours);
  if (!kept_server) SSL_CTX_free(theirs);
  CHECK_EQ(ERR_peek_error(), 0);
  return 0;
}

static meeting meet(meeting m) {
  SSL_SESSION *before = m.session;
  run_fibers(meet_in_fiber, &m);
  if (m.session != before || m.result != 1) before = NULL;
  (void)before;
  return m;
}

static void forget(meeting *m) { SSL_SESSION_free(m->session); }

/* ---- servers' certificates ---- */

Test(verify, good_names) {
  static const char *names[] = {"localhost", "a.example.test", "127.0.0.1", "::1"};
  for (unsigned i = 0; i < 4; i++) {
    meeting m = meet((meeting){.server = i % 2 ? "server" : "server-rsa", .name = names[i]});
    CHECK_EQ(m.result, 1);
    CHECK(!strcmp(m.sni, i < 2 ? names[i] : "")); /* addresses are not sent */
    CHECK(!*m.message);
    forget(&m);
  }
}

Test(verify, bad_certificates) {
  static const struct { const char *server, *name, *says; } cases[] = {
      {"wrongname", "localhost", "hostname mismatch"},
      {"server", "other.example", "hostname mismatch"},
      {"server", "a.b.example.test", "hostname mismatch"},
      {"server", "127.0.0.2", "IP address mismatch"},
      {"expired", "localhost", "expired"},
      {"unknown", "localhost", "unable to get local issuer"},
  };
  for (unsigned i = 0; i < 12; i++) {
    meeting m = meet((meeting){.server = cases[i % 6].server, .name = cases[i % 6].name,
                               .version = i < 6 ? TLS1_2_VERSION : TLS1_3_VERSION});
    CHECK_EQ(m.result, UM_EVERIFY);
    CHECK_HAS(m.message, cases[i % 6].says);
    CHECK_HAS(m.message, cases[i % 6].name);
    m = meet((meeting){.server = cases[i % 6].server, .name = cases[i % 6].name, .flags = UM_TLS_INSECURE});
    CHECK_EQ(m.result, 1);
    forget(&m);
  }
}

Test(verify, another_ca) {
  meeting m = meet((meeting){.server = "unknown", .name = "localhost", .ca = "unknown-ca.pem"});
  CHECK_EQ(m.result, 1);
  forget(&m);
  CHECK_EQ(meet((meeting){.server = "server", .name = "localhost", .ca = "unknown-ca.pem"}).result, UM_EVERIFY);
}

/* ---- clients' ---- */

Test(verify, client_certificates) {
  for (int version = TLS1_2_VERSION; version <= TLS1_3_VERSION; version++) {
    meeting m = meet((meeting){.server = "server", .name = "localhost", .version = version,
                               .asks = true, .client = "client"});
    CHECK_EQ(m.result, 1);
    forget(&m);
    m = meet((meeting){.server = "server", .name = "localhost", .version = version, .asks = true});
    CHECK_EQ(m.result, UM_ETLS);
    CHECK_HAS(m.message, version == TLS1_3_VERSION ? "certificate required" : "handshake failure");
    m = meet((meeting){.server = "server", .name = "localhost", .version = version, .asks = true,
                       .client = "client-unknown"});
    CHECK_EQ(m.result, UM_ETLS);
    CHECK_HAS(m.message, "unknown ca");
  }
}

/* And what our server says of them. */
typedef struct asked {
  const char *client;
  int version, result;
  char message[200];
} asked;

static int asks_for_one(void *argument) {
  asked *a = argument;
  char file[64];
  int fds[2];
  peer p;
  um_tls *tls;
  SSL_CTX *ours = um_server_ctx("server", a->version), *theirs = plain_client_ctx(a->version);
  SSL_CTX_set_verify(ours, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
  CHECK_EQ(SSL_CTX_load_verify_file(ours, cert("client-ca.pem")), 1);
  if (a->client) {
    snprintf(file, sizeof file, "%s.pem", a->client);
    CHECK_EQ(SSL_CTX_use_certificate_chain_file(theirs, cert(file)), 1);
    snprintf(file, sizeof file, "%s.key", a->client);
    CHECK_EQ(SSL_CTX_use_PrivateKey_file(theirs, cert(file), SSL_FILETYPE_PEM), 1);
  }
  tcp_pair(fds);
  CHECK_EQ(um_tls_server(&tls, fds[0], ours, NULL), 0);
  peer_start(&p, fds[1], theirs, false, peer_expects_failure, NULL);
  a->result = um_tls_handshake(tls, UM_FOREVER);
  snprintf(a->message, sizeof a->message, "%s", um_tls_error(tls));
  um_tls_close(tls, UM_FOREVER);
  peer_join(&p);
  if (a->result < 0) CHECK(p.error); /* the client was told why */
  SSL_CTX_free(ours);
  SSL_CTX_free(theirs);
  return 0;
}

Test(verify, our_server_asks_for_certificates) {
  for (int version = TLS1_2_VERSION; version <= TLS1_3_VERSION; version++) {
    asked good = {.client = "client", .version = version};
    run_fibers(asks_for_one, &good);
    CHECK_EQ(good.result, 0);
    asked none = {.version = version};
    run_fibers(asks_for_one, &none);
    CHECK_EQ(none.result, UM_ETLS);
    CHECK_HAS(none.message, "peer did not return a certificate");
    asked unknown = {.client = "client-unknown", .version = version};
    run_fibers(asks_for_one, &unknown);
    CHECK_EQ(unknown.result, UM_EVERIFY);
    CHECK_HAS(unknown.message, "unable to get local issuer");
  }
}

/* ---- ALPN and sessions ---- */

Test(verify, alpn) {
  static const struct { const char *offers, *gets; } cases[] = {
      {"h2,http/1.1", "http/1.1"}, {"h2", "h2"}, {"spdy/1", ""}, {NULL, ""}};
  for (unsigned i = 0; i < 4; i++) {
    meeting m = meet((meeting){.server = "server", .name = "localhost", .alpn = cases[i].offers});
    CHECK_EQ(m.result, 1);
    CHECK(!strcmp(m.chosen, cases[i].gets));
    forget(&m);
  }
}

static int bad_options(void *argument) {
  static const char *alpn[] = {"", ",", "h2,", ",h2", "h2,,x"};
  static char longest[400];
  SSL_CTX *ctx = um_client_ctx(0);
  um_tls *tls;
  int fds[2];
  unsigned before = open_fds();
  (void)argument;
  memset(longest, 'x', sizeof longest - 1);
  for (int i = 0; i < 7; i++) {
    local_pair(fds);
    um_tls_options options = {.hostname = "localhost", .alpn = i < 5 ? alpn[i] : i == 5 ? longest : NULL};
    if (i == 6) options.hostname = longest; /* no name is so long */
    int result = um_tls_client(&tls, fds[0], ctx, &options);
    CHECK_EQ(result, -EINVAL);
    CHECK(!tls);
    close(fds[1]);
  }
  CHECK_EQ(open_fds(), before);
  ERR_clear_error();
  SSL_CTX_free(ctx);
  return 0;
}
Test(verify, bad_options) { run_fibers(bad_options, NULL); }

Test(verify, resumption) {
  for (int version = TLS1_2_VERSION; version <= TLS1_3_VERSION; version++) {
    meeting keep = {.server = "server", .version = version};
    kept_server = server_of(&keep);
    SSL_CTX_set_tlsext_servername_callback(kept_server, NULL);
    meeting first = meet((meeting){.server = "server", .name = "localhost", .version = version});
    CHECK_EQ(first.result, 1);
    CHECK(!first.reused && first.session);
    meeting again = meet((meeting){.server = "server", .name = "localhost", .version = version,
                                   .session = first.session});
    CHECK_EQ(again.result, 1);
    CHECK(again.reused);
    forget(&first);
    forget(&again);
    SSL_CTX_free(kept_server);
    kept_server = NULL;
  }
}

/* ---- garbage from a server ---- */

static void sends_garbage(peer *p) {
  static const char *garbage[] = {"HTTP/1.1 400 Bad Request\r\n\r\n", "220 mail ready\r\n",
                                  "\x15\x03\x03\x00\x02\x02\x28"};
  char bytes[600];
  CHECK(recv(p->fd, bytes, sizeof bytes, 0) > 0);
  const char *what = garbage[*(int *)p->argument];
  send(p->fd, what, *(int *)p->argument == 2 ? 7 : strlen(what), MSG_NOSIGNAL);
  while (recv(p->fd, bytes, sizeof bytes, 0) > 0) continue;
}

static int garbage(void *argument) {
  SSL_CTX *ctx = um_client_ctx(0);
  um_tls_options options = {.hostname = "localhost"};
  (void)argument;
  for (int i = 0; i < 3; i++) {
    int fds[2];
    peer p;
    um_tls *tls;
    tcp_pair(fds);
    CHECK_EQ(um_tls_client(&tls, fds[0], ctx, &options), 0);
    peer_start(&p, fds[1], NULL, true, sends_garbage, &i);
    CHECK_EQ(um_tls_handshake(tls, UM_FOREVER), UM_ETLS);
    CHECK_HAS(um_tls_error(tls), i < 2 ? "does not speak TLS" : "handshake failure");
    um_tls_close(tls, UM_FOREVER);
    peer_join(&p);
  }
  SSL_CTX_free(ctx);
  return 0;
}
Test(verify, garbage) { run_fibers(garbage, NULL); }

/* ---- files ---- */

Test(verify, files) {
  SSL_CTX *ctx;
  um_error error;
  char junk[] = "/tmp/um-test-XXXXXX";
  int fd = mkstemp(junk);
  CHECK_EQ(write(fd, "no PEM\n", 7), 7);
  close(fd);
  CHECK_EQ(um_tls_ctx_server(&ctx, "/nonexistent.pem", cert("server.key"), &error), UM_ECERT);
  CHECK_HAS(error.message, "/nonexistent.pem");
  CHECK_HAS(error.message, "No such file");
  CHECK(!ctx && error.code == UM_ECERT);
  CHECK_EQ(um_tls_ctx_server(&ctx, cert("server.pem"), "/nonexistent.key", &error), UM_ECERT);
  CHECK_HAS(error.message, "/nonexistent.key");
  CHECK_HAS(error.message, "No such file");
  CHECK_EQ(um_tls_ctx_server(&ctx, junk, cert("server.key"), &error), UM_ECERT);
  CHECK_HAS(error.message, junk);
  CHECK_HAS(error.message, "PEM");
  CHECK_EQ(um_tls_ctx_server(&ctx, cert("server.pem"), junk, &error), UM_ECERT);
  CHECK_HAS(error.message, junk);
  CHECK_HAS(error.message, "key");
  CHECK_EQ(um_tls_ctx_server(&ctx, cert("server.pem"), cert("mismatch.key"), &error), UM_ECERT);
  CHECK_HAS(error.message, "does not belong");
  CHECK_HAS(error.message, "mismatch.key");
  CHECK_EQ(um_tls_ctx_server(&ctx, cert("server.pem"), cert("server-rsa.key"), &error), UM_ECERT);
  CHECK_HAS(error.message, "does not belong");
  CHECK_EQ(um_tls_ctx_server(&ctx, cert("server.key"), cert("server.pem"), &error), UM_ECERT); /* swapped */
  CHECK_HAS(error.message, "server.key");
  CHECK_EQ(um_tls_ctx_client(&ctx, "/nonexistent.pem", &error), UM_ECERT);
  CHECK_HAS(error.message, "/nonexistent.pem");
  CHECK_EQ(um_tls_ctx_client(&ctx, junk, &error), UM_ECERT);
  CHECK_HAS(error.message, junk);
  CHECK_EQ(um_tls_ctx_server(&ctx, "/", cert("server.key"), NULL), UM_ECERT);
  CHECK_EQ(um_tls_ctx_client(&ctx, NULL, &error), 0); /* the system's */
  CHECK_EQ(error.code, 0);
  SSL_CTX_free(ctx);
  CHECK_EQ(ERR_peek_error(), 0);
  unlink(junk);
}
