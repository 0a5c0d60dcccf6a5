#include "say.h"

#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

static const char *speaker;

void say_as(const char *command) { speaker = command; }

static int bounded(int written, int room) {
  return written < 0 ? 0 : written < room ? written : room - 1;
}

/* One write(2): lines of several threads do not mix, and no stdio lock is held. It never waits:
 * who does not read what we say must not hold up those we serve. */
static bool put(const char *line, int length) {
  struct pollfd room = {.fd = STDERR_FILENO, .events = POLLOUT};
  return poll(&room, 1, 0) == 1 && room.revents == POLLOUT &&
         write(STDERR_FILENO, line, (size_t)length) == length;
}

static int begin(char *line, int room) {
  return bounded(snprintf(line, (size_t)room, "um-tls%s%s: ", speaker ? " " : "",
                          speaker ? speaker : ""), room);
}

static void tell_of_lost(atomic_uint *lost) {
  char line[128];
  unsigned count = atomic_exchange(lost, 0);
  if (!count) return;
  int n = begin(line, sizeof line);
  n += snprintf(line + n, sizeof line - (size_t)n, "%u messages were lost: nobody read them\n",
                count);
  if (!put(line, n)) atomic_fetch_add(lost, count);
}

__attribute__((format(printf, 1, 0))) static void say_list(const char *format, va_list arguments) {
  static atomic_uint lost;
  char line[1024];
  int room = (int)sizeof line - 1, n = begin(line, room);
  n += bounded(vsnprintf(line + n, (size_t)(room - n), format, arguments), room - n);
  line[n++] = '\n';
  tell_of_lost(&lost);
  if (!put(line, n)) atomic_fetch_add(&lost, 1);
}

void say(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  say_list(format, arguments);
  va_end(arguments);
}

int fail(int code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  say_list(format, arguments);
  va_end(arguments);
  return code;
}
