/* The BIO: OpenSSL over the reactor.
 *
 * BIO_new_uring(fd, BIO_CLOSE) in place of BIO_new_socket(), or
 * SSL_set_uring_fd() in place of SSL_set_fd(): unmodified blocking-style code
 * (SSL_connect, SSL_read, SSL_write, SSL_shutdown, BIO_read, BIO_f_ssl and
 * BIO_f_buffer chains) then suspends the calling fiber where it would have
 * blocked. Outside a fiber the same BIO is a plain blocking socket BIO.
 *
 * Such fibers run OpenSSL on their own stack: give them >= 64 KiB (the default).
 * Writes are buffered and leave together when a fiber next waits, at
 * BIO_flush(), and before the BIO is freed.
 *
 * Threads and fibers. One reader and one writer may use one SSL at the same
 * time; a second reader or writer gets UM_EREENTRANT from
 * BIO_get_uring_error() (OpenSSL cannot be entered twice). A BIO belongs to the
 * reactor whose fiber first used it, and is freed before that reactor, on its thread. OpenSSL's error queue is kept apart for
 * each suspended fiber.
 */
#ifndef BIO_URING_BIO_H
#define BIO_URING_BIO_H

#include <bio_uring/base.h>
#include <openssl/bio.h>
#include <openssl/ssl.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The method; one for the process. */
UM_API const BIO_METHOD *BIO_s_uring(void);

/* A suspending BIO on a connected stream socket. BIO_CLOSE makes it own the
 * descriptor: freeing the BIO then sends what is buffered (for at most five
 * seconds), cancels and drains what is armed, and closes, so that FIN follows
 * the last byte. With BIO_NOCLOSE the same but for the close. NULL without memory. */
UM_API BIO *BIO_new_uring(int fd, int close_flag);

/* SSL_set_fd() with a suspending BIO (BIO_NOCLOSE, as SSL_set_fd()). 1, or 0
 * without memory. */
UM_API int SSL_set_uring_fd(SSL *ssl, int fd);

/* The absolute deadline of every wait inside this BIO from now on; UM_FOREVER
 * at first. A passed deadline makes the SSL_* call fail like a
 * non-blocking one (SSL_ERROR_WANT_READ or WANT_WRITE) with
 * BIO_get_uring_error() == -ETIMEDOUT: the connection stays usable. A cancelled
 * fiber sees the same with -ECANCELED. 1 on success. */
UM_API int BIO_set_uring_deadline(BIO *bio, um_time deadline);

/* Why the last call on this BIO did not succeed: 0 (it did, or clean EOF),
 * -ETIMEDOUT, -ECANCELED, -ECONNRESET, UM_EREENTRANT, ... BIO_eof() tells EOF. */
UM_API int BIO_get_uring_error(BIO *bio);

/* ---- memory mode ----
 *
 * The same BIO without a reactor: it only copies between OpenSSL and two queues
 * that the caller fills and empties, and answers BIO_should_retry() when it has
 * nothing. For runtimes that must not suspend inside OpenSSL. Any thread, one at
 * a time. */

/* `fd` is only what SSL_get_fd() answers; -1 for none. It is never closed. */
UM_API BIO *BIO_new_uring_memory(int fd);
/* Appends received ciphertext (copied). 0 or -ENOMEM (nothing was taken). */
UM_API int BIO_uring_feed(BIO *bio, const void *data, size_t length);
/* After the bytes fed so far: 0 = end of file, or the negative error that ended it. */
UM_API void BIO_uring_feed_end(BIO *bio, int reason);
/* The first contiguous run of ciphertext to send; its length, 0 for none. The bytes
 * stay where they are until BIO_uring_sent() removes them or the BIO is freed, also
 * while the SSL writes more behind them. */
UM_API size_t BIO_uring_output(BIO *bio, const void **data);
/* Removes so many bytes of it. */
UM_API void BIO_uring_sent(BIO *bio, size_t length);

#ifdef __cplusplus
}
#endif
#endif
