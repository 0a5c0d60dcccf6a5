/* io.h on files and pipes, on the real kernel. */
#include "harness.h"

#include "reactor/uring_probe.h"

#include <bio_uring/io.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

SUITE(io_files);

static int temporary(void) {
  char path[] = "/tmp/um-test-XXXXXX";
  int fd = mkostemp(path, O_CLOEXEC);
  CHECK(fd >= 0);
  unlink(path);
  return fd;
}

static int files(void *argument) {
  int fd = temporary();
  char bytes[16] = {0};
  (void)argument;
  CHECK_EQ(um_write(fd, "hello world", 11, -1, UM_FOREVER), 11); /* at and moves the position */
  CHECK_EQ(lseek(fd, 0, SEEK_CUR), 11);
  CHECK_EQ(um_write(fd, "HELLO", 5, 0, UM_FOREVER), 5);          /* does not */
  CHECK_EQ(lseek(fd, 0, SEEK_CUR), 11);
  CHECK_EQ(um_read(fd, bytes, 5, 0, UM_FOREVER), 5);
  CHECK(!memcmp(bytes, "HELLO", 5));
  CHECK_EQ(um_read(fd, bytes, 16, 6, UM_FOREVER), 5);
  CHECK(!memcmp(bytes, "world", 5));
  CHECK_EQ(um_read(fd, bytes, 16, -1, UM_FOREVER), 0);
  CHECK_EQ(um_read(fd, bytes, 16, 1000, UM_FOREVER), 0);
  CHECK_EQ(lseek(fd, 2, SEEK_SET), 2);
  CHECK_EQ(um_read(fd, bytes, 3, -1, UM_FOREVER), 3);
  CHECK_EQ(lseek(fd, 0, SEEK_CUR), 5);
  CHECK_EQ(um_write(fd, "", 0, 0, UM_FOREVER), 0);
  CHECK_EQ(um_write(fd, "far", 3, (int64_t)1 << 33, UM_FOREVER), 3); /* beyond 32 bits */
  CHECK_EQ(um_read(fd, bytes, 3, (int64_t)1 << 33, UM_FOREVER), 3);
  CHECK(!memcmp(bytes, "far", 3));
  CHECK_EQ(um_close(fd), 0);
  CHECK_EQ(um_read(-1, bytes, 1, 0, UM_FOREVER), -EBADF);
  CHECK_EQ(um_write(-1, bytes, 1, 0, UM_FOREVER), -EBADF);
  return 0;
}

TEST(io_files, read_and_write_with_and_without_offset) { run_fibers(files, NULL); }

static int opens(void *argument) {
  (void)argument;
  char folder[] = "/tmp/um-test-XXXXXX";
  CHECK(mkdtemp(folder) != NULL);
  int directory = um_openat(AT_FDCWD, folder, O_DIRECTORY | O_RDONLY, 0, UM_FOREVER);
  CHECK(directory >= 0);
  int fd = um_openat(directory, "file", O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0640, UM_FOREVER);
  CHECK(fd >= 0);
  struct stat status;
  CHECK_EQ(fstat(fd, &status), 0);
  CHECK_EQ(status.st_mode & 0777 & ~0027, 0640 & ~0027);
  CHECK_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
  CHECK_EQ(um_openat(directory, "file", O_CREAT | O_EXCL | O_RDWR, 0600, UM_FOREVER), -EEXIST);
  CHECK_EQ(um_openat(directory, "none", O_RDONLY, 0, UM_FOREVER), -ENOENT);
  CHECK_EQ(unlinkat(directory, "file", 0), 0);
  CHECK_EQ(um_close(fd), 0);
  CHECK_EQ(um_close(directory), 0);
  CHECK_EQ(rmdir(folder), 0);
  return 0;
}

TEST(io_files, opens) { run_fibers(opens, NULL); }

static int splices(void *argument) {
  int ends[2], out[2], fd = temporary();
  char bytes[16];
  (void)argument;
  CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
  local_pair(out);
  CHECK_EQ(um_write(fd, "0123456789", 10, 0, UM_FOREVER), 10);
  CHECK_EQ(um_splice(fd, 3, ends[1], -1, 5, 0, UM_FOREVER), 5);
  CHECK_EQ(um_splice(ends[0], -1, out[0], -1, 5, 0, UM_FOREVER), 5);
  CHECK_EQ(um_recv(out[1], bytes, sizeof bytes, 0, UM_FOREVER), 5);
  CHECK(!memcmp(bytes, "34567", 5));
  CHECK_EQ(um_splice(fd, 100, ends[1], -1, 5, 0, UM_FOREVER), 0); /* the file's end */
  CHECK_EQ(um_splice(-1, -1, ends[1], -1, 5, 0, UM_FOREVER), -EBADF);
  CHECK_EQ(um_write(ends[1], "abc", 3, -1, UM_FOREVER), 3);
  CHECK_EQ(um_splice(ends[0], -1, fd, 20, 3, 0, UM_FOREVER), 3);
  CHECK_EQ(um_read(fd, bytes, 3, 20, UM_FOREVER), 3);
  CHECK(!memcmp(bytes, "abc", 3));
  for (int i = 0; i < 2; i++) close(ends[i]), close(out[i]);
  close(fd);
  return 0;
}

TEST(io_files, splices) { run_fibers(splices, NULL); }

static int in_pipe(int fd) {
  int bytes;
  CHECK_EQ(ioctl(fd, FIONREAD, &bytes), 0);
  return bytes;
}

