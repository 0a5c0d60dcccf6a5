/* What connect and load share: options of a TLS client and the context they make. */
#ifndef UM_TLS_CLIENT_H
#define UM_TLS_CLIENT_H

#include "address.h"
#include "options.h"

#include <bio_uring/tls.h>

typedef struct client_options {
  const char *peer; /* HOST:PORT as given */
  const char *ca, *servername, *alpn, *cert, *key, *max_tls;
  bool insecure;
} client_options;

/* Table entries for them; `type` has them in its field `client`. */
#define CLIENT_AT(type, field) offsetof(type, client.field)
#define CLIENT_OPTIONS(type)                                                                     \
  {"ca", "FILE", "trust these CA certificates (PEM) instead of the\nsystem's", OPTION_TEXT,      \
   CLIENT_AT(type, ca), 0},                                                                      \
  {"servername", "NAME", "the name to ask for and to verify (default: HOST)", OPTION_TEXT,       \
   CLIENT_AT(type, servername), 0},                                                              \
  {"insecure", NULL, "accept any certificate and any name", OPTION_FLAG,                         \
   CLIENT_AT(type, insecure), 0},                                                                \
  {"cert", "FILE", "our certificate chain (PEM), for mutual TLS", OPTION_TEXT,                   \
   CLIENT_AT(type, cert), 0},                                                                    \
  {"key", "FILE", "its private key (PEM)", OPTION_TEXT, CLIENT_AT(type, key), 0},                \
  {"alpn", "LIST", "protocols to offer, most wanted first: \"h2,http/1.1\"", OPTION_TEXT,        \
   CLIENT_AT(type, alpn), 0},                                                                    \
  {"max-tls", "VERSION", "1.2 or 1.3 (default: 1.3)", OPTION_TEXT, CLIENT_AT(type, max_tls), 0}

/* Splits the peer and makes the context. EXIT_OK, or a code after saying why. */
int client_setup(const client_options *o, host_port *peer, SSL_CTX **ctx);
/* For um_tls_client() and um_tls_connect(); `session` may be NULL. */
um_tls_options client_tls_options(const client_options *o, const host_port *peer,
                                  SSL_SESSION *session);

/* What to do about an error on connecting: to be appended to its message. */
const char *client_hint(int error);

#endif
