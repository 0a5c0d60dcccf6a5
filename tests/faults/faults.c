/* Whole TLS connections over a kernel that fails at random: faults [FROM [COUNT]].
 *
 * A seed decides everything: who we are, the TLS version, sizes, how the peer ends, which
 * answers of the kernel are short, late, reordered or failures, which of our allocations fail,
 * when fibers are cancelled, when the clock jumps, when the process forks. The same seed does
 * the same again: a failure names it. After each life: every fiber has ended, the kernel owns
 * nothing, every buffer is back; every byte was delivered once and in order, or an error said
 * that it was not. Leaks are for the sanitizer's build to find. */
#include "backend_scripted.h"
#include "harness.h"
#include "memory_peer.h"
#include "own_world.h"

#include "reactor/alloc.h"

#include <bio_uring/observe.h>
#include <bio_uring/tls.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST_BYTES 60000
#define STEP 8000

typedef struct life {
  uint64_t seed, dice;
  script *script;
  um_reactor *reactor;
  um_tls *tls;
  memory_peer peer;
  size_t up, down;          /* bytes we write, bytes the peer writes */
  size_t written, read;     /* taken by um_tls_write, returned by reads */
  int read_end, write_end;  /* how they ended: 0 clean, else an error */
  bool forks, jumps, over, aborted, had_shaken, failed;
  int close_result;
  um_fiber *reader, *writer;
} life;

static life *current; /* for the report of a crash */
static bool tell;     /* how the only seed went */

static unsigned long cancels, forks, jumps, allocations; /* what is not the kernel's */

/* ---- chance ---- */

static unsigned roll(life *l, unsigned sides) {
  l->dice = l->dice * 6364136223846793005u + 1442695040888963407u;
  return (unsigned)(l->dice >> 33) % sides;
}

static bool chance(life *l, unsigned percent) { return roll(l, 100) < percent; }

/* ---- the allocator and the process ---- */

static unsigned allocation_dice, allocation_percent;

static int allocation_fails(void) {
  allocation_dice = allocation_dice * 1103515245u + 12345u;
  bool fails = (allocation_dice >> 16) % 100 < allocation_percent;
  allocations += fails;
  return fails;
}

/* What belongs to the parent says so in the child and can be let go. */
static void fork_here(life *l) {
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    char byte = 0;
    alarm(20);
    bool well = um_reactor_run(l->reactor) == UM_EFORKED &&
                um_reactor_step(l->reactor) == UM_EFORKED &&
                um_fiber_spawn(l->reactor, NULL, NULL, NULL, NULL) == UM_EFORKED &&
                um_post(l->reactor, NULL, NULL) == UM_EFORKED &&
                um_tls_read(l->tls, &byte, 1, UM_FOREVER) == UM_EFORKED &&
                um_tls_write(l->tls, &byte, 1, UM_FOREVER) == UM_EFORKED &&
                um_tls_close(l->tls, UM_FOREVER) == UM_EFORKED;
    _exit(well ? 0 : 1);
  }
  int status;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
}

/* Between two waits of the scripted kernel. */
static void disturb(life *l) {
  if (l->jumps && chance(l, 3)) own_time += (1 + roll(l, 100)) * UM_SECOND, jumps++;
  if (l->forks && chance(l, 10)) fork_here(l), forks++;
  if (l->over) return;
  if (chance(l, 2) && l->reader) um_fiber_cancel(l->reader), cancels++;
  if (chance(l, 2) && l->writer) um_fiber_cancel(l->writer), cancels++;
}

/* ---- the peer ---- */

static void peer_turn(script *s, int fd, void *argument) {
  life *l = argument;
  (void)s;
  unsigned percent = allocation_percent;
  allocation_percent = 0;
  memory_peer_turn(&l->peer, l->script, fd);
  allocation_percent = percent;
  disturb(l);
}

/* ---- our fibers ---- */

static um_time some_deadline(life *l) {
  switch (roll(l, 4)) {
    case 0: return um_after(roll(l, 3));
    case 1: return um_after(1000 + roll(l, 50000));
    default: return UM_FOREVER;
  }
}

/* After these the call can simply be made again. */
static bool passes(ssize_t result) {
  return result == -ETIMEDOUT || result == -ECANCELED || result == -ENOMEM;
}

static ssize_t read_some(life *l, char *bytes, size_t most) {
  size_t left = l->down - l->read;
  unsigned how = roll(l, 3);
  um_time deadline = some_deadline(l);
  switch (how) {
    case 0:
      return um_tls_read(l->tls, bytes, 1 + roll(l, (unsigned)most), deadline);
    case 1:
      if (left > most) left = most;
      left = left ? 1 + roll(l, (unsigned)left) : 1;
      return um_tls_read_exact(l->tls, bytes, left, deadline);
    default:
      return um_tls_read_until(l->tls, bytes, most, "\x5a", 1, deadline);
  }
}

