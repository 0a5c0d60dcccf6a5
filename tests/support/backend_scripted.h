/* A kernel that does what a test says: the seam's second backend.
 *
 *   script *s;
 *   um_reactor *r = scripted_reactor(&s, NULL, NULL);
 *   script_answer(s, UM_OP_SEND, (answer){.result = 3});              short
 *   script_answer(s, UM_OP_SEND, (answer){.result = -EPIPE, .after = 2}); late failure
 *   script_feed(s, FD, "hello", 5);                                   bytes to receive
 *
 * Each submitted operation takes the first answer planned for its code; a multishot takes
 * the next one for every completion. Without a plan an operation does what a
 * willing kernel would: receives take what was fed and wait when that is nothing, sends
 * take everything, timeouts, polls for input, accepts and futex waits wait until cancelled.
 *
 * It aborts when the reactor breaks the seam's rules: a buffer recycled twice or never, an
 * operation's slot reused while the kernel owns it, a cancellation of what is not there.
 *
 * Whole connections can be driven over it: script_on_send() shows what was sent to a peer
 * in memory, which feeds its reply. With a seed, whatever is not planned is short, late,
 * reordered, out of buffers or ended at random, and the same seed does the same again. */
#ifndef BACKEND_SCRIPTED_H
#define BACKEND_SCRIPTED_H

#include "reactor/backend.h"
#include "reactor/reactor.h"

typedef struct script script;

#define ANSWER_ALL INT32_MIN         /* as much as was asked for, or is there */
#define ANSWER_NEVER (INT32_MIN + 1) /* only when cancelled */

/* What a cancellation does to the operation. */
enum answer_cancel {
  CANCEL_ENDS,    /* the operation's -ECANCELED, then the cancellation's 0 */
  CANCEL_FIRST,   /* the cancellation's completion, then the operation's */
  CANCEL_SPLIT,   /* the operation's -ECANCELED; the cancellation's 0 in the next wait */
  CANCEL_MISSES,  /* -ENOENT: the kernel did not find it, now; the next one ends it */
  CANCEL_LOSES,   /* -EALREADY: the operation completes as planned (never: now, whole) */
  CANCEL_PARTLY,  /* what was planned is the result nevertheless, in the same wait */
};

typedef struct answer {
  int result;              /* ANSWER_*, bytes (shortened to what is there), or -errno */
  unsigned after;          /* so many calls of wait() pass before */
  unsigned cancel_after;   /* so many pass between a cancellation and its completions */
  enum answer_cancel cancel;
  bool ends;               /* a multishot is over with this completion */
  bool stale_before;       /* a completion of the slot's previous generation precedes it */
} answer;

typedef struct script_options {
  bool single_receives;    /* no UM_CAN_RECV_MULTI */
  uint64_t unsupported;    /* bit per um_op_code */
  uint64_t seed;           /* 0: nothing happens at random */
  unsigned fault_percent;  /* with a seed: so many answers are failures instead */
  unsigned refuse_percent; /* and so many operations are not even taken: -EAGAIN, -ENOMEM */
} script_options;

/* A reactor over a fresh script, which lives as long as the reactor. */
um_reactor *scripted_reactor(script **out, const um_reactor_config *config,
                             const script_options *options);

void script_answer(script *s, enum um_op_code code, answer a);
/* The same for the operations of one descriptor; looked at first. */
void script_answer_fd(script *s, enum um_op_code code, int fd, answer a);

/* What receives on `fd` will find: bytes, then an end: 0 for EOF or -errno. */
void script_feed(script *s, int fd, const void *bytes, size_t length);
void script_end(script *s, int fd, int result);
/* What was fed to `fd` so far, and what was sent on it. */
const char *script_fed(script *s, int fd, size_t *length);
const char *script_sent(script *s, int fd, size_t *length);
void script_on_send(script *s, int fd, void (*sent)(script *s, int fd, void *argument),
                    void *argument);
/* Completes an operation of this code that is waiting, in the next wait(). False: none is. */
bool script_complete(script *s, enum um_op_code code, int result);
/* The next so many cancellations are not even taken: -EBUSY. */
void script_refuse_cancels(script *s, unsigned count);
/* A completion for whatever user_data, in the next wait(). */
void script_deliver(script *s, uint64_t user_data, int result);

typedef struct script_counts {
  unsigned submitted[UM_OP_COUNT], cancelled, completed, waits, lent;
} script_counts;
/* What happened at random so far in all scripts of this process: each kind by its name. */
typedef struct script_injected {
  const char *name;
  unsigned long count;
} script_injected;
enum { SCRIPT_SHORT, SCRIPT_LATE, SCRIPT_STALE, SCRIPT_ENOBUFS, SCRIPT_REFUSED,
       SCRIPT_CANCEL_FIRST, SCRIPT_CANCEL_SPLIT, SCRIPT_CANCEL_LOST, SCRIPT_CANCEL_MISSED,
       SCRIPT_CANCEL_REFUSED, SCRIPT_EINTR, SCRIPT_EAGAIN, SCRIPT_ENOMEM, SCRIPT_ECANCELED,
       SCRIPT_ECONNRESET, SCRIPT_ETIMEDOUT, SCRIPT_EPIPE, SCRIPT_EIO, SCRIPT_KINDS };
extern script_injected script_injected_all[SCRIPT_KINDS];
script_counts script_count(const script *s);
unsigned script_owned(const script *s); /* operations that have not completed */

#endif
