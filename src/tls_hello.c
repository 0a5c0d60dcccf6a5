#include "tls_hello.h"

#define RECORD_HEAD 5u
#define HANDSHAKE 22
#define CLIENT_HELLO 1

static size_t message_length(const um_hello *h) {
  return sizeof h->head + ((size_t)h->head[1] << 16 | h->head[2] << 8 | h->head[3]);
}

static bool is_complete(const um_hello *h) {
  return h->message >= sizeof h->head && h->message >= message_length(h);
}

/* A peer may split even the message's own header over records (RFC 8446 section 5.1). */
static void collect_head(um_hello *h, const um_conn *conn, size_t length) {
  if (h->message >= sizeof h->head) return;
  size_t room = sizeof h->head - h->message, part = length < room ? length : room;
  um__conn_peek(conn, h->records + RECORD_HEAD, h->head + h->message, part);
}

/* Bytes that are no TLS record fail at once in OpenSSL, which tells plain HTTP from others.
 * A record of another type it would wait for, as for the SSLv2 hello, which has been
 * forbidden since RFC 8996. */
static int look_at_head(const uint8_t *record, size_t have) {
  if (record[0] & 0x80) return UM_ETLS;
  if (have < RECORD_HEAD) return -EAGAIN;
  if (record[1] != 3) return 1;
  size_t length = (size_t)record[3] << 8 | record[4];
  return record[0] == HANDSHAKE && length ? 0 : UM_ETLS;
}

static int at_end(const um_conn *conn) {
  return conn->received_end == 0 ? -EAGAIN : conn->received_end == 1 ? UM_ETRUNCATED : conn->received_end;
}

int um__hello_look(um_hello *h, const um_conn *conn, size_t limit) {
  while (!is_complete(h)) {
    uint8_t record[RECORD_HEAD];
    size_t have = um__conn_peek(conn, h->records, record, sizeof record);
    int result = have ? look_at_head(record, have) : -EAGAIN;
    if (result == 1 || result == UM_ETLS) return result;
    size_t length = (size_t)record[3] << 8 | record[4];
    if (result < 0 || conn->received < h->records + RECORD_HEAD + length)
      return conn->received >= limit ? UM_ETOOLONG : at_end(conn);
    collect_head(h, conn, length);
    h->records += RECORD_HEAD + (uint32_t)length;
    h->message += (uint32_t)length;
    if (h->head[0] != CLIENT_HELLO) return UM_ETLS;
    if (h->message >= sizeof h->head && message_length(h) > limit) return UM_ETOOLONG;
  }
  return 1;
}
