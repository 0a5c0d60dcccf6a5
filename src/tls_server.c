/* Serving: connections that wait for bytes hold no fiber. A pooled fiber starts when
 * bytes come, does what they allow (a piece of the handshake, a handler) and ends. */
#include "log.h"
#include "peers.h"
#include "reactor/alloc.h"
#include "tls_hello.h"
#include "tls_internal.h"

#include <bio_uring/io.h>

#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#define CLOSE_TIME (5 * UM_SECOND)
#define RETRY_TIME (10 * UM_MS)
#define LISTEN_QUEUE 4096u /* what the kernel holds of a listening socket: its somaxconn */

typedef struct served {
  um_tls *tls;
  um_tls_listener *listener;
  void *data;
  um_time handshake_deadline;
  um_peer *peer;         /* its address, where those are counted */
  um_hello hello;
  uint64_t asked;        /* the tick in which a step of its handshake was put off */
  struct um_timer timer; /* while parked: handshake or idle deadline */
  bool busy;             /* a fiber is on it */
  bool expired;
  bool shaking;          /* its handshake is in flight, on a worker at times */
  bool offloaded;
  bool retrying;         /* its timer is for another try, without memory for the first */
  bool sated;            /* the handler has seen all there is and wants more */
  LIST_ENTRY(served) link;
  STAILQ_ENTRY(served) runnable_link;
} served;

LIST_HEAD(served_list, served);
STAILQ_HEAD(served_queue, served);

struct um_tls_listener {
  um_reactor *reactor;
  um_tls_server_config config;
  um_acceptor *acceptor;
  um_fiber *accepting;
  um_task starter;       /* starts the fibers of `runnable`, one each time it is run */
  um_task shaker;        /* starts those of `fresh`, a share of a tick */
  struct served_queue runnable; /* established */
  struct served_queue fresh;    /* not yet shaken */
  um_group fibers;
  um_waitq below_cap, ended;
  struct served_list connections;
  um_peers peers;
  um_tls_listener_stats stats;
  struct um_timer trimmer; /* set when a burst seems to be over */
  uint64_t most_open;      /* since memory was given back last */
  bool stopping;
};

static void start(served *s);

/* ---- parking ---- */

static void served_readable(um_conn *conn) { start(conn->owner); }

static void step_ended(um_tls *tls) { start(tls->conn.owner); }

static um_time park_deadline(const served *s) {
  unsigned idle = s->listener->config.idle_timeout_ms;
  if (!s->tls->shaken) return s->handshake_deadline;
  return idle == UINT_MAX ? UM_FOREVER : s->listener->reactor->looked + idle * UM_MS;
}

static void retry_later(served *s) {
  s->retrying = true;
  um__timer_set(s->listener->reactor, &s->timer, um_now() + RETRY_TIME);
}

static void park(served *s) {
  um_conn *conn = &s->tls->conn;
  s->busy = false;
  s->listener->stats.parked++;
  um__timer_set(s->listener->reactor, &s->timer, park_deadline(s));
  if (s->tls->offload) return; /* what comes meanwhile waits: step_ended() goes on */
  conn->readable = served_readable;
  if (um__conn_arm(conn) < 0) retry_later(s);
}

static void unpark(served *s) {
  s->busy = true;
  s->listener->stats.parked--;
  s->retrying = false;
  s->tls->conn.readable = NULL;
  um__timer_clear(&s->timer);
}

static void served_timeout(struct um_timer *timer) {
  served *s = (served *)((char *)timer - offsetof(served, timer));
  s->expired = !s->retrying;
  start(s);
}

/* ---- a connection's fiber ---- */

/* After a burst malloc keeps what its connections had: it is given back once there have been
 * far fewer of them for a while. Under a steady load there never are. */
#define BURST 100
#define BURST_OVER UM_SECOND

static bool burst_is_over(const um_tls_listener *l) {
  return l->most_open >= l->stats.open + BURST && l->most_open >= 2 * l->stats.open;
}

static void trim(struct um_timer *timer) {
  um_tls_listener *l = (um_tls_listener *)((char *)timer - offsetof(um_tls_listener, trimmer));
  if (!burst_is_over(l)) return;
  l->most_open = l->stats.open;
  l->stats.trims++;
  um__reactor_trim(l->reactor);
}