static int reads(void *argument) {
  life *l = argument;
  static char bytes[STEP];
  unsigned tries = 0;
  ssize_t n;
  do {
    n = read_some(l, bytes, sizeof bytes);
    if (n > 0) {
      CHECK(is_peer_pattern(bytes, (size_t)n, l->read));
      l->read += (size_t)n;
      CHECK(l->read <= l->peer.sent);
      tries = 0;
    } else if (passes(n) || n == UM_ETOOLONG) {
      um_fiber_yield();
    }
  } while (!l->over && (n > 0 || ((passes(n) || n == UM_ETOOLONG) && ++tries < 200)));
  l->read_end = (int)n;
  return 0;
}

static int writes(void *argument) {
  life *l = argument;
  static char bytes[STEP];
  unsigned tries = 0;
  ssize_t n = 1;
  while (l->written < l->up && (n > 0 || (passes(n) && ++tries < 200))) {
    size_t length = 1 + roll(l, STEP);
    if (length > l->up - l->written) length = l->up - l->written;
    peer_pattern(bytes, length, l->written);
    n = um_tls_write(l->tls, bytes, length, some_deadline(l));
    CHECK(n <= (ssize_t)length);
    if (n > 0) {
      l->written += (size_t)n;
      tries = 0;
      if (chance(l, 5)) um_tls_key_update(l->tls, roll(l, 2) != 0, some_deadline(l));
      if (chance(l, 10)) um_tls_flush(l->tls, some_deadline(l));
    } else if (passes(n)) {
      um_fiber_yield();
    }
  }
  l->write_end = n > 0 ? 0 : (int)n;
  return 0;
}

static um_fiber *start(life *l, um_fiber_fn fn) {
  um_fiber *fiber = NULL;
  um_fiber_options options = {.name = fn == reads ? "reader" : "writer"};
  return um_fiber_spawn(NULL, &fiber, fn, l, &options) == 0 ? fiber : NULL;
}

static void finish(um_fiber **fiber) {
  if (*fiber)
    while (um_fiber_join(*fiber, NULL, UM_FOREVER) < 0) {}
  *fiber = NULL;
}

/* ---- how it ends, and what must hold then ---- */

/* After a failure (a truncation, for example) no close_notify follows. */
static void check_received(const life *l) {
  const memory_peer *p = &l->peer;
  CHECK(p->received <= l->written);
  bool whole = l->write_end == 0 && l->had_shaken && l->up == l->written;
  if (!whole || l->aborted || l->close_result < 0 || p->failed) return;
  CHECK_EQ(p->received, l->written);
  CHECK(p->saw_end || l->failed || l->read_end < 0);
}

static void check_read(const life *l) {
  if (l->read_end != 0) return;
  CHECK(l->peer.said_end); /* a clean end that the peer did not make */
  CHECK_EQ(l->read, l->peer.sent);
}

static void end(life *l) {
  um_tls *tls = l->tls;
  l->aborted = chance(l, 15);
  l->had_shaken = um_tls_ssl(tls) && SSL_is_init_finished(um_tls_ssl(tls));
  if (chance(l, 30)) um_tls_shutdown(tls, some_deadline(l));
  l->failed = *um_tls_error(tls) || allocation_percent; /* a reader that is evicted may fail */
  l->over = true;
  if (l->aborted) {
    um_tls_abort(tls);
    return;
  }
  um_time deadline = chance(l, 80) ? um_after(3600 * 1000) : some_deadline(l);
  l->close_result = um_tls_close(tls, deadline);
}

static int live(void *argument) {
  life *l = argument;
  int fds[2];
  um_tls_options options = {.hostname = "localhost"};
  tcp_pair(fds);
  bool server = !l->peer.server;
  int result = (server ? um_tls_server : um_tls_client)(
      &l->tls, fds[0], memory_peer_ctx(server, l->peer.version, true), server ? NULL : &options);
  close(fds[1]);
  if (result < 0) {
    CHECK_EQ(result, -ENOMEM); /* fds[0] is closed */
    return 0;
  }
  script_on_send(l->script, fds[0], peer_turn, l);
  peer_turn(l->script, fds[0], l);
  l->reader = start(l, reads);
  l->writer = start(l, writes);
  if (!l->reader) l->read_end = -ENOMEM;
  if (!l->writer) l->write_end = -ENOMEM;
  finish(&l->writer);
  /* A peer that follows would wait for us as we for it. */
  int shut = l->peer.end == PEER_FOLLOWS ? um_tls_shutdown(l->tls, UM_FOREVER) : 0;
  if (shut == 0 && chance(l, 70)) finish(&l->reader);
  else if (l->reader) um_fiber_cancel(l->reader);
  um_fiber *reader = l->reader; /* close evicts it */
  end(l);
  finish(&reader);
  l->reader = NULL;
  check_read(l);
  check_received(l);
  return 0;
}

/* ---- a seed ---- */

static void show_fiber(const um_fiber_info *f, void *arg) {
  (void)arg;
  printf("# %s %s for %s\n", f->name ? f->name : "main", f->state,
         f->waits_for ? f->waits_for : "-");
}

