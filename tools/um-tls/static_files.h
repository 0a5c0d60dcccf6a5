/* Files below one directory, and nothing outside it.
 *
 * The kernel resolves each path with openat2(RESOLVE_BENEATH): neither ".." nor a
 * symbolic link leads out; links that stay inside work. Where openat2 is missing
 * or forbidden (seccomp), no symbolic link is followed at all. */
#ifndef UM_TLS_STATIC_FILES_H
#define UM_TLS_STATIC_FILES_H

#include <bio_uring/base.h>

typedef struct static_file {
  int fd; /* a regular file, blocking; um_close() it */
  uint64_t size;
  const char *type; /* Content-Type */
} static_file;

/* The directory to serve, or a negative errno. */
int static_root(const char *directory);

/* `path` is absolute and clean, as http_path() makes it; directories stand for
 * their index.html. 0, or a status: 403, 404, 500, 503. From a fiber. */
int static_open(static_file *out, int root, const char *path, um_time deadline);

/* Some of what is at `from`, 0 at the end; or a negative errno. From a fiber. */
ssize_t static_read(const static_file *file, char *into, size_t length, uint64_t from);

#endif