static void note_open(um_tls_listener *l) {
  if (l->stats.open > l->most_open) l->most_open = l->stats.open;
  if (l->trimmer.deadline == UM_FOREVER && burst_is_over(l))
    um__timer_set(l->reactor, &l->trimmer, um_now() + BURST_OVER);
}

static void shaken(served *s) {
  if (s->shaking) s->listener->stats.shaking--;
  s->shaking = false;
}

static void served_free(served *s) {
  um_tls_listener *l = s->listener;
  shaken(s);
  LIST_REMOVE(s, link);
  um__peers_leave(&l->peers, s->peer);
  um__timer_remove(l->reactor, &s->timer);
  um__timer_unreserve(l->reactor);
  um__free(s);
  l->stats.open--;
  note_open(l);
  um__waitq_wake_one(&l->below_cap);
  if (!l->stats.open) um__waitq_wake_all(&l->ended);
}

static void end(served *s, int reason) {
  um_tls *tls = s->tls;
  um_tls_listener *l = s->listener;
  if (!tls->shaken) l->stats.failed++;
  if (tls->shaken && reason == -ETIMEDOUT) l->stats.too_slow++;
  if (reason == UM_ETOOLONG) l->stats.too_much++;
  if (l->config.closed) l->config.closed(tls, s->data, l->config.arg, reason);
  /* A failed handshake still has its alert to deliver. */
  bool graceful = reason == 0 || reason == UM_ETLS || reason == UM_EVERIFY ||
                  reason == UM_EPLAINTEXT || reason == UM_ETRUNCATED;
  if (graceful) um_tls_close(tls, um_now() + CLOSE_TIME);
  else um_tls_abort(tls);
  served_free(s);
}

/* No SSL before the complete ClientHello is there: `sated` until more of it comes. */
static int look_at_hello(served *s) {
  um_tls *tls = s->tls;
  if (tls->ssl || tls->offload) return 1;
  size_t limit = s->listener->config.hello_limit, queue = tls->reactor->config.receive_limit;
  int result = um__hello_look(&s->hello, &tls->conn, limit < queue ? limit : queue);
  s->sated = result == -EAGAIN;
  if (result < 0 && !s->sated) um__tls_fail(tls, result, um_strerror(result));
  return s->sated ? UM_WANT_INPUT : result;
}

/* With its first step a handshake is in flight. */
static int handshake_step(served *s) {
  um_tls *tls = s->tls;
  um_tls_listener *l = s->listener;
  if (!s->shaking) {
    s->shaking = true;
    l->stats.shaking++;
    bool offload = um__offload_wanted(l->config.offload, tls->ctx, l->stats.shaking);
    if (offload) tls->flags |= UM_TLS_OFFLOAD;
  }
  int result = um__tls_handshake_step(tls);
  if (result == UM_OFFLOADED && !s->offloaded) {
    s->offloaded = true;
    l->stats.offloaded++;
  }
  return result;
}

static int finish_handshake(served *s) {
  um_tls *tls = s->tls;
  if (tls->shaken) return 1;
  if (tls->conn.received_end < 0) /* nobody to compute for */
    return um__tls_fail(tls, tls->conn.received_end, um_strerror(tls->conn.received_end));
  int result = look_at_hello(s);
  if (result > 0) result = handshake_step(s);
  if (result > 0) {
    s->listener->stats.handshakes++;
    shaken(s);
  }
  size_t used = tls->conn.arrived - tls->conn.received;
  if (result != UM_WANT_INPUT || used <= s->listener->config.handshake_limit) return result;
  return um__tls_fail(tls, UM_ETOOLONG, "more handshake than it may send");
}

static size_t unseen(const served *s) {
  const um_conn *conn = &s->tls->conn;
  return um_tls_pending(s->tls) + conn->received + (conn->received_end != 0);
}

/* A handler that parks and leaves what it was called for, half a message, is called
 * again when there is more of it. */
static int call_handler(served *s) {
  um_tls_listener *l = s->listener;
  size_t before = unseen(s);
  int result = l->config.handler(s->tls, &s->data, l->config.arg);
  int kept = um__tls_keep_unread(s->tls);
  if (kept < 0 && result == UM_TLS_PARK) return kept;
  if (result == UM_TLS_PARK && l->stopping) return UM_TLS_CLOSE;
  s->sated = result == UM_TLS_PARK && um_tls_pending(s->tls) && unseen(s) == before;
  return s->sated ? UM_WANT_INPUT : result;
}

