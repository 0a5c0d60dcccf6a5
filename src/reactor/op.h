/* Operations: what the reactor asks of the kernel, and who owns them until when.
 *
 * An operation lives in a pool slot. user_data carries slot and generation, so a
 * completion that arrives for a reused slot is recognised and dropped. A slot is
 * free again only when both the operation's last completion and, if a
 * cancellation was asked for, that one's completion were seen: they come in any
 * order.
 */
#ifndef UM_OP_H
#define UM_OP_H

#include <bio_uring/host.h>
#include <linux/time_types.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

enum um_op_code {
  UM_OP_RECV,         /* address, length, flags; or a provided buffer when address is NULL */
  UM_OP_RECV_MULTI,   /* provided buffers; length = total cap, 0 for none */
  UM_OP_SEND,         /* address, length, flags */
  UM_OP_SEND_ZC,      /* the same; completes twice (more, then notification) */
  UM_OP_SENDMSG,      /* address = msghdr, flags */
  UM_OP_RECVMSG,      /* the same */
  UM_OP_ACCEPT,       /* address = sockaddr, address2 = socklen_t*, flags */
  UM_OP_ACCEPT_MULTI, /* flags */
  UM_OP_CONNECT,      /* address = sockaddr, length */
  UM_OP_SHUTDOWN,     /* flags = how */
  UM_OP_CLOSE,
  UM_OP_POLL,         /* flags = events */
  UM_OP_READ,         /* address, length, offset */
  UM_OP_WRITE,
  UM_OP_OPENAT,       /* fd = directory, address = path, flags, length = mode */
  UM_OP_SPLICE,       /* fd = to, offset; fd2 = from, offset2; length, flags */
  UM_OP_TIMEOUT,      /* timeout, absolute CLOCK_MONOTONIC */
  UM_OP_FUTEX_WAIT,   /* address = word, offset = expected */
  UM_OP_FUTEX_WAKE,   /* address = word, offset = how many */
  UM_OP_WAITID,       /* fd = id type, length = id, address = siginfo, flags */
  UM_OP_MSG_RING,     /* fd = target ring, offset = user_data there */
  UM_OP_COUNT
};

/* One completion, in the backend's neutral form. */
typedef struct um_completion {
  int result;
  bool more;          /* the operation goes on */
  bool notification;  /* SEND_ZC: the buffer is free now */
  bool has_buffer;    /* data and buffer are set: recycle it once */
  unsigned buffer;
  uint8_t *data;
} um_completion;

typedef struct um_op um_op;
struct um_op {
  void (*done)(um_op *op, const um_completion *completion);
  void *owner;       /* done()'s business */
  um_reactor *reactor;
  void *address, *address2;
  uint64_t offset, offset2;
  uint32_t length, flags;
  int fd, fd2;
  int buffer_index;  /* SEND_ZC: registered buffer, -1 for none */
  int result;
  struct __kernel_timespec timeout; /* read when the submission is consumed: lives here */
  uint32_t slot, generation;
  uint8_t code;
  bool in_kernel;    /* the last completion has not been seen */
  bool cancelling;   /* the cancellation's completion has not been seen */
  bool cancel_refused; /* it is to be asked for again */
  bool notifies;     /* SEND_ZC: it is over but for the notification: nothing to cancel */
  bool released;     /* its owner is through with it */
  union {
    um_op *next;     /* free list */
    STAILQ_ENTRY(um_op) link; /* a queue of the epoll backend */
  };

  /* The epoll backend's, while it has the operation: */
  uint8_t stage;
  int wait_fd;
  uint32_t wait_events;
  STAILQ_ENTRY(um_op) cancel_link;
};

/* Room for a first operation. 0 or -ENOMEM. */
int um__ops_reserve(um_reactor *reactor);
/* A fresh operation, or NULL without memory. `done` runs for each completion; when
 * it is NULL the operation is awaited by the current task with um__await(). */
um_op *um__op_new(um_reactor *reactor, enum um_op_code code, int fd);
/* Hands it to the kernel. Negative: it was not accepted and is released. */
int um__op_submit(um_op *op);
/* Asks for it to end. Its last completion still comes. */
void um__op_cancel(um_op *op);
/* The same for all that the kernel has; false when it has nothing. */
bool um__ops_cancel(um_reactor *reactor);
/* Those that the backend refused. */
void um__ops_cancel_again(um_reactor *reactor);
/* Its owner needs it no more; the slot is reused once the kernel is through too. */
void um__op_release(um_op *op);
/* Submits, parks the current task until it has ended, releases. After a deadline or
 * a cancellation it is cancelled and drained first; what it did nevertheless
 * is its result. */
int um__await(um_op *op, um_time deadline);
/* For the backends. */
void um__op_complete(um_reactor *reactor, uint64_t user_data, const um_completion *completion);
uint64_t um__op_user_data(const um_op *op);
void um__ops_free(um_reactor *reactor);

/* user_data of a cancellation has this bit; slots start above it. */
#define UM_USER_DATA_CANCEL 1u
/* user_data that belongs to no operation: completions are dropped. */
#define UM_USER_DATA_NONE UINT64_MAX

#endif