/* What a thread of the kernel was to do is done or not begun, whichever the call says. */
static int tries(void *argument) {
  (void)argument;
  for (int i = 0; i < 50; i++) {
    int from[2], to[2], fd = temporary();
    CHECK(pipe2(from, O_CLOEXEC) == 0 && pipe2(to, O_CLOEXEC) == 0);
    CHECK_EQ(um_write(from[1], "12345678", 8, -1, UM_FOREVER), 8);
    ssize_t moved = um_splice(from[0], -1, to[1], -1, 5, 0, um_now() - 1);
    CHECK(moved == 5 || (moved == -ETIMEDOUT && on_uring()));
    CHECK_EQ(in_pipe(to[0]), moved < 0 ? 0 : 5);
    CHECK_EQ(in_pipe(from[0]), moved < 0 ? 8 : 3);
    ssize_t written = um_write(fd, "1234", 4, 0, um_now() - 1);
    CHECK(written == 4 || (written == -ETIMEDOUT && on_uring()));
    CHECK_EQ(lseek(fd, 0, SEEK_END), written < 0 ? 0 : 4);
    for (int end = 0; end < 2; end++) close(from[end]), close(to[end]);
    close(fd);
  }
  return 0;
}

TEST(io_files, tries_do_all_or_nothing) { run_fibers(tries, NULL); }

/* ---- pipes ---- */

static int reads_forever(void *argument) {
  char bytes[16];
  return (int)um_read(*(int *)argument, bytes, sizeof bytes, -1, UM_FOREVER);
}

static int drains_pipe(void *argument) {
  int *ends = argument;
  char bytes[3333];
  size_t got = 0;
  for (ssize_t n; (n = um_read(ends[0], bytes, sizeof bytes, -1, UM_FOREVER)) > 0; got += (size_t)n)
    CHECK_EQ(um_fiber_yield(), 0);
  CHECK_EQ(got, 1 << 20);
  return 0;
}

/* io_uring of Linux 6.1 leaves pipes to threads of its own: a try is over before they have tried.
 * It is late then, but loses nothing. 6.12 reads them at once, and keeps receiving buffers. */
static ssize_t tries_to_read(int fd, char *bytes, size_t length) {
  ssize_t result = um_read(fd, bytes, length, -1, um_now() - 1);
  if (result != -ETIMEDOUT || !on_uring() || um__uring_features()->incremental) return result;
  return um_read(fd, bytes, length, -1, UM_FOREVER);
}

static int pipes(void *argument) {
  int *ends = argument;
  char bytes[16];
  CHECK_EQ(um_read(ends[0], bytes, 16, -1, um_after(1)), -ETIMEDOUT);
  CHECK_EQ(um_read(ends[0], bytes, 16, -1, um_now() - 1), -ETIMEDOUT);
  um_fiber *reader = spawn(reads_forever, &ends[0]);
  yield_times(3);
  um_fiber_cancel(reader);
  CHECK_EQ(join(reader), -ECANCELED);
  CHECK_EQ(um_write(ends[1], "x", 1, -1, UM_FOREVER), 1);
  CHECK_EQ(tries_to_read(ends[0], bytes, 16), 1);
  char *much = calloc(1, 1 << 20);
  CHECK(much != NULL);
  ssize_t written = um_write(ends[1], much, 1 << 20, -1, um_after(200));
  CHECK(written > 0 && written < 1 << 20); /* the pipe is full */
  CHECK_EQ(um_write(ends[1], much, 1, -1, um_after(1)), -ETIMEDOUT);
  reader = spawn(drains_pipe, ends);
  CHECK_EQ(um_write(ends[1], much, (1 << 20) - (size_t)written, -1, UM_FOREVER), (1 << 20) - written);
  free(much);
  CHECK_EQ(um_close(ends[1]), 0);
  join(reader);
  return 0;
}

TEST(io_files, pipes_wait_and_writes_are_whole) {
  for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
    int ends[2];
    CHECK_EQ(pipe2(ends, O_CLOEXEC | (nonblocking ? O_NONBLOCK : 0)), 0);
    run_fibers(pipes, ends);
    close(ends[0]);
  }
}

static int broken_pipe(void *argument) {
  int ends[2];
  (void)argument;
  CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
  close(ends[0]);
  CHECK_EQ(um_write(ends[1], "x", 1, -1, UM_FOREVER), -EPIPE); /* SIGPIPE would end us */
  int fd = temporary();
  CHECK_EQ(um_write(fd, "x", 1, 0, UM_FOREVER), 1);
  CHECK_EQ(um_splice(fd, 0, ends[1], -1, 1, 0, UM_FOREVER), -EPIPE);
  close(fd);
  close(ends[1]);
  return 0;
}

TEST(io_files, no_sigpipe_on_pipes) { run_fibers(broken_pipe, NULL); }

static int write_to_socket(void *argument) {
  int *fds = argument;
  close(fds[1]);
  ssize_t first = um_write(fds[0], "x", 1, -1, UM_FOREVER);
  CHECK_EQ(first, -EPIPE);
  return 0;
}

TEST(io_files, no_sigpipe_writing_to_a_socket) {
  int fds[2];
  local_pair(fds);
  run_fibers(write_to_socket, fds);
  close(fds[0]);
}

TEST(io_files, all_need_a_fiber) {
  char byte = 0;
  CHECK_EQ(um_read(0, &byte, 1, -1, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_write(1, &byte, 1, -1, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_openat(AT_FDCWD, "/", O_RDONLY, 0, UM_FOREVER), UM_ENOTFIBER);
  CHECK_EQ(um_splice(0, -1, 1, -1, 1, 0, UM_FOREVER), UM_ENOTFIBER);
}
