/* Keys of session tickets: what resumes where, for how long, and from which file. Plain
 * OpenSSL on both ends, over memory. */
#include "support.h"

#include <fcntl.h>
#include <openssl/rand.h>

SUITE(tickets);

static um_ticket_keys *keys_new(void) {
  um_ticket_keys *keys;
  CHECK_EQ(um_ticket_keys_create(&keys, 0), 0);
  return keys;
}

static SSL_CTX *server_with(um_ticket_keys *keys) {
  SSL_CTX *ctx = um_server_ctx("server", 0);
  CHECK_EQ(um_tls_ctx_tickets(ctx, keys), 0);
  return ctx;
}

/* Both ends in turn, until the tickets are here. */
static void shake(SSL *server, SSL *client) {
  char byte;
  for (int i = 0; i < 6; i++) {
    SSL_do_handshake(client);
    SSL_do_handshake(server);
  }
  CHECK(SSL_is_init_finished(client) && SSL_is_init_finished(server));
  CHECK_EQ(SSL_read(client, &byte, 1), -1);
}

/* One connection: whether it was resumed. *session is what to resume, and then the new one. */
static bool visit(SSL_CTX *ctx, int version, SSL_SESSION **session) {
  SSL_CTX *theirs = plain_client_ctx(version);
  SSL *server = SSL_new(ctx), *client = SSL_new(theirs);
  BIO *up, *down;
  CHECK(BIO_new_bio_pair(&up, 65536, &down, 65536) == 1);
  SSL_set_bio(client, up, up);
  SSL_set_bio(server, down, down);
  SSL_set_connect_state(client);
  SSL_set_accept_state(server);
  if (*session) CHECK_EQ(SSL_set_session(client, *session), 1);
  shake(server, client);
  bool reused = SSL_session_reused(client);
  CHECK_EQ(SSL_session_reused(server), reused);
  SSL_SESSION_free(*session);
  *session = SSL_get1_session(client);
  SSL_shutdown(client); /* or the session would be thrown away with it */
  SSL_shutdown(server);
  SSL_free(client);
  SSL_free(server);
  SSL_CTX_free(theirs);
  return reused;
}

static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
#define EACH_VERSION(v) for (int i_ = 0, v; i_ < 2 && ((v = versions[i_]), true); i_++)

Test(tickets, any_context_with_the_keys_resumes) {
  um_ticket_keys *keys = keys_new(), *others = keys_new();
  SSL_CTX *one = server_with(keys), *two = server_with(keys), *other = server_with(others);
  um_ticket_keys_free(keys); /* the contexts have their own references */
  EACH_VERSION(version) {
    SSL_SESSION *session = NULL;
    CHECK(!visit(one, version, &session));
    CHECK(visit(one, version, &session));
    CHECK(visit(two, version, &session));
    CHECK(!visit(other, version, &session));
    CHECK(!visit(one, version, &session));
    SSL_SESSION_free(session);
  }
  SSL_CTX_free(one);
  SSL_CTX_free(two);
  SSL_CTX_free(other);
  um_ticket_keys_free(others);
  um_ticket_keys_free(NULL);
}

/* Two rotations later a ticket still opens, three later it does not; one that is used comes
 * back under the newest key. */
Test(tickets, rotation) {
  um_ticket_keys *keys = keys_new();
  SSL_CTX *ctx = server_with(keys);
  EACH_VERSION(version)
  for (int rotations = 1; rotations <= 3; rotations++) {
    SSL_SESSION *session = NULL;
    CHECK(!visit(ctx, version, &session));
    for (int i = 0; i < rotations; i++) CHECK_EQ(um_ticket_keys_rotate(keys), 0);
    CHECK_EQ(visit(ctx, version, &session), rotations < 3);
    CHECK_EQ(um_ticket_keys_rotate(keys), 0);
    CHECK_EQ(um_ticket_keys_rotate(keys), 0);
    CHECK(visit(ctx, version, &session));
    SSL_SESSION_free(session);
  }
  SSL_CTX_free(ctx);
  um_ticket_keys_free(keys);
}

/* By the clock: a second. */
Test(tickets, rotation_by_itself) {
  um_ticket_keys *keys;
  CHECK_EQ(um_ticket_keys_create(&keys, 1), 0);
  SSL_CTX *ctx = server_with(keys);
  SSL_SESSION *session = NULL, *unused = NULL;
  CHECK(!visit(ctx, TLS1_3_VERSION, &session));
  for (int i = 0; i < 3; i++) {
    usleep(1100 * 1000);
    visit(ctx, TLS1_3_VERSION, &unused); /* rotates when it is used */
  }
  CHECK(!visit(ctx, TLS1_3_VERSION, &session));
  CHECK(visit(ctx, TLS1_3_VERSION, &session));
  SSL_SESSION_free(session);
  SSL_SESSION_free(unused);
  SSL_CTX_free(ctx);
  um_ticket_keys_free(keys);
}