/* What a handler reads first has been read before it is called, or it would not be known that it
 * has something to read: small messages whole. It is on the fiber's stack, of whose one page it
 * must leave the handler enough. */
#define FIRST 1024

/* As far as the bytes that are there allow: UM_WANT_INPUT to park, 0 or an error to
 * end the connection, UM_TLS_PARK to look again. */
static int advance(served *s) {
  char first[FIRST];
  bool fresh = !s->tls->shaken;
  int result = finish_handshake(s);
  if (result <= 0) return result;
  bool greet = fresh && (s->listener->config.flags & UM_TLS_GREET);
  if (!greet && (result = um__tls_fill_step(s->tls, first, sizeof first)) <= 0) return result;
  return call_handler(s);
}

/* Before anything is computed: a handshake may have waited for its turn until its time was over,
 * and none begins that would not be finished. */
static bool is_over(served *s) {
  bool stopping = s->listener->stopping;
  if (s->expired || s->tls->shaken) return s->expired || stopping;
  s->expired = um_now() >= s->handshake_deadline;
  return s->expired || (stopping && !s->shaking);
}

static int end_of_parked(const served *s) {
  if (s->expired) s->listener->stats.timed_out++;
  if (s->tls->shaken) return 0;
  return s->expired ? -ETIMEDOUT : UM_ECLOSED;
}

/* Nothing that is still to be sent would be taken. */
static int give_up(const served *s) {
  s->listener->stats.timed_out++;
  return -ETIMEDOUT;
}

/* After UM_WANT_INPUT: true when there is more to look at already. A peer that keeps us
 * busy and takes no answer expires like one that is idle. */
static bool more_input(served *s) {
  um_tls *tls = s->tls;
  if (s->sated) return false;
  if (!um__bio_budget_spent(tls->bio) && !um__tls_output_too_long(tls))
    return tls->conn.received || tls->conn.received_end;
  int result = um__tls_wait_input(tls, park_deadline(s));
  s->expired = result == -ETIMEDOUT;
  return result == 0 || tls->failed; /* which the next look finds */
}

static int serve(void *argument) {
  served *s = argument;
  um_tls_listener *l = s->listener;
  int result = UM_TLS_PARK;
  if (is_over(s)) {
    end(s, end_of_parked(s));
    return 0;
  }
  while (result == UM_TLS_PARK) {
    s->sated = false;
    result = advance(s);
    if (unlikely(um__reactor_forked(l->reactor))) return UM_EFORKED; /* the handler did it */
    if (result == UM_WANT_INPUT && more_input(s)) result = UM_TLS_PARK;
  }
  if (result != UM_WANT_INPUT && result != UM_OFFLOADED) end(s, result);
  else if (s->expired) end(s, give_up(s));
  else if (l->stopping) end(s, s->tls->shaken ? 0 : UM_ECLOSED);
  else park(s);
  return 0;
}

/* A fiber is made when it is its turn to run and not before: when hundreds of
 * connections have become readable at once, most handlers end before the next one
 * starts, and all run on one stack that is hot in cache. What is about to end is not
 * long work: it computes nothing. */
static void start(served *s) {
  um_tls_listener *l = s->listener;
  if (s->busy) return;
  unpark(s);
  if (s->tls->shaken || s->expired) {
    STAILQ_INSERT_TAIL(&l->runnable, s, runnable_link);
    s->tls->conn.reader = &l->starter; /* its bytes are about to be read: they may stay */
    um_task_wake(&l->starter);
  } else {
    STAILQ_INSERT_TAIL(&l->fresh, s, runnable_link);
    s->asked = l->reactor->metrics.ticks;
    um__conn_arm(&s->tls->conn); /* for is_due() */
    um__task_wake_for_share(&l->shaker);
  }
}

/* Without memory for a fiber the connection tries again a little later. */
static void start_first(um_tls_listener *l, struct served_queue *queue) {
  served *s = STAILQ_FIRST(queue);
  STAILQ_REMOVE_HEAD(queue, runnable_link);
  s->tls->conn.reader = NULL;
  if (um__group_run(&l->fibers, serve, s) == 0) return;
  s->busy = false;
  l->stats.parked++;
  retry_later(s);
}

