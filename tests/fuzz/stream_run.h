/* One TLS stream of ours over the scripted kernel, the same each time: OpenSSL's randomness
 * and the clock are this program's own. So what a peer said in a recorded life is understood
 * again when it is replayed, and mutations of it get past the handshake. */
#ifndef STREAM_RUN_H
#define STREAM_RUN_H

#include "backend_scripted.h"

#include <stdbool.h>

typedef struct stream_case {
  bool server;      /* we are */
  int version;      /* TLS1_2_VERSION or TLS1_3_VERSION */
  unsigned manner;  /* how we read and write: any value means something */
} stream_case;

/* Once, before anything else. */
void stream_init(void);
/* `attach` arranges what comes from the peer on `fd`; it is called before the stream starts. */
void stream_run(const stream_case *how, void (*attach)(script *s, int fd, void *arg), void *arg);
/* Around what the peer does in a recording: its randomness is apart from ours. */
void stream_peers_turn(bool begins);

#endif
