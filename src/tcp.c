/* TCP by name: resolving off the reactor's thread, racing addresses (RFC 8305),
 * listening. */
#include "error.h"
#include "reactor/alloc.h"
#include "reactor/worker.h"

#include <bio_uring/io.h>
#include <bio_uring/sync.h>
#include <bio_uring/tls.h>

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* getaddrinfo(3) takes 99999 for 34463. */
static bool is_port(const char *text) {
  char *end;
  unsigned long number = strtoul(text, &end, 10);
  return *text && (*end || number <= 65535);
}

/* ---- resolving ---- */

#define MOST_LOOKUPS 64

static um_semaphore lookups = {.value = MOST_LOOKUPS};

/* Shared by the fiber that waits and the thread that resolves; whoever is last
 * frees it, so that a cancelled lookup is simply left behind. */
typedef struct lookup {
  atomic_int references;
  um_event done;
  char *host, *port;
  struct addrinfo *addresses;
  int error;
} lookup;

static const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};

static void lookup_release(lookup *l) {
  if (atomic_fetch_sub(&l->references, 1) != 1) return;
  if (l->addresses) freeaddrinfo(l->addresses);
  um__free(l->host);
  um__free(l->port);
  um__free(l);
}

static void *lookup_run(void *argument) {
  lookup *l = argument;
  l->error = getaddrinfo(l->host, l->port, &hints, &l->addresses);
  um_semaphore_release(&lookups);
  um_event_set(&l->done);
  lookup_release(l);
  return NULL;
}

static int start_thread(lookup *l) {
  atomic_fetch_add(&l->references, 1);
  int result = um__thread_start(lookup_run, l, 0);
  if (result < 0) lookup_release(l);
  return result;
}

static lookup *lookup_new(const char *host, const char *port) {
  lookup *l = um__alloc(sizeof *l);
  if (!l) return NULL;
  um_event_init(&l->done);
  atomic_init(&l->references, 1);
  l->host = um__strdup(host);
  l->port = um__strdup(port);
  if (l->host && l->port) return l;
  lookup_release(l);
  return NULL;
}

static int lookup_wait(lookup *l, um_time deadline) {
  int result = um_semaphore_acquire(&lookups, deadline);
  if (result < 0) return result;
  result = start_thread(l);
  if (result < 0) {
    um_semaphore_release(&lookups);
    return result;
  }
  return um_event_wait(&l->done, deadline);
}

/* Addresses need no resolver, hence no thread. */
static bool is_numeric(lookup *l) {
  struct addrinfo numeric = hints;
  numeric.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  return getaddrinfo(l->host, l->port, &numeric, &l->addresses) == 0;
}

static int resolve(lookup **out, const char *host, const char *port, um_time deadline,
                   um_error *error) {
  *out = NULL;
  if (!is_port(port)) {
    um__fail(error, -EINVAL, "%s: \"%.32s\" is no port: write 1 to 65535", host, port);
    return -EINVAL;
  }
  lookup *l = *out = lookup_new(host, port);
  if (!l) {
    um__fail(error, -ENOMEM, "%s: no memory", host);
    return -ENOMEM; /* which an analyser would not know of um__fail() */
  }
  if (is_numeric(l)) return 0;
  int result = lookup_wait(l, deadline);
  if (result < 0) return um__fail(error, result, "%s: resolving: %s", host, um_strerror(result));
  if (l->error == 0) return 0;
  return um__fail(error, UM_ERESOLVE, "%s:%s: %s: check the name, the port and the resolver", host,
                  port, gai_strerror(l->error));
}

/* ---- racing ---- */

#define MOST_ADDRESSES 16
#define ATTEMPT_DELAY (250 * UM_MS)

typedef struct race {
  um_group attempts;
  um_event news;           /* an attempt has ended */
  const struct addrinfo *order[MOST_ADDRESSES];
  unsigned count, started;
  um_time deadline;
  int winner, error;
} race;

typedef struct attempt {
  race *race;
  const struct addrinfo *address;
} attempt;

/* IPv6 and IPv4 in turn, beginning with the family the resolver put first. */
static void interleave(race *r, const struct addrinfo *all) {
  const struct addrinfo *next[2] = {all, all};
  int first = all->ai_family;
  for (int turn = 0; r->count < MOST_ADDRESSES && (next[0] || next[1]); turn = !turn) {
    const struct addrinfo *a = next[turn];
    while (a && (a->ai_family == first) != (turn == 0)) a = a->ai_next;
    if (a) r->order[r->count++] = a;
    next[turn] = a ? a->ai_next : NULL;
  }
}

static int connect_one(const struct addrinfo *address, um_time deadline) {
  int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, address->ai_protocol), one = 1;
  if (fd < 0) return -errno;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  int result = um_connect(fd, address->ai_addr, address->ai_addrlen, deadline);
  if (result == 0) return fd;
  close(fd);
  return result;
}

static int run_attempt(void *argument) {
  attempt *a = argument;
  race *r = a->race;
  int fd = connect_one(a->address, r->deadline);
  um__free(a);
  if (fd < 0) {
    if (fd != -ECANCELED && !r->error) r->error = fd; /* the first address' reason */
  } else if (r->winner < 0) {
    r->winner = fd;
  } else {
    close(fd); /* the race was won while this one connected */
  }
  um_event_set(&r->news);
  return 0;
}

