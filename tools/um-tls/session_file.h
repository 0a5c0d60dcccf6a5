/* A TLS session in a PEM file: what resuming needs. As secret as a key. */
#ifndef UM_TLS_SESSION_FILE_H
#define UM_TLS_SESSION_FILE_H

#include <openssl/ssl.h>

/* Stores the session, or NULL when there is no such file. EXIT_OK, or EXIT_FILE
 * after saying why. */
int session_load(const char *file, SSL_SESSION **out);
int session_save(const char *file, SSL_SESSION *session);

#endif
