/* Timers: one binary heap, ordered by `at`; the kernel sees only the earliest.
 *
 * Invariant: at <= deadline for every timer in the heap. Moving a deadline later,
 * or clearing it, only changes `deadline`: the heap learns when `at` comes to
 * the top. Deadlines that are set and cleared for every read so cost O(1), and
 * never a wake-up.
 */
#include "alloc.h"
#include "reactor.h"

#include <string.h>

static void place(um_reactor *r, unsigned index, struct um_timer *timer) {
  r->timers[index] = timer;
  timer->index = index;
}

static void sift_up(um_reactor *r, unsigned index) {
  struct um_timer *timer = r->timers[index];
  for (; index > 1 && r->timers[index / 2]->at > timer->at; index /= 2)
    place(r, index, r->timers[index / 2]);
  place(r, index, timer);
}

static void sift_down(um_reactor *r, unsigned index) {
  struct um_timer *timer = r->timers[index];
  for (unsigned child; (child = 2 * index) <= r->timer_count; index = child) {
    if (child < r->timer_count && r->timers[child + 1]->at < r->timers[child]->at) child++;
    if (r->timers[child]->at >= timer->at) break;
    place(r, index, r->timers[child]);
  }
  place(r, index, timer);
}

int um__timer_reserve(um_reactor *r) {
  if (r->timer_reserved + 2 > r->timer_capacity) {
    unsigned capacity = r->timer_capacity ? r->timer_capacity * 2 : 64;
    struct um_timer **grown = um__alloc_raw(capacity * sizeof *grown);
    if (!grown) return -ENOMEM;
    if (r->timers) memcpy(grown, r->timers, (r->timer_count + 1) * sizeof *grown);
    um__free(r->timers);
    r->timers = grown;
    r->timer_capacity = capacity;
  }
  r->timer_reserved++;
  return 0;
}

void um__timer_unreserve(um_reactor *r) { r->timer_reserved--; }

void um__timer_set(um_reactor *r, struct um_timer *timer, um_time deadline) {
  timer->deadline = deadline;
  if (deadline == UM_FOREVER) return;
  if (!timer->index) {
    timer->at = deadline;
    place(r, ++r->timer_count, timer);
    sift_up(r, timer->index);
  } else if (deadline < timer->at) {
    timer->at = deadline;
    sift_up(r, timer->index);
  }
}

void um__timer_clear(struct um_timer *timer) { timer->deadline = UM_FOREVER; }

void um__timer_remove(um_reactor *r, struct um_timer *timer) {
  unsigned index = timer->index;
  if (!index) return;
  timer->index = 0;
  struct um_timer *last = r->timers[r->timer_count--];
  if (last == timer) return;
  place(r, index, last);
  sift_up(r, index);
  sift_down(r, last->index);
}

/* Brings the heap's top up to date with its deadline. */
static struct um_timer *settled_top(um_reactor *r) {
  while (r->timer_count) {
    struct um_timer *top = r->timers[1];
    if (top->deadline == top->at) return top;
    if (top->deadline == UM_FOREVER) {
      um__timer_remove(r, top);
    } else {
      top->at = top->deadline;
      sift_down(r, 1);
    }
  }
  return NULL;
}

um_time um__timers_next(um_reactor *r) {
  struct um_timer *top = settled_top(r);
  return top ? top->at : UM_FOREVER;
}

/* A top that is not due is left alone: cleared just now, it is likely to be set again. */
void um__timers_expire(um_reactor *r, um_time now) {
  while (r->timer_count && r->timers[1]->at <= now) {
    struct um_timer *top = settled_top(r);
    if (!top || top->at > now) break;
    um__timer_remove(r, top);
    top->deadline = UM_FOREVER;
    UM_COUNT(r, timers, 1);
    top->fire(top);
  }
}
