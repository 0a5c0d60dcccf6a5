/* Prints what this kernel's io_uring can do of what the library has another way for, in one line:
 * tests/lanes/kernel.sh compares it with what its kernels should have. */
#include "reactor/backend.h"
#include "reactor/op.h"
#include "reactor/reactor.h"
#include "reactor/uring_probe.h"

#include <stdio.h>

static um_reactor *reactor;

static bool accepts(unsigned code) { return reactor->supported >> code & 1; }

static void print(const char *name, bool there) {
  if (there) printf(" %s", name);
}

int main(void) {
  um_error error;
  um_reactor_config config = {.backend = "uring"};
  if (um_reactor_create(&reactor, &config, &error) < 0) {
    fprintf(stderr, "%s\n", error.message);
    return 1;
  }
  const um_uring_features *found = um__uring_features();
  printf("features:");
  print("multishot", found->multishot_receive);
  print("send_zc", accepts(UM_OP_SEND_ZC));
  print("msg_ring", accepts(UM_OP_MSG_RING));
  print("incremental", found->incremental);
  print("futex", accepts(UM_OP_FUTEX_WAIT) && accepts(UM_OP_FUTEX_WAKE));
  print("waitid", accepts(UM_OP_WAITID));
  print("capped", found->capped_receive);
  printf("\n");
  um_reactor_destroy(reactor);
  return 0;
}
