/* The bounded queue: a ring of pointers; items go from hand to hand when the other
 * side is waiting already. */
#include "alloc.h"
#include "waitlist.h"

struct um_queue {
  um_waitlist pushers; /* its lock guards everything here */
  um_waitlist poppers;
  size_t capacity, head, count;
  bool closed;
  void *items[];
};

int um_queue_create(um_queue **out, size_t capacity) {
  *out = NULL;
  if (!capacity || capacity > (size_t)1 << 24) return UM_ECONFIG;
  um_queue *queue = um__alloc(sizeof *queue + capacity * sizeof(void *));
  if (!queue) return -ENOMEM;
  queue->capacity = capacity;
  *out = queue;
  return 0;
}

void um_queue_destroy(um_queue *queue) { um__free(queue); }

static void insert(um_queue *queue, void *item, bool at_head) {
  if (at_head) queue->head = (queue->head + queue->capacity - 1) % queue->capacity;
  queue->items[(queue->head + (at_head ? 0 : queue->count)) % queue->capacity] = item;
  queue->count++;
}

static void *take(um_queue *queue, bool at_head) {
  size_t index = at_head ? queue->head : (queue->head + queue->count - 1) % queue->capacity;
  if (at_head) queue->head = (queue->head + 1) % queue->capacity;
  queue->count--;
  return queue->items[index];
}

static int leave(um_queue *queue, um_list_waiter *wake, int result) {
  um__waitlist_unlock(&queue->pushers);
  um__waitlist_wake(wake);
  return result;
}

/* The lists have one lock, so a waiter on either withdraws under it: the waitlist
 * code locks the list it waits on, hence poppers' own lock is taken too. */
static um_list_waiter *grant_popper(um_queue *queue) {
  um__waitlist_lock(&queue->poppers);
  um_list_waiter *popper = um__waitlist_grant(&queue->poppers);
  um__waitlist_unlock(&queue->poppers);
  return popper;
}

static int push(um_queue *queue, void *item, bool at_head, um_time deadline) {
  um__waitlist_lock(&queue->pushers);
  if (queue->closed) return leave(queue, NULL, UM_ECLOSED);
  um_list_waiter *popper = grant_popper(queue);
  if (popper) {
    popper->item = item;
    return leave(queue, popper, 0);
  }
  if (queue->count < queue->capacity) {
    insert(queue, item, at_head);
    return leave(queue, NULL, 0);
  }
  um_list_waiter self = {.item = item, .at_head = at_head};
  int result = um__waitlist_wait(&queue->pushers, &self, deadline);
  return result < 0 ? result : self.status;
}

static int wait_to_pop(um_queue *queue, void **item, um_time deadline) {
  um_list_waiter self = {0};
  um__waitlist_lock(&queue->poppers);
  int result = um__waitlist_may_wait(deadline);
  if (result < 0) {
    um__waitlist_unlock(&queue->poppers);
    return leave(queue, NULL, result);
  }
  um__waitlist_unlock(&queue->pushers);
  result = um__waitlist_wait(&queue->poppers, &self, deadline);
  if (result == 0 && self.status == 0) *item = self.item;
  return result < 0 ? result : self.status;
}

static int pop(um_queue *queue, void **item, bool at_head, um_time deadline) {
  um__waitlist_lock(&queue->pushers);
  if (!queue->count) {
    if (queue->closed) return leave(queue, NULL, UM_ECLOSED);
    return wait_to_pop(queue, item, deadline);
  }
  *item = take(queue, at_head);
  um_list_waiter *pusher = um__waitlist_grant(&queue->pushers);
  if (pusher) insert(queue, pusher->item, pusher->at_head);
  return leave(queue, pusher, 0);
}

int um_queue_push(um_queue *queue, void *item, um_time deadline) {
  return push(queue, item, false, deadline);
}

int um_queue_unshift(um_queue *queue, void *item, um_time deadline) {
  return push(queue, item, true, deadline);
}

int um_queue_pop(um_queue *queue, void **item, um_time deadline) {
  return pop(queue, item, true, deadline);
}

int um_queue_pop_tail(um_queue *queue, void **item, um_time deadline) {
  return pop(queue, item, false, deadline);
}

/* Waking may free what a waiter stands on: link first, wake when nothing is locked. */
void um_queue_close(um_queue *queue) {
  um_list_waiter *all = NULL;
  um__waitlist_lock(&queue->pushers);
  queue->closed = true;
  for (um_list_waiter *waiter; (waiter = um__waitlist_grant(&queue->pushers)) ||
                               (waiter = grant_popper(queue)); all = waiter) {
    waiter->status = UM_ECLOSED;
    waiter->next = all;
  }
  um__waitlist_unlock(&queue->pushers);
  for (um_list_waiter *next; all; all = next) {
    next = all->next;
    um__waitlist_wake(all);
  }
}

size_t um_queue_count(um_queue *queue) {
  um__waitlist_lock(&queue->pushers);
  size_t count = queue->count;
  um__waitlist_unlock(&queue->pushers);
  return count;
}
