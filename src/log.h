/* What the library says of itself: see bio_uring/observe.h. */
#ifndef UM_LOG_H
#define UM_LOG_H

#include <bio_uring/observe.h>
#include <stddef.h>

extern int um__log_level;
/* The environment's level, unless one was set. */
void um__log_init(void);
void um__log_write(int level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* One write(2) that neither waits nor raises SIGPIPE: a log that nobody reads must not hold up a
 * reactor. 0, or why the line was dropped: -EAGAIN, -EPIPE, -ENOSPC, ... */
int um__write_line(int fd, const char *line, size_t length);

#define um__log(level, ...) \
  (um__log_level >= (level) ? um__log_write(level, __VA_ARGS__) : (void)0)

#endif