/* A context may change its keys. */
Test(tickets, other_keys_for_a_context) {
  um_ticket_keys *keys = keys_new(), *others = keys_new();
  SSL_CTX *ctx = server_with(keys);
  SSL_SESSION *session = NULL;
  CHECK(!visit(ctx, TLS1_3_VERSION, &session));
  CHECK_EQ(um_tls_ctx_tickets(ctx, others), 0);
  CHECK(!visit(ctx, TLS1_3_VERSION, &session));
  CHECK_EQ(um_tls_ctx_tickets(ctx, others), 0);
  CHECK(visit(ctx, TLS1_3_VERSION, &session));
  SSL_SESSION_free(session);
  SSL_CTX_free(ctx);
  um_ticket_keys_free(keys);
  um_ticket_keys_free(others);
}

/* ---- files ---- */

static char path[] = "/tmp/um-tickets-XXXXXX";

static void write_keys(const void *bytes, size_t length) {
  static bool made; /* the random name may itself end in X */
  int fd = made ? open(path, O_WRONLY | O_TRUNC) : mkstemp(path);
  made = true;
  CHECK(fd >= 0);
  CHECK_EQ(write(fd, bytes, length), length);
  close(fd);
}

Test(tickets, a_file_on_two_hosts) {
  unsigned char bytes[160];
  um_error error;
  um_ticket_keys *here = keys_new(), *there = keys_new();
  SSL_CTX *one = server_with(here), *two = server_with(there);
  SSL_SESSION *session = NULL;
  RAND_bytes(bytes, sizeof bytes);
  write_keys(bytes, 80);
  CHECK_EQ(um_ticket_keys_load(here, path, &error), 0);
  CHECK(!visit(one, TLS1_3_VERSION, &session));
  write_keys(bytes, 160); /* the other host has another first */
  memmove(bytes + 80, bytes, 80);
  RAND_bytes(bytes, 80);
  write_keys(bytes, 160);
  CHECK_EQ(um_ticket_keys_load(there, path, &error), 0);
  CHECK(visit(two, TLS1_3_VERSION, &session));
  CHECK(!visit(one, TLS1_3_VERSION, &session)); /* its key is not known here yet */
  CHECK_EQ(um_ticket_keys_load(here, path, &error), 0);
  CHECK(visit(two, TLS1_3_VERSION, &session));
  CHECK(visit(one, TLS1_3_VERSION, &session));
  SSL_SESSION_free(session);
  SSL_CTX_free(one);
  SSL_CTX_free(two);
  um_ticket_keys_free(here);
  um_ticket_keys_free(there);
  unlink(path);
}

/* Said with the file's name; the keys that were there stay. */
Test(tickets, bad_files) {
  static const size_t lengths[] = {0, 1, 79, 81, 9 * 80};
  unsigned char bytes[9 * 80] = {0};
  um_error error;
  um_ticket_keys *keys = keys_new();
  SSL_CTX *ctx = server_with(keys);
  SSL_SESSION *session = NULL;
  CHECK(!visit(ctx, TLS1_3_VERSION, &session));
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    write_keys(bytes, lengths[i]);
    CHECK_EQ(um_ticket_keys_load(keys, path, &error), UM_ECERT);
    CHECK_EQ(error.code, UM_ECERT);
    CHECK_HAS(error.message, path);
    CHECK_HAS(error.message, "openssl rand 80");
  }
  unlink(path);
  CHECK_EQ(um_ticket_keys_load(keys, path, &error), UM_ECERT);
  CHECK_HAS(error.message, "No such file");
  CHECK_EQ(um_ticket_keys_load(keys, "/tmp", NULL), UM_ECERT);
  CHECK(visit(ctx, TLS1_3_VERSION, &session));
  SSL_SESSION_free(session);
  SSL_CTX_free(ctx);
  um_ticket_keys_free(keys);
}

/* ---- threads ---- */

static um_ticket_keys *shared;

static void *visits(void *argument) {
  SSL_CTX *ctx = server_with(shared);
  SSL_SESSION *session = NULL;
  (void)argument;
  for (int i = 0; i < 20; i++) visit(ctx, i % 2 ? TLS1_2_VERSION : TLS1_3_VERSION, &session);
  SSL_SESSION_free(session);
  SSL_CTX_free(ctx);
  return NULL;
}

Test(tickets, threads_use_them_while_they_rotate) {
  pthread_t threads[4];
  shared = keys_new();
  for (int i = 0; i < 4; i++) CHECK_EQ(pthread_create(&threads[i], NULL, visits, NULL), 0);
  for (int i = 0; i < 200; i++) {
    CHECK_EQ(um_ticket_keys_rotate(shared), 0);
    usleep(500);
  }
  for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
  um_ticket_keys_free(shared);
}
