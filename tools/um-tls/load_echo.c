/* Echo: every byte that comes back is compared with what was sent. */
#include "load.h"

#include <string.h>

/* What may be on its way: less than the queues between the two sides hold, since
 * both sides writing and neither reading is a deadlock. */
#define WINDOW (64 * 1024)

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

static int send_some(load_connection *c, const char *data, size_t length, um_time deadline) {
  ssize_t n = um_tls_write(c->tls, data, length, deadline);
  if (n < 0) return (int)n;
  LOAD_COUNT(c->worker->counters.sent, (uint64_t)n);
  return (size_t)n == length ? 0 : -ETIMEDOUT;
}

/* How many bytes came back, all right; or an error. */
static ssize_t check_some(load_connection *c, const char *expected, size_t length,
                          um_time deadline) {
  ssize_t n = um_tls_read(c->tls, c->buffer, least(length, LOAD_BUFFER), deadline);
  if (n <= 0) return n ? n : LOAD_FAILED(LOAD_CLOSED);
  LOAD_COUNT(c->worker->counters.received, (uint64_t)n);
  return memcmp(c->buffer, expected, (size_t)n) ? LOAD_FAILED(LOAD_MISMATCH) : n;
}

int load_echo(load_connection *c, um_time deadline) {
  const load *l = c->worker->load;
  const char *message = l->message + (c->index * 61 + c->round++ * 31) % LOAD_SHIFTS;
  size_t total = l->message_length, sent = 0, received = 0;
  while (received < total) {
    size_t room = least(total - sent, WINDOW - (sent - received));
    if (room) {
      int result = send_some(c, message + sent, room, deadline);
      if (result) return result;
      sent += room;
    }
    ssize_t n = check_some(c, message + received, sent - received, deadline);
    if (n < 0) return (int)n;
    received += (size_t)n;
  }
  return 0;
}
