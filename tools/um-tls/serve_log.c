#include "serve_log.h"

#include "say.h"

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
  return reason == -ECANCELED || reason == UM_ECLOSED || (reason == -ETIMEDOUT && served);
}

static const char *words_for(int reason) {
  if (reason == UM_ETLS) return "TLS: nothing in common, an alert of the peer, or no TLS at all";
  return um_strerror(reason);
}

void serve_log_end(serve_log *log, int reason, bool served) {
  if (reason >= 0 || (!log->verbose && is_usual(reason, served)) || !has_room(log)) return;
  if (served) say("a connection failed: %s", words_for(reason));
  else if (reason == -ETIMEDOUT) say("a connection was cut: no handshake or first request in time");
  else if (reason == UM_ETRUNCATED) say("a peer went away before its handshake or first request");
  else say("a connection failed before its first request: %s", words_for(reason));
}