static void start_one(um_host *host, um_task *task) {
  um_tls_listener *l = (um_tls_listener *)((char *)task - offsetof(um_tls_listener, starter));
  (void)host;
  task->state = UM_TASK_PARKED;
  start_first(l, &l->runnable);
  if (!STAILQ_EMPTY(&l->runnable)) um_task_wake(task);
}

/* After the ring was looked at again: who asked may be gone, and a reset is seen before anything
 * is computed. */
static bool is_due(const um_tls_listener *l) {
  const served *s = STAILQ_FIRST(&l->fresh);
  return s && l->reactor->metrics.ticks > s->asked + 1;
}

#define LEAST_SHARE (UM_MS / 5)
#define MOST_SHARE UM_MS /* also after something had stopped the loop for long */

static um_time share_of(um_time waited) {
  um_time share = waited / 4;
  return share < LEAST_SHARE ? LEAST_SHARE : share > MOST_SHARE ? MOST_SHARE : share;
}

/* One at least, and a fifth of the time, whatever else there is. */
static void start_share(um_host *host, um_task *task) {
  um_tls_listener *l = (um_tls_listener *)((char *)task - offsetof(um_tls_listener, shaker));
  um_time now = um_now(), end = now + share_of(now - l->reactor->long_since);
  (void)host;
  task->state = UM_TASK_PARKED;
  while (is_due(l)) {
    start_first(l, &l->fresh);
    if (um__reactor_forked(l->reactor) || um_now() >= end) break;
  }
  if (!STAILQ_EMPTY(&l->fresh)) um__task_wake_for_share(task);
}

/* Only resumed by the loop; they never wait. */
static um_host starter_host = {NULL, start_one}, shaker_host = {NULL, start_share};

/* ---- accepting ---- */

static served *served_new(um_tls_listener *l, int fd) {
  served *s = um__alloc(sizeof *s);
  if (!s) return NULL;
  if (um__timer_reserve(l->reactor) < 0) {
    um__free(s);
    return NULL;
  }
  if (um__tls_new(&s->tls, l->reactor, fd, l->config.ctx, NULL, true) < 0) {
    um__timer_unreserve(l->reactor);
    um__free(s);
    return NULL;
  }
  s->tls->flags = l->config.flags & UM_TLS_THREADSAFE_CALLBACKS;
  s->tls->step_ended = step_ended;
  s->tls->flood_limit = l->config.max_floods;
  s->listener = l;
  s->timer = (struct um_timer){.deadline = UM_FOREVER, .fire = served_timeout};
  s->handshake_deadline = um_now() + l->config.handshake_timeout_ms * UM_MS;
  s->tls->conn.owner = s;
  LIST_INSERT_HEAD(&l->connections, s, link);
  return s;
}

/* 0, or why this one is not to be served. */
static int admit(um_tls_listener *l, int fd, um_peer **peer) {
  *peer = NULL;
  if (!l->config.max_per_address) return 0;
  int result = um__peers_enter(&l->peers, fd, l->config.max_per_address, peer);
  if (result == -EUSERS) l->stats.refused++;
  return result;
}

static void accepted(um_tls_listener *l, int fd) {
  um_peer *peer;
  if (admit(l, fd, &peer) < 0) {
    close(fd);
    return;
  }
  served *s = served_new(l, fd);
  if (!s) {
    um__peers_leave(&l->peers, peer);
    close(fd);
    return;
  }
  s->peer = peer;
  l->stats.accepted++;
  l->stats.open++;
  note_open(l);
  park(s);
}

/* The listening socket itself is broken. */
static int given_up(int error) {
  um__log(UM_LOG_ERROR, "a listener accepts no more: %s", um_strerror(error));
  return error;
}

/* Near the cap what the kernel has queued would not fit. */
static bool is_near_cap(const um_tls_listener *l) {
  return l->config.max_connections - l->stats.open <= LISTEN_QUEUE;
}

static int accept_loop(void *argument) {
  um_tls_listener *l = argument;
  while (!l->stopping) {
    if (l->stats.open >= l->config.max_connections) {
      l->stats.pauses++;
      um_acceptor_pause(l->acceptor);
      um__waitq_wait(&l->below_cap, UM_FOREVER);
      continue;
    }
    um__acceptor_singly(l->acceptor, is_near_cap(l));
    int result = um_acceptor_next(l->acceptor, UM_FOREVER);
    if (result >= 0) accepted(l, result);
    else if (result != -ECANCELED) return given_up(result);
  }
  return 0;
}

