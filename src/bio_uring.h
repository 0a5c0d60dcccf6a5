/* The BIO between OpenSSL and a connection's queues, as tls_stream.c sees it. */
#ifndef UM_BIO_URING_H
#define UM_BIO_URING_H

#include "reactor/conn.h"

#include <bio_uring/bio.h>

/* A memory-mode BIO on a connection of the caller's, which must outlive it. */
BIO *um__bio_new(um_conn *conn);
/* How often OpenSSL may still read before the BIO says "nothing there": bounds one
 * SSL_* call, which would otherwise loop over records that carry no data for as
 * long as the peer sends them. A record costs two reads. */
void um__bio_budget(BIO *bio, unsigned reads);
/* Whether it said so because of that, with bytes still queued. */
bool um__bio_budget_spent(BIO *bio);
/* Makes it copy from and to another connection from now on. */
void um__bio_use(BIO *bio, um_conn *conn);

#endif
