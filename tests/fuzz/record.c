/* Makes the first corpus of fuzz_stream: what a real peer said, in both roles and both
 * versions, however its life ended: record DIR. */
#include "harness.h"
#include "memory_peer.h"
#include "stream_run.h"

#include <sys/stat.h>

typedef struct recording {
  memory_peer peer;
  char *heard;
  size_t length;
} recording;

static void turn(script *s, int fd, void *arg) {
  recording *r = arg;
  stream_peers_turn(true);
  memory_peer_turn(&r->peer, s, fd);
  stream_peers_turn(false);
  size_t length;
  const char *fed = script_fed(s, fd, &length);
  r->heard = realloc(r->heard, length + 1);
  CHECK(r->heard != NULL);
  memcpy(r->heard, fed, length);
  r->length = length;
}

static void attach(script *s, int fd, void *arg) {
  script_on_send(s, fd, turn, arg);
  turn(s, fd, arg);
}

static void record(const char *folder, const stream_case *how, enum peer_end end, size_t bytes) {
  recording r = {0};
  char path[512];
  stream_peers_turn(true);
  memory_peer_init(&r.peer, !how->server, how->version, bytes, end, 7);
  stream_peers_turn(false);
  stream_run(how, attach, &r);
  memory_peer_free(&r.peer);
  uint8_t head[2] = {(uint8_t)(how->server | (how->version == TLS1_3_VERSION) << 1),
                     (uint8_t)how->manner};
  snprintf(path, sizeof path, "%s/%s-%x-%u-%d-%zu", folder, how->server ? "client" : "server",
           (unsigned)how->version, how->manner, end, bytes);
  FILE *file = fopen(path, "wb");
  CHECK(file && fwrite(head, 2, 1, file) == 1 && fwrite(r.heard, 1, r.length, file) == r.length);
  CHECK_EQ(fclose(file), 0);
  free(r.heard);
}

int main(int argc, char **argv) {
  static const unsigned manners[] = {0, 2 + 16, 3 + 32, 1 + 64 + 128};
  if (argc != 2) return 64;
  mkdir(argv[1], 0777);
  stream_init();
  for (int i = 0; i < 4; i++)
    for (int end = 0; end < PEER_ENDS; end++)
      for (size_t m = 0; m < 4; m++) {
        stream_case how = {.server = i & 1, .version = i & 2 ? TLS1_3_VERSION : TLS1_2_VERSION,
                           .manner = manners[m]};
        record(argv[1], &how, (enum peer_end)end, m * 700);
      }
  memory_peer_ctx_free();
  return 0;
}
