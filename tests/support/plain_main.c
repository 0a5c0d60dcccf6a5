/* Runs tests one after the other in one process, where Criterion cannot: under the
 * thread sanitizer and valgrind. Arguments: names (suite/test or suite) to run. */
#include "harness.h"

#define MOST 512

static struct {
  const char *suite, *name;
  void (*fn)(void);
} tests[MOST];
static int count;
static const char *why; /* skipped */

void plain_add(const char *suite, const char *name, void (*fn)(void)) {
  if (count == MOST) abort();
  tests[count].suite = suite;
  tests[count].name = name;
  tests[count++].fn = fn;
}

void plain_skip(const char *reason) { why = reason; }

static bool wanted(int i, int argc, char **argv) {
  char full[256];
  snprintf(full, sizeof full, "%s/%s", tests[i].suite, tests[i].name);
  for (int a = 1; a < argc; a++)
    if (!strcmp(argv[a], full) || !strcmp(argv[a], tests[i].suite)) return true;
  return argc == 1;
}

int main(int argc, char **argv) {
  int ran = 0;
  setvbuf(stdout, NULL, _IONBF, 0);
  for (int i = 0; i < count; i++) {
    if (!wanted(i, argc, argv)) continue;
    alarm(2 * WATCHDOG);
    why = NULL;
    printf("# %s/%s\n", tests[i].suite, tests[i].name);
    tests[i].fn();
    printf("ok %d - %s/%s%s%s\n", ++ran, tests[i].suite, tests[i].name, why ? " # SKIP " : "",
           why ? why : "");
  }
  printf("1..%d\n", ran);
  return ran ? 0 : 77;
}
