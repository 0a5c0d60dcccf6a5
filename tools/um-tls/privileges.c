#include "privileges.h"

#include "exit_codes.h"
#include "say.h"

#include <bio_uring/base.h>
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

static int become(const struct passwd *user, gid_t group) {
  if (initgroups(user->pw_name, group) || setgid(group) || setuid(user->pw_uid))
    return fail(EXIT_FAILED, "--user: cannot become %s: %s", user->pw_name, um_strerror(-errno));
  if (user->pw_uid && setuid(0) == 0)
    return fail(EXIT_FAILED, "--user: could become root again");
  return EXIT_OK;
}

int privileges_drop(const char *spec) {
  char name[256];
  if (!spec) return EXIT_OK;
  size_t length = strcspn(spec, ":");
  if (length >= sizeof name) return fail(EXIT_USAGE, "--user %s: no such user", spec);
  memcpy(name, spec, length);
  name[length] = '\0';
  const struct passwd *user = getpwnam(name);
  if (!user) return fail(EXIT_USAGE, "--user %s: no such user", spec);
  const struct group *group = spec[length] ? getgrnam(spec + length + 1) : NULL;
  if (spec[length] && !group) return fail(EXIT_USAGE, "--user %s: no such group", spec);
  return become(user, group ? group->gr_gid : user->pw_gid);
}

int privileges_core(bool allowed) {
  struct rlimit none = {0, 0};
  /* The limit alone would not keep a pipe in core_pattern from getting it (core(5)). */
  if (prctl(PR_SET_DUMPABLE, allowed ? 1 : 0) || (!allowed && setrlimit(RLIMIT_CORE, &none)))
    return fail(EXIT_FAILED, "cannot switch core dumps off: %s", um_strerror(-errno));
  return EXIT_OK;
}
