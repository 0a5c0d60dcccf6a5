#include "say.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static const char *speaker;

void say_as(const char *command) { speaker = command; }

static int bounded(int written, int room) {
  return written < 0 ? 0 : written < room ? written : room - 1;
}

/* One write(2): lines of several threads do not mix, and no stdio lock is held. */
__attribute__((format(printf, 1, 0))) static void say_list(const char *format, va_list arguments) {
  char line[1024];
  int room = (int)sizeof line - 1, n;
  n = bounded(snprintf(line, (size_t)room, "um-tls%s%s: ", speaker ? " " : "",
                       speaker ? speaker : ""), room);
  n += bounded(vsnprintf(line + n, (size_t)(room - n), format, arguments), room - n);
  line[n++] = '\n';
  if (write(STDERR_FILENO, line, (size_t)n) < 0) return; /* nobody left to tell */
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
