/* What this kernel's io_uring really does: probed and tried, never guessed from
 * its version. */
#ifndef UM_URING_PROBE_H
#define UM_URING_PROBE_H

#include <bio_uring/base.h>
#include <liburing.h>
#include <stdbool.h>

typedef struct um_uring_features {
  bool multishot_receive; /* kernel 6.0 */
  bool incremental;       /* IOU_PBUF_RING_INC (6.12), and it keeps the bytes in order */
  bool capped_receive;    /* sqe->optlen ends a multishot (6.17) */
} um_uring_features;

/* Tried once per process on a ring of its own. */
const um_uring_features *um__uring_features(void);
/* Bit per um_op_code that the ring accepts. */
void um__uring_supported(struct io_uring *ring, uint64_t *supported);
/* Why io_uring_setup failed, and what to do: fills error, returns the code. */
int um__uring_refused(um_error *error, int result);

#endif
