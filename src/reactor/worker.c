#include "worker.h"

#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define IDLE_SECONDS 5
#define NICENESS 10
#define STACK_SIZE (1u << 20)

static struct {
  pthread_mutex_t lock;
  pthread_cond_t wanted; /* something was queued */
  pthread_cond_t quiet;  /* a thread has ended its work */
  STAILQ_HEAD(, um__work) works;
  unsigned queued, threads, idle, most;
} pool;

static void set_up(void) {
  pthread_condattr_t monotonic;
  cpu_set_t processors;
  STAILQ_INIT(&pool.works);
  pthread_mutex_init(&pool.lock, NULL);
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init(&pool.wanted, &monotonic);
  pthread_cond_init(&pool.quiet, &monotonic);
  pthread_condattr_destroy(&monotonic);
  bool known = sched_getaffinity(0, sizeof processors, &processors) == 0;
  pool.most = known ? (unsigned)CPU_COUNT(&processors) : 1;
}

/* ---- fork and exit ---- */

static void before_fork(void) { pthread_mutex_lock(&pool.lock); }
static void after_fork(void) { pthread_mutex_unlock(&pool.lock); }

/* The child has the pool's memory but none of its threads, and reactors it must not use. */
static void forked(void) {
  pool.queued = pool.threads = pool.idle = 0;
  set_up();
}

/* OpenSSL's own atexit(3) handler, registered before ours and thus called later, frees
 * what running work still uses. */
static void finish(void) {
  pthread_mutex_lock(&pool.lock);
  STAILQ_INIT(&pool.works);
  pool.queued = 0;
  pool.most = 0;
  while (pool.threads > pool.idle) pthread_cond_wait(&pool.quiet, &pool.lock);
  pthread_mutex_unlock(&pool.lock);
}

static void first_use(void) {
  set_up();
  pthread_atfork(before_fork, after_fork, forked);
  atexit(finish);
}

/* ---- a thread ---- */

static int ended(void *argument) {
  um__work *work = argument;
  um_reactor *r = work->reactor;
  r->tasks--;
  r->jobs--;
  work->done(work);
  return 0;
}

bool um__work_is_end(const um_post_node *node) { return node->fn == ended; }

static um__work *take(void) {
  um__work *work = STAILQ_FIRST(&pool.works);
  STAILQ_REMOVE_HEAD(&pool.works, link);
  pool.queued--;
  return work;
}

/* With the lock. False when nothing came for a while. */
static bool wait_for_work(void) {
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_sec += IDLE_SECONDS;
  pool.idle++;
  pthread_cond_signal(&pool.quiet);
  int result = 0;
  while (!pool.queued && !result) result = pthread_cond_timedwait(&pool.wanted, &pool.lock, &until);
  pool.idle--;
  return pool.queued;
}

static void *work_on(void *argument) {
  (void)argument;
  pthread_setname_np(pthread_self(), "um-worker");
  if (nice(NICENESS) < 0) { /* then it competes with the reactor on equal terms */ }
  pthread_mutex_lock(&pool.lock);
  while (pool.queued || wait_for_work()) {
    um__work *work = take();
    pthread_mutex_unlock(&pool.lock);
    work->run(work);
    um_post_node_push(work->reactor, &work->node); /* it may be gone right after */
    pthread_mutex_lock(&pool.lock);
  }
  pool.threads--;
  pthread_cond_signal(&pool.quiet);
  pthread_mutex_unlock(&pool.lock);
  return NULL;
}

int um__thread_start(void *(*run)(void *), void *argument, size_t stack_size) {
  pthread_t thread;
  pthread_attr_t attributes;
  sigset_t all, before;
  if (pthread_attr_init(&attributes)) return -ENOMEM;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  if (stack_size) pthread_attr_setstacksize(&attributes, stack_size);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = pthread_create(&thread, &attributes, run, argument);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return -error;
}

/* ---- submitting ---- */

/* With the lock. A thread too few is none too few as long as there is one. */
static int provide_thread(void) {
  if (pool.queued < pool.idle || (pool.threads >= pool.most && pool.threads)) return 0;
  int result = um__thread_start(work_on, NULL, STACK_SIZE);
  if (result == 0) pool.threads++;
  return pool.threads ? 0 : result;
}

static void enqueue(um__work *work) {
  STAILQ_INSERT_TAIL(&pool.works, work, link);
  pool.queued++;
  pthread_cond_signal(&pool.wanted);
}

int um__work_submit(um_reactor *r, um__work *work) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, first_use);
  work->reactor = r;
  work->node = (um_post_node){.fn = ended, .arg = work};
  pthread_mutex_lock(&pool.lock);
  int result = provide_thread();
  if (result == 0) enqueue(work);
  pthread_mutex_unlock(&pool.lock);
  if (result < 0) return result;
  r->tasks++; /* before the loop can see its end: this is its thread */
  r->jobs++;
  return 0;
}