static int start_attempt(race *r) {
  attempt *a = um__alloc(sizeof *a);
  if (!a) return -ENOMEM;
  *a = (attempt){r, r->order[r->started++]};
  int result = um_group_spawn(&r->attempts, run_attempt, a, NULL);
  if (result < 0) um__free(a);
  return result;
}

/* The next attempt starts when one fails or 250 ms after the last. Why it ended, for
 * when nobody won. */
static int run_race(race *r) {
  int result = 0;
  while (r->winner < 0 && (r->started < r->count || r->attempts.count)) {
    bool more = r->started < r->count;
    if (more && (result = start_attempt(r)) < 0) break;
    um_event_reset(&r->news);
    um_time until = r->started < r->count ? um_now() + ATTEMPT_DELAY : UM_FOREVER;
    result = um_event_wait(&r->news, until < r->deadline ? until : r->deadline);
    if (result < 0 && (result != -ETIMEDOUT || um_now() >= r->deadline)) break;
  }
  return result < 0 ? result : r->error ? r->error : -ECONNREFUSED;
}

/* The group lives on this stack: its members must be gone before we are. */
static void end_race(race *r) {
  um_task *task = um__task();
  um_group_cancel(&r->attempts);
  task->shield++;
  um_group_join(&r->attempts, UM_FOREVER);
  task->shield--;
}

int um_tcp_connect(const char *host, const char *port, um_time deadline, um_error *error) {
  if (error) *error = (um_error){0};
  if (!um__task()) return um__fail(error, UM_ENOTFIBER, "%s", um_strerror(UM_ENOTFIBER));
  lookup *l;
  int result = resolve(&l, host, port, deadline, error);
  if (result == 0) {
    race r = {.deadline = deadline, .winner = -1};
    interleave(&r, l->addresses);
    result = run_race(&r);
    end_race(&r);
    if (r.winner >= 0 && result == -ECANCELED) um__task()->cancel_pending = 1; /* it won first */
    if (r.winner >= 0) result = r.winner;
    else um__fail(error, result, "%s:%s: %s", host, port, um_strerror(result));
  }
  if (l) lookup_release(l);
  return result;
}

/* ---- listening ---- */

/* Splits "host:port", "[v6]:port", ":port" in place. */
static int split(char *text, char **host, char **port) {
  char *colon = strrchr(text, ':');
  if (!colon || !colon[1]) return -EINVAL;
  *colon = '\0';
  *port = colon + 1;
  *host = text;
  size_t length = strlen(text);
  if (text[0] == '[' && length > 2 && text[length - 1] == ']') {
    text[length - 1] = '\0';
    *host = text + 1;
  } else if (strchr(text, ':')) {
    return -EINVAL;
  }
  return 0;
}

static int listen_on(const struct addrinfo *a, unsigned flags, const char **step) {
  int one = 1, off = 0;
  *step = "socket";
  int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, a->ai_protocol);
  if (fd < 0) return -errno;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (flags & UM_TCP_REUSEPORT) setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
  if (a->ai_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  *step = "bind";
  int result = bind(fd, a->ai_addr, a->ai_addrlen);
  if (result == 0) {
    *step = "listen";
    result = listen(fd, SOMAXCONN);
  }
  if (result == 0) return fd;
  result = -errno;
  close(fd);
  return result;
}

static const char *advice(int error) {
  switch (error) {
    case -EADDRINUSE: return ": stop the program that uses it or choose another port";
    case -EACCES: return ": ports below 1024 need root or CAP_NET_BIND_SERVICE";
    case -EADDRNOTAVAIL: return ": no interface of this machine has that address";
    default: return "";
  }
}

int um_tcp_listen(const char *address, unsigned flags, um_error *error) {
  char text[300], *host, *port;
  if (error) *error = (um_error){0};
  if ((size_t)snprintf(text, sizeof text, "%s", address) >= sizeof text ||
      split(text, &host, &port) < 0 || !is_port(port))
    return um__fail(error, -EINVAL, "\"%.100s\" is no address to listen on: write HOST:PORT, "
                    "[IPV6]:PORT or :PORT, with a port up to 65535", address);
  struct addrinfo passive = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *all = NULL;
  int result = getaddrinfo(*host ? host : NULL, port, &passive, &all);
  if (result)
    return um__fail(error, UM_ERESOLVE, "%s: %s", address, gai_strerror(result));
  const char *step = "";
  result = -EADDRNOTAVAIL;
  /* "any": the IPv6 wildcard takes IPv4 too, where there is IPv6 */
  for (int pass = 0; pass < 2 && result < 0; pass++)
    for (struct addrinfo *a = all; a && result < 0; a = a->ai_next)
      if ((a->ai_family == AF_INET6) == (pass == (*host ? 1 : 0)))
        result = listen_on(a, flags, &step);
  freeaddrinfo(all);
  if (result < 0)
    return um__fail(error, result, "%s: %s: %s%s", address, step, um_strerror(result), advice(result));
  return result;
}
