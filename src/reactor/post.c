/* Work from other threads: a stack of nodes and one wake-up for any number of them.
 *
 * The order that makes coalescing safe: a poster pushes, then sets wake_pending; the
 * loop clears wake_pending, then takes the stack. A push the loop has not seen
 * therefore always finds the flag clear and sends a wake-up. */
#include "alloc.h"
#include "reactor.h"
#include "worker.h"

#include <sched.h>
#include <sys/eventfd.h>

#define NODE_ALLOCATED 1u

static void push(um_reactor *r, um_post_node *node) {
  um_post_node *head = atomic_load_explicit(&r->posts.head, memory_order_relaxed);
  do node->next = head;
  while (!atomic_compare_exchange_weak_explicit(&r->posts.head, &head, node, memory_order_release,
                                                memory_order_relaxed));
}

void um__wake_fd(int fd) {
  int saved = errno;
  eventfd_write(fd, 1);
  errno = saved;
}

/* A forked child shares the parent's descriptors: it must not wake the parent. */
static void wake(um_reactor *r, um_reactor *from) {
  if (um__reactor_forked(r)) return;
  if (!atomic_exchange(&r->posts.wake_pending, true)) r->backend->wake(r, from);
}

/* What is pushed may end the reactor's last fiber, and so the reactor, before we are
 * through with it: um_reactor_destroy() waits for `inside` to be zero. */
static void push_and_wake(um_reactor *r, um_post_node *node, um_reactor *from) {
  atomic_fetch_add(&r->posts.inside, 1);
  if (node) push(r, node);
  if (from == r) atomic_store(&r->posts.wake_pending, true); /* seen before it sleeps */
  else wake(r, from);
  atomic_fetch_sub(&r->posts.inside, 1);
}

void um__posts_leave(um_reactor *r) {
  while (atomic_load(&r->posts.inside)) sched_yield();
}

void um_post_node_push(um_reactor *r, um_post_node *node) {
  node->flags = 0;
  push_and_wake(r, node, NULL);
}

int um_post(um_reactor *r, um_post_fn fn, void *arg) {
  if (um__reactor_forked(r)) return UM_EFORKED;
  if (atomic_load(&r->posts.closing)) return UM_ECLOSED;
  um_post_node *node = um__alloc_raw(sizeof *node);
  if (!node) return -ENOMEM;
  *node = (um_post_node){.fn = fn, .arg = arg, .flags = NODE_ALLOCATED};
  push_and_wake(r, node, um__reactor());
  return 0;
}

void um_reactor_stop(um_reactor *r) {
  atomic_store(&r->posts.stop, true);
  push_and_wake(r, NULL, NULL);
}

/* Oldest first. Only what was there at the start: callbacks that post again wait
 * for the next tick. */
static um_post_node *take(um_reactor *r) {
  atomic_store(&r->posts.wake_pending, false);
  um_post_node *node = atomic_exchange_explicit(&r->posts.head, NULL, memory_order_acquire);
  um_post_node *ordered = NULL;
  while (node) {
    um_post_node *next = node->next;
    node->next = ordered;
    ordered = node;
    node = next;
  }
  return ordered;
}

/* One callback's failure is counted and concerns nobody else. */
static void run(um_reactor *r, um_post_fn fn, void *arg) {
  UM_COUNT(r, posts, 1);
  if (fn(arg) < 0) UM_COUNT(r, post_errors, 1);
}

void um__posts_run(um_reactor *r) {
  if (likely(!atomic_load_explicit(&r->posts.wake_pending, memory_order_relaxed))) return;
  for (um_post_node *node = take(r), *next; node; node = next) {
    next = node->next;
    um_post_fn fn = node->fn;
    void *arg = node->arg;
    if (node->flags & NODE_ALLOCATED) um__free(node);
    run(r, fn, arg); /* may push the node again: it is not touched any more */
  }
}

void um__posts_discard(um_reactor *r) {
  for (um_post_node *node = take(r), *next; node; node = next) {
    next = node->next;
    if (node->flags & NODE_ALLOCATED) um__free(node);
    else if (um__work_is_end(node)) node->fn(node->arg); /* it has something to free */
  }
}
