/* Computation off the reactor's thread: one small pool of threads for the process.
 *
 * For work that computes for long, not for work that blocks: there are as many threads
 * as processors at most. They start when needed, run at nice +10 with all signals
 * blocked, and end after some idle seconds. After a fork the child begins without any.
 * glibc gives each thread a malloc arena: what run() allocates keeps living there. */
#ifndef UM_WORKER_H
#define UM_WORKER_H

#include "reactor.h"

typedef struct um__work {
  void (*run)(struct um__work *work);  /* on some worker thread */
  void (*done)(struct um__work *work); /* afterwards, in the reactor's loop: it may free `work` */
  um_reactor *reactor;                 /* from here on private */
  STAILQ_ENTRY(um__work) link;
  um_post_node node;
} um__work;

/* From the reactor's thread. The reactor does not end, nor is it destroyed, before done()
 * has run: always, in every order, unless the process ends or forks. 0, or why no thread
 * could be had (-EAGAIN, -ENOMEM): then neither runs. */
int um__work_submit(um_reactor *reactor, um__work *work);
/* Starts a detached thread with all signals blocked; a stack of 0 bytes is the usual one.
 * 0 or a negative errno. */
int um__thread_start(void *(*run)(void *), void *argument, size_t stack_size);
/* Whether this posted node is the end of work. */
bool um__work_is_end(const um_post_node *node);

#endif
