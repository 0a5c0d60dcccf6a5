/* A connection: a queue of received ciphertext, a queue of ciphertext to send, and
 * the errors that ended either. The BIO copies between it and OpenSSL (bio_uring.c);
 * conn_io.c moves the queues' ends to and from the kernel. Without a reactor
 * it is only the two queues (memory mode).
 */
#ifndef UM_CONN_H
#define UM_CONN_H

#include "reactor.h"
#include "slab.h"
#include "waitq.h"

#define UM_RECEIVE_LEAST 4096u /* may be queued whatever the others have; config's minima */
#define UM_SEND_LEAST 16384u

/* A run of received bytes: in a provided buffer, or (buffer < 0) in `own`. */
typedef struct um_segment {
  struct um_segment *next;
  uint8_t *data;
  uint32_t length;
  uint32_t room;  /* free bytes behind them, in `own` */
  int32_t buffer;
  uint8_t own[];
} um_segment;

typedef struct um_conn {
  um_reactor *reactor; /* NULL: queues only, or not yet used by a fiber */
  int fd;

  /* Receiving. received_end: 0 while open, 1 after EOF, else the latched error. */
  um_segment *received_first, *received_last;
  size_t received;
  uint64_t arrived;    /* bytes there ever were */
  int received_end;
  um_op *receive;      /* armed: a receive, or a poll on an O_NONBLOCK descriptor */
  um_task *reader;     /* waits for `received` or `received_end` */
  void (*readable)(struct um_conn *conn); /* called instead when nobody reads: parked */
  void *owner;

  /* Sending. The first slab's [start, sending_end) is with the kernel. */
  um_slab *output_first, *output_last;
  size_t output;
  uint64_t queued;     /* bytes of output there ever were */
  int output_error;    /* latched; output is dropped from then on */
  bool output_over;    /* close_notify was the last: answers to KeyUpdates go nowhere */
  um_op *send;
  uint32_t sending_end;
  um_waitq drained;    /* writers above the limit, flushers */
  um_task *closer;     /* waits for `receive` and `send` to end */
  um_slab_pool *slabs; /* the reactor's, or NULL */
  size_t output_peak;  /* since it was last empty */
  bool bulk;           /* its output outgrew a small slab last time: start large */

  bool is_dirty, is_holding, is_starved, closing;
  bool poll_receive, poll_send; /* O_NONBLOCK: poll before the next try */
  TAILQ_ENTRY(um_conn) dirty_link, holding_link, starved_link;
} um_conn;

/* ---- the queues (conn.c) ---- */

void um__conn_init(um_conn *conn, int fd);
/* Binds it to a reactor, whose timers and queues it uses from now on. */
void um__conn_attach(um_conn *conn, um_reactor *reactor);
/* Unbinds it, with nothing armed or in flight and nothing in provided buffers: moves output
 * out of the pool, which may go away before the connection. */
void um__conn_leave(um_conn *conn);
/* Queues what a receive completed with: result > 0, in a provided buffer. */
void um__conn_received(um_conn *conn, const um_completion *completion);
/* Takes up to `length` received bytes. */
size_t um__conn_take(um_conn *conn, void *buffer, size_t length);
/* Copies up to `length` of them from `offset` on, which stay; how many. */
size_t um__conn_peek(const um_conn *conn, size_t offset, void *buffer, size_t length);
/* Appends a copy. 0 or -ENOMEM. */
int um__conn_feed(um_conn *conn, const void *data, size_t length);
/* Drops what was received, giving provided buffers back. */
void um__conn_discard_received(um_conn *conn);
/* Appends output. -ENOMEM is latched like any other error: half a record is none. */
int um__conn_put(um_conn *conn, const void *data, size_t length);
/* Moves what is unread out of provided buffers. False without memory. */
bool um__conn_copy_out(um_conn *conn);
/* Has the loop send what is queued before it next sleeps. */
void um__conn_dirty(um_conn *conn);
/* The first run of unsent output. */
size_t um__conn_output(const um_conn *conn, const void **data);
/* Removes `length` bytes of it. */
void um__conn_output_sent(um_conn *conn, size_t length);
void um__conn_discard_output(um_conn *conn);
/* Moves what was received into queues that another thread may use. False without memory:
 * nothing has moved. */
bool um__conn_lend(um_conn *conn, um_conn *to);
/* Puts back what is left of it, before what came since, and what was put out there. */
void um__conn_return(um_conn *conn, um_conn *from);

/* ---- the kernel's ends (conn_io.c), on the reactor's thread ---- */

/* Arms a receive unless one is armed, the queue is full or reading has ended. */
int um__conn_arm(um_conn *conn);
/* The same from the loop: who waits is woken when it fails, and meets the failure in a try
 * of its own. */
void um__conn_rearm(um_conn *conn);
/* What it may have queued of either: what the reactor's configuration says, and little
 * while all of the reactor's connections together have as much as they may. */
size_t um__conn_receive_limit(const um_conn *conn);
size_t um__conn_send_limit(const um_conn *conn);
/* Waits in a task until bytes are there or reading has ended. */
int um__conn_wait_readable(um_conn *conn, um_time deadline);
/* Waits until all but the last `limit` bytes of what is queued now have left, whatever
 * is queued meanwhile. 0, the latched error, or why it was not waited for. */
int um__conn_wait_output(um_conn *conn, size_t limit, um_time deadline);
/* Cancels and drains the receive; bytes that still came are queued. In a task, or
 * outside any while the reactor is not running. */
void um__conn_disarm(um_conn *conn);
/* Lets readers and writers go with UM_ECLOSED; nothing new starts. */
void um__conn_close_soon(um_conn *conn);
/* Leaves the reactor with nothing armed or in flight; the queues stay. -ENOMEM: it
 * has not left. */
int um__conn_detach(um_conn *conn);
/* Sends what is queued until the deadline, then cancels and drains everything; the
 * descriptor is free to be closed afterwards. 0, or why output was lost. */
int um__conn_close(um_conn *conn, um_time deadline);

/* For the loop: */
void um__conns_flush(um_reactor *reactor);
void um__conns_release_buffers(um_reactor *reactor);
void um__conns_free(um_reactor *reactor);

#endif
