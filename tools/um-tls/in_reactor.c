#include "in_reactor.h"

#include "exit_codes.h"
#include "say.h"

#include <bio_uring/fiber.h>

typedef struct job {
  int (*main)(void *arg);
  void *arg;
  int code;
} job;

static int run_job(void *arg) {
  job *j = arg;
  j->code = j->main(j->arg);
  return 0;
}

int in_reactor(int (*main)(void *arg), void *arg) {
  um_reactor *reactor;
  um_error error;
  job j = {main, arg, EXIT_FAILED};
  if (um_reactor_create(&reactor, NULL, &error)) return fail(EXIT_NO_REACTOR, "%s", error.message);
  int result = um_fiber_spawn(reactor, NULL, run_job, &j, NULL);
  if (!result) result = um_reactor_run(reactor);
  if (result) j.code = fail(EXIT_FAILED, "the reactor failed: %s", um_strerror(result));
  um_reactor_destroy(reactor);
  return j.code;
}
