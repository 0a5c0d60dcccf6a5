/* libbio_uring: blocking-looking OpenSSL on io_uring fibers.
 *
 * Umbrella header. Each concept has a header of its own; layers point one way:
 * tls -> bio -> reactor (reactor, fiber, sync, io, post, metrics).
 */
#ifndef BIO_URING_H
#define BIO_URING_H

#include <bio_uring/base.h>
#include <bio_uring/reactor.h>
#include <bio_uring/observe.h>
#include <bio_uring/fiber.h>
#include <bio_uring/host.h>
#include <bio_uring/sync.h>
#include <bio_uring/io.h>
#include <bio_uring/bio.h>
#include <bio_uring/tls.h>

#endif
