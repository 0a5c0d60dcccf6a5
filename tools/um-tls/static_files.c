#include "static_files.h"

#include "content_type.h"

#include <bio_uring/io.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* O_NONBLOCK: opening a FIFO must not wait for its writer. */
#define FILE_FLAGS (O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)
#define INSIDE (RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)

int static_root(const char *directory) {
  int fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

static int resolve(int root, const char *path, uint64_t how) {
  struct open_how h = {.flags = FILE_FLAGS, .resolve = how};
  long fd = syscall(SYS_openat2, root, path, &h, sizeof h);
  return fd < 0 ? -errno : (int)fd;
}

/* Names that are not in the kernel's cache are looked up by a kernel thread, so
 * that the reactor does not wait for a disk: only their being cached matters,
 * what the lookup finds is not used. */
static void warm(int root, const char *path, um_time deadline) {
  int fd = um_openat(root, path, O_PATH | O_CLOEXEC, 0, deadline);
  if (fd >= 0) um_close(fd);
}

/* One component at a time, following no link. */
static int walk(int root, const char *path, um_time deadline) {
  char name[NAME_MAX + 1];
  int at = root;
  for (;;) {
    const char *slash = strchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) : strlen(path);
    int fd = -ENAMETOOLONG;
    if (length < sizeof name) {
      memcpy(name, path, length);
      name[length] = '\0';
      fd = um_openat(at, name, O_NOFOLLOW | (slash ? O_PATH | O_DIRECTORY | O_CLOEXEC : FILE_FLAGS),
                     0, deadline);
    }
    if (at != root) um_close(at);
    if (fd < 0 || !slash) return fd;
    at = fd;
    path = slash + 1;
  }
}

static int open_inside(int root, const char *path, um_time deadline) {
  int fd = resolve(root, path, INSIDE | RESOLVE_CACHED);
  if (fd == -EAGAIN) warm(root, path, deadline);
  if (fd == -EAGAIN || fd == -EINVAL) fd = resolve(root, path, INSIDE); /* EINVAL: kernel < 5.12 */
  if (fd == -ENOSYS || fd == -EPERM) fd = walk(root, path, deadline);
  return fd;
}

static int status_for(int error) {
  switch (error) {
  case -ENOENT:
  case -ENOTDIR:
  case -ELOOP:
  case -EXDEV: /* led out of the root */
  case -ENAMETOOLONG:
  case -ENXIO: return 404;
  case -EACCES:
  case -EPERM: return 403;
  case -EMFILE:
  case -ENFILE:
  case -ENOMEM:
  case -EAGAIN: return 503;
  default: return 500;
  }
}

/* 0 when it is a regular file, ready to be read; -EISDIR, -ENOENT (anything else). */
static int accept_file(static_file *file) {
  struct stat st;
  if (fstat(file->fd, &st)) return -errno;
  if (S_ISDIR(st.st_mode)) return -EISDIR;
  if (!S_ISREG(st.st_mode)) return -ENOENT;
  /* Reads of what is not cached must wait, in the kernel, instead of failing. */
  if (fcntl(file->fd, F_SETFL, 0)) return -errno;
  file->size = (uint64_t)st.st_size;
  return 0;
}

static int open_regular(static_file *out, int root, const char *path, um_time deadline) {
  out->fd = open_inside(root, path, deadline);
  if (out->fd < 0) return out->fd;
  int result = accept_file(out);
  if (result) um_close(out->fd);
  return result;
}

int static_open(static_file *out, int root, const char *path, um_time deadline) {
  static const char index_name[] = "/index.html";
  char index[PATH_MAX];
  size_t length = strlen(path);
  int result = -EISDIR;
  if (path[length - 1] != '/') result = open_regular(out, root, path + 1, deadline);
  else length--;
  if (result == -EISDIR) {
    if (length + sizeof index_name > sizeof index) return 404;
    memcpy(index, path, length); /* NOLINT: the next line ends it */
    memcpy(index + length, index_name, sizeof index_name);
    path = index;
    result = open_regular(out, root, path + 1, deadline);
    if (result == -EISDIR) result = -ENOENT;
  }
  if (result) return status_for(result);
  out->type = content_type(path);
  return 0;
}

/* A small file that is in the page cache is read at once: waiting for a tick of the loop, in which
 * others have their turn, takes longer. Large ones wait, so that others have it. */
#define SMALL 16384

ssize_t static_read(const static_file *file, char *into, size_t length, uint64_t from) {
  struct iovec iov = {into, length};
  ssize_t n = length > SMALL ? 0 : preadv2(file->fd, &iov, 1, (off_t)from, RWF_NOWAIT);
  return n > 0 ? n : um_read(file->fd, into, length, (int64_t)from, UM_FOREVER);
}
