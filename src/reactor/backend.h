/* The seam to the kernel: four calls. Everything above is written once.
 *
 * submit   takes an operation; its completions come later through
 *          um__op_complete(), at the earliest from the next wait().
 * cancel   asks an operation to end; answers with a completion of its own whose
 *          user_data has UM_USER_DATA_CANCEL set.
 * wait     hands over what was submitted, sleeps until a completion or `until`
 *          (not at all when that has passed), delivers what is there.
 * recycle  gives a provided buffer back: once per completion that had one.
 */
#ifndef UM_BACKEND_H
#define UM_BACKEND_H

#include "op.h"

/* What a backend can do beyond single operations. */
#define UM_CAN_RECV_MULTI 0x1u   /* UM_OP_RECV_MULTI */
#define UM_CAN_RECV_CAP 0x2u     /* ... that ends by itself after `length` bytes (kernel 6.17) */

typedef struct um_backend {
  const char *name;
  int (*submit)(um_reactor *reactor, um_op *op);
  int (*cancel)(um_reactor *reactor, um_op *op);
  int (*wait)(um_reactor *reactor, um_time until);
  void (*recycle)(um_reactor *reactor, unsigned buffer);

  /* Not on the data path: */
  int (*start)(um_reactor *reactor);    /* first run, on the owning thread */
  int (*pollable)(um_reactor *reactor); /* descriptor readable when wait() has work */
  void (*wake)(um_reactor *reactor, um_reactor *from); /* any thread; `from` is its reactor or NULL */
  unsigned (*unsubmitted)(const um_reactor *reactor);
  void (*close)(um_reactor *reactor);
} um_backend;

/* Their wake() by an eventfd, also in a signal handler. */
void um__wake_fd(int fd);

/* Opens a backend on a reactor whose config is validated: sets backend,
 * backend_state, capabilities, supported. */
int um__uring_open(um_reactor *reactor, um_error *error);
int um__epoll_open(um_reactor *reactor, um_error *error);

/* Tests put a scripted backend's opener here; used for config.backend "scripted". */
extern int (*um__scripted_open)(um_reactor *reactor, um_error *error);

#endif
