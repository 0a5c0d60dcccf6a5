#include "serve_log.h"

#include "address.h"
#include "say.h"

#include <string.h>

#define LINES_A_SECOND 5

static bool has_room(serve_log *log) {
  um_time now = um_now();
  if (now - log->window >= UM_SECOND) {
    if (log->suppressed) say("%u more connections failed within a second", log->suppressed);
    log->window = now;
    log->lines = log->suppressed = 0;
  }
  if (log->lines < LINES_A_SECOND) return log->lines++, true;
  return log->suppressed++, false;
}

static bool is_usual(int reason, bool served) {
  bool between = reason == -ETIMEDOUT || reason == UM_ETRUNCATED; /* browsers just leave */
  return reason == -ECANCELED || reason == UM_ECLOSED || (between && served);
}

/* OpenSSL's words where there are any; they begin with "client: ". */
static const char *words_for(um_tls *tls, int reason) {
  const char *words = um_tls_error(tls), *colon = strstr(words, ": ");
  return colon ? colon + 2 : um_strerror(reason);
}

void serve_log_end(serve_log *log, um_tls *tls, int reason, bool served) {
  char peer[160];
  if (reason >= 0 || (!log->verbose && is_usual(reason, served)) || !has_room(log)) return;
  address_of_socket(um_tls_fd(tls), ADDRESS_PEER, peer, sizeof peer);
  if (served) say("%s: connection failed: %s", peer, words_for(tls, reason));
  else if (reason == -ETIMEDOUT) say("%s: cut: no handshake or first request in time", peer);
  else if (reason == UM_ETRUNCATED) say("%s: went away before its handshake or first request", peer);
  else say("%s: failed before its first request: %s", peer, words_for(tls, reason));
}
