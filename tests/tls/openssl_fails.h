/* OpenSSL's answers to the library, failed one at a time: the program is linked so that each call
 * of OpenSSL that can fail goes through openssl_fails.c, and to OpenSSL itself otherwise. */
#ifndef OPENSSL_FAILS_H
#define OPENSSL_FAILS_H

#include <stdbool.h>

/* Makes the n-th such call by this thread from now on fail (from 0), once; with `queued`, it leaves
 * an error in OpenSSL's queue as a failure there does. */
void fail_openssl(unsigned n, bool queued);
/* While on, this thread's calls are the test's own: not counted, and never failed. */
void spare_openssl(bool on);
/* The function that failed, or NULL; calls succeed again. */
const char *openssl_failed(void);

#endif