/* ---- life ---- */

static void listener_free(um_tls_listener *l) {
  um_task_unregister(&l->starter);
  um_task_unregister(&l->shaker);
  um__timer_remove(l->reactor, &l->trimmer);
  um__timer_unreserve(l->reactor);
  um_acceptor_destroy(l->acceptor);
  SSL_CTX_free(l->config.ctx);
  um__free(l);
}

/* Room for its timer, and its two tasks. */
static int enlist(um_tls_listener *l) {
  if (um__timer_reserve(l->reactor) < 0) return -ENOMEM;
  if (um_task_register(&l->starter, l->reactor, &starter_host) == 0) {
    if (um_task_register(&l->shaker, l->reactor, &shaker_host) == 0) return 0;
    um_task_unregister(&l->starter);
  }
  um__timer_unreserve(l->reactor);
  return -ENOMEM;
}

static void complete(um_tls_server_config *config) {
  if (!config->handshake_timeout_ms) config->handshake_timeout_ms = 10000;
  if (!config->idle_timeout_ms) config->idle_timeout_ms = 60000;
  if (!config->max_connections) config->max_connections = 100000;
  if (!config->hello_limit) config->hello_limit = 8192;
  if (!config->handshake_limit) config->handshake_limit = 65536;
}

int um_tls_serve(um_tls_listener **out, int listen_fd, const um_tls_server_config *config) {
  um_task *task = um__task();
  *out = NULL;
  if (!task) return UM_ENOTFIBER;
  if (!config->ctx || !config->handler) return -EINVAL;
  um_tls_listener *l = um__alloc(sizeof *l);
  if (!l) return -ENOMEM;
  l->reactor = task->reactor;
  l->config = *config;
  SSL_CTX_up_ref(l->config.ctx);
  complete(&l->config);
  LIST_INIT(&l->connections);
  STAILQ_INIT(&l->runnable);
  STAILQ_INIT(&l->fresh);
  l->trimmer = (struct um_timer){.deadline = UM_FOREVER, .fire = trim};
  if (enlist(l) < 0) {
    SSL_CTX_free(l->config.ctx);
    um__free(l);
    return -ENOMEM;
  }
  int one = 1; /* which every connection inherits */
  setsockopt(listen_fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  um_fiber_options options = {.name = "accepting"};
  int result = um_acceptor_create(&l->acceptor, listen_fd);
  if (result == 0) result = um_fiber_spawn(NULL, &l->accepting, accept_loop, l, &options);
  if (result < 0) listener_free(l);
  else *out = l;
  return result;
}

/* Parked connections end now; their fibers find `stopping`. */
static void wake_parked(um_tls_listener *l) {
  served *s, *next;
  for (s = LIST_FIRST(&l->connections); s; s = next) {
    next = LIST_NEXT(s, link);
    start(s);
  }
}

static int wait_for_end(um_tls_listener *l, um_time deadline) {
  while (l->stats.open) {
    int result = um__waitq_wait(&l->ended, deadline);
    if (result < 0 && l->stats.open) return result;
  }
  return 0;
}

int um_tls_listener_stop(um_tls_listener *l, um_time deadline) {
  um_task *task = um__task();
  if (!task) return UM_ENOTFIBER;
  l->stopping = true;
  um_fiber_cancel(l->accepting);
  task->shield++;
  um_fiber_join(l->accepting, NULL, UM_FOREVER);
  task->shield--;
  wake_parked(l);
  int result = wait_for_end(l, deadline);
  while (l->stats.open) { /* also what parked meanwhile; handlers may ignore the first */
    um_group_cancel(&l->fibers);
    wake_parked(l);
    wait_for_end(l, um_after(100));
  }
  task->shield++;
  um_group_join(&l->fibers, UM_FOREVER);
  task->shield--;
  listener_free(l);
  return result;
}

int um_tls_listener_set_ctx(um_tls_listener *l, SSL_CTX *ctx) {
  if (!ctx) return -EINVAL;
  int result = um__reactor_check(l->reactor);
  if (result < 0) return result;
  SSL_CTX_up_ref(ctx);
  SSL_CTX_free(l->config.ctx);
  l->config.ctx = ctx;
  return 0;
}

void um_tls_listener_stats_get(const um_tls_listener *l, um_tls_listener_stats *out) {
  *out = l->stats;
}
