#ifndef UM_TLS_TLS_MESSAGES_H
#define UM_TLS_TLS_MESSAGES_H

/* OpenSSL's newest complaint on this thread, in words, and an empty error queue.
 * Valid until the next call on the thread. */
const char *openssl_reason(void);

#endif
