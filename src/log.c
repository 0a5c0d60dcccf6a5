#include "log.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const names[] = {"off", "error", "warning", "info", "debug"};

int um__log_level = UM_LOG_WARNING;
static struct {
  um_log_fn fn;
  void *arg;
  bool set;
} sink;

void um_log_set(int level, um_log_fn fn, void *arg) {
  sink.fn = fn;
  sink.arg = arg;
  sink.set = true;
  um__log_level = level;
}

void um__log_init(void) {
  const char *wanted = secure_getenv("UM_LOG");
  if (sink.set || !wanted || !*wanted) return;
  for (int level = UM_LOG_OFF; level <= UM_LOG_DEBUG; level++) {
    if (strcmp(wanted, names[level])) continue;
    um__log_level = level;
    return;
  }
  um__log(UM_LOG_WARNING, "UM_LOG is \"%.32s\": wanted is off, error, warning, info or debug", wanted);
}

/* What is writable takes a line without waiting: a pipe that is has room for 4,096 bytes, so for
 * several threads' lines. One whose reader has gone says more than POLLOUT, and would raise
 * SIGPIPE. */
int um__write_line(int fd, const char *line, size_t length) {
  struct pollfd room = {.fd = fd, .events = POLLOUT};
  if (poll(&room, 1, 0) < 0) return -errno;
  if (room.revents != POLLOUT) return room.revents ? -EPIPE : -EAGAIN;
  return write(fd, line, length) < 0 ? -errno : 0;
}

void um__log_write(int level, const char *format, ...) {
  char line[512];
  int head = snprintf(line, sizeof line, "bio_uring %s: ", names[level]);
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line + head, sizeof line - 1 - (size_t)head, format, arguments);
  va_end(arguments);
  if (length < 0) return;
  if (sink.fn) {
    sink.fn(level, line + head, sink.arg);
    return;
  }
  length += head;
  if (length > (int)sizeof line - 2) length = (int)sizeof line - 2;
  line[length] = '\n';
  um__write_line(STDERR_FILENO, line, (size_t)length + 1); /* or there is nobody to tell */
}