static void show(life *l) {
  const memory_peer *p = &l->peer;
  printf("# we: %s, wrote %zu of %zu (%d), read %zu of %zu (%d)%s\n",
         p->server ? "client" : "server", l->written, l->up, l->write_end, l->read, l->down,
         l->read_end, l->over ? ", closing" : "");
  printf("# peer: TLS %x, end %d, shaken %d, sent %zu, received %zu, fed %zu, cut %zu, failed %d, "
         "ended %d\n", (unsigned)p->version, p->end, p->shaken, p->sent, p->received, p->fed,
         p->cut_after, p->failed, p->ended);
  script_counts c = script_count(l->script);
  printf("# kernel: %u recv, %u sends, %u waits, owns %u; peer took %zu\n",
         c.submitted[UM_OP_RECV] + c.submitted[UM_OP_RECV_MULTI], c.submitted[UM_OP_SEND], c.waits,
         script_owned(l->script), p->taken);
  um_reactor_fibers(l->reactor, show_fiber, NULL);
  fflush(stdout);
}

static void run_seed(uint64_t seed) {
  life l = {.seed = seed, .dice = seed * 0x9e3779b97f4a7c15u + 7};
  current = &l;
  static uint64_t random_state;
  random_state = seed;
  own_randomness(&random_state);
  for (int i = 0; i < 4; i++) roll(&l, 2);
  um_reactor_config config = {.buffer_count = 4u << roll(&l, 4), .buffer_size = 4096,
                              .receive_limit = 4096u << roll(&l, 4),
                              .send_limit = 16384u << roll(&l, 4),
                              .turn_bytes = 1024u << roll(&l, 6)};
  script_options options = {.seed = seed + 1, .fault_percent = roll(&l, 3) ? 0 : 1 + roll(&l, 5),
                            .refuse_percent = roll(&l, 4) ? 0 : 1 + roll(&l, 3)};
  options.single_receives = chance(&l, 20);
  l.up = roll(&l, 5) ? roll(&l, MOST_BYTES) : 0;
  l.down = roll(&l, 5) ? roll(&l, MOST_BYTES) : 0;
  l.jumps = chance(&l, 20);
  l.forks = chance(&l, 3);
  memory_peer_init(&l.peer, roll(&l, 2), roll(&l, 2) ? TLS1_3_VERSION : TLS1_2_VERSION, l.down,
                   (enum peer_end)roll(&l, PEER_ENDS), l.dice);
  l.reactor = scripted_reactor(&l.script, &config, &options);
  um_reactor *r = l.reactor;
  bool spawned = um_fiber_spawn(r, NULL, live, &l, NULL) == 0;
  CHECK(spawned);
  allocation_dice = (unsigned)seed;
  allocation_percent = chance(&l, 25) ? 1 + roll(&l, 4) : 0;
  um__alloc_fails = allocation_fails;
  int result = um_reactor_run(r);
  um__alloc_fails = NULL;
  if (result < 0 || tell) show(&l);
  CHECK_EQ(result, 0); /* -EDEADLK: a fiber waits for what will never come */
  CHECK_EQ(metrics_of(r).fibers, 0);
  CHECK_EQ(metrics_of(r).buffers_used, 0);
  CHECK_EQ(script_owned(l.script), 0);
  CHECK_EQ(um_reactor_destroy(r), 0);
  memory_peer_free(&l.peer);
  current = NULL;
}

/* ---- the program ---- */

static void show_injected(void) {
  for (int i = 0; i < SCRIPT_KINDS; i++)
    printf("# %-46s %9lu\n", script_injected_all[i].name, script_injected_all[i].count);
  printf("# %-46s %9lu\n", "allocations that failed", allocations);
  printf("# %-46s %9lu\n", "fibers cancelled", cancels);
  printf("# %-46s %9lu\n", "jumps of the clock, 1 to 100 s", jumps);
  printf("# %-46s %9lu\n", "forks", forks);
}

static void crashed(int number) {
  char text[128];
  unsigned long long seed = current ? current->seed : 0;
  int length = snprintf(text, sizeof text, "# seed %llu ended with signal %d: run faults %llu\n"
                        "not ok 1 - seeds\n", seed, number, seed);
  if (write(STDOUT_FILENO, text, (size_t)length) < 0) _exit(2);
  if (current) show(current);
  signal(number, SIG_DFL);
  raise(number);
}

static uint64_t number(const char *text, uint64_t otherwise) {
  return text ? strtoull(text, NULL, 10) : otherwise;
}

int main(int argc, char **argv) {
  uint64_t from = number(argc > 1 ? argv[1] : NULL, 1);
  uint64_t count = number(argc > 2 ? argv[2] : NULL, 1);
  tell = count == 1;
  signal(SIGABRT, crashed);
  signal(SIGSEGV, crashed);
  signal(SIGALRM, crashed);
  unsigned fds = open_fds();
  for (uint64_t seed = from; seed < from + count; seed++) {
    alarm(60); /* a loop without an end */
    run_seed(seed);
    if (count < 1000 || seed % (count / 10)) continue;
    printf("# %llu\n", (unsigned long long)seed);
    fflush(stdout);
  }
  memory_peer_ctx_free();
  CHECK_EQ(open_fds(), fds);
  if (count > 1) show_injected();
  printf("ok 1 - %llu seeds from %llu\n1..1\n", (unsigned long long)count,
         (unsigned long long)from);
  return 0;
}
