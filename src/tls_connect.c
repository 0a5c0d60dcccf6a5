/* A TLS client connection by host and port. */
#include "error.h"
#include "tls_internal.h"

#include <string.h>
#include <unistd.h>

static int shake_hands(um_tls **out, int fd, SSL_CTX *ctx, const um_tls_options *options,
                       um_time deadline, const char *port, um_error *error) {
  um_tls *tls;
  int result = um_tls_client(&tls, fd, ctx, options);
  if (result < 0 && options->flags & UM_TLS_KEEP_FD) close(fd);
  if (result < 0)
    return um__fail(error, result, "%s:%s: %s", options->hostname, port, um_strerror(result));
  result = um_tls_handshake(tls, deadline);
  if (result == 0) {
    *out = tls;
    return 0;
  }
  const char *why = *um_tls_error(tls) ? um_tls_error(tls) : um_strerror(result);
  size_t name = strlen(options->hostname); /* which um_tls_error() begins with */
  bool named = !strncmp(why, options->hostname, name) && why[name] == ':';
  um__fail(error, result, "%s:%s: %s%s", options->hostname, port, named ? "" : "handshake: ",
           named ? why + name + 2 : why);
  tls->flags &= ~UM_TLS_KEEP_FD;     /* the caller never had it */
  um_tls_close(tls, um_after(1000)); /* the alert that says why must leave */
  return result;
}

int um_tls_connect(um_tls **out, const char *host, const char *port, SSL_CTX *ctx,
                   const um_tls_options *options, um_time deadline, um_error *error) {
  um_tls_options own = options ? *options : (um_tls_options){0};
  if (!own.hostname) own.hostname = host;
  *out = NULL;
  int fd = um_tcp_connect(host, port, deadline, error);
  if (fd < 0) return fd;
  return shake_hands(out, fd, ctx, &own, deadline, port, error);
}
