/* libFuzzer target: um_tls against whatever a peer may send. The first byte is who we are
 * and the TLS version, the second how we read and write, the rest what the peer sends. */
#include "stream_run.h"

#include <openssl/ssl.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct input {
  const uint8_t *data;
  size_t size;
} input;

static void feed(script *s, int fd, void *arg) {
  input *in = arg;
  script_feed(s, fd, in->data, in->size);
  script_end(s, fd, 0);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc, (void)argv;
  stream_init();
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 2) return -1;
  int version = data[0] & 2 ? TLS1_3_VERSION : TLS1_2_VERSION;
  stream_case how = {.server = data[0] & 1, .version = version, .manner = data[1]};
  input in = {data + 2, size - 2};
  stream_run(&how, feed, &in);
  return 0;
}
