/* deny_uring enosys|eperm COMMAND [ARGUMENT...]: runs it where io_uring_setup(2) fails so, as
 * on a kernel without io_uring, or as in a container. Exits 77 where no filter can be set. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int deny(int error) {
  struct sock_filter program[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog filter = {sizeof program / sizeof *program, program};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
  return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
}

int main(int argc, char **argv) {
  int error = argc < 3 ? 0 : !strcmp(argv[1], "enosys") ? ENOSYS : !strcmp(argv[1], "eperm") ? EPERM : 0;
  if (!error) return fputs("usage: deny_uring enosys|eperm COMMAND [ARGUMENT...]\n", stderr), 64;
  if (deny(error)) return perror("deny_uring: no seccomp filter"), 77;
  execvp(argv[2], argv + 2);
  return perror(argv[2]), 127;
}
