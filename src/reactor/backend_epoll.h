/* Between the epoll backend's queues (backend_epoll.c) and its single operations
 * (backend_epoll_ops.c). */
#ifndef UM_BACKEND_EPOLL_H
#define UM_BACKEND_EPOLL_H

#include "reactor.h"

enum um_outcome {
  UM_ENDED,     /* the completion is its last */
  UM_WAITS,     /* no completion: for op->wait_events at op->wait_fd, or for op->timeout (-1) */
  UM_LATER,     /* a multishot's completion; now it waits */
  UM_AGAIN,     /* a multishot's completion; there may be more */
  UM_ELSEWHERE, /* a worker has it */
};

enum um_stage {
  UM_STAGE_NONE,
  UM_STAGE_FRESH,
  UM_STAGE_WAITING,
  UM_STAGE_TIMED,
  UM_STAGE_WORKING,   /* a worker has it */
  UM_STAGE_ABANDONED, /* and its owner wants it to end */
};

/* Tries an operation without waiting. */
enum um_outcome um__epoll_try(um_reactor *reactor, um_op *op, um_completion *completion);
/* recv(2) into a provided buffer, without waiting: bytes, 0, -ENOBUFS or -errno. */
int um__epoll_receive(um_reactor *reactor, int fd, size_t most, int flags,
                      um_completion *completion);
/* Bit per um_op_code. */
uint64_t um__epoll_supported(void);

#endif
