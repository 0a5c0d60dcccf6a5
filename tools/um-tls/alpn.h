/* ALPN of a server: picks the first protocol of its own list that is offered. */
#ifndef UM_TLS_ALPN_H
#define UM_TLS_ALPN_H

#include <openssl/ssl.h>
#include <stdbool.h>

typedef struct alpn_list {
  unsigned char wire[256]; /* RFC 7301: each name after its length */
  unsigned length;
  bool strict; /* refuse who offers nothing of it (no_application_protocol) */
} alpn_list;

/* "h2,http/1.1". 0, or -1 when a name is empty or it is all too long. */
int alpn_parse(alpn_list *out, const char *text);
/* `list` must outlive the context. */
void alpn_serve(SSL_CTX *ctx, alpn_list *list);

#endif
