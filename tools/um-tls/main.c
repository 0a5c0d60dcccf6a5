/* um-tls: the library as a program. */
#include "commands.h"
#include "exit_codes.h"
#include "say.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct {
  const char *name;
  int (*run)(int argc, char **argv);
  const char *about;
} commands[] = {
  {"serve", command_serve, "a TLS server: files over HTTP/1.1, or an echo"},
  {"connect", command_connect, "a TLS connection on standard input and output"},
  {"load", command_load, "a load generator: rate, latencies, errors"},
};

#define COMMANDS (sizeof commands / sizeof *commands)

static int print_help(void) {
  puts("Usage: um-tls COMMAND [OPTION...]\n\n"
       "TLS servers and clients on libbio_uring: OpenSSL over io_uring, thousands of\n"
       "connections to a thread.\n\nCommands:");
  for (size_t i = 0; i < COMMANDS; i++) printf("  %-10s %s\n", commands[i].name, commands[i].about);
  puts("\n  um-tls COMMAND --help   the options of a command, with examples\n"
       "  um-tls --version        versions, and which backends work here\n\n"
       "Environment:\n"
       "  UM_BACKEND     how the kernel is talked to: uring, epoll (default: uring where it works)\n"
       "  UM_LOG         what the library says on standard error: off, error, warning (default),\n"
       "                 info or debug\n"
       "  SSLKEYLOGFILE  a file to which the secrets of all connections are appended, for\n"
       "                 Wireshark: who reads it can decrypt them (default: none)\n\n"
       "Example: a server, and a client that asks it for a page:\n"
       "  um-tls serve --listen localhost:8443 --cert cert.pem --key key.pem --root . &\n"
       "  printf 'GET / HTTP/1.0\\r\\n\\r\\n' | um-tls connect localhost:8443 --ca ca.pem\n");
  exit_codes_print(stdout);
  return EXIT_OK;
}

/* A standard descriptor that is closed would become a socket's: and be read as if
 * it were the user's. */
static void hold_standard_descriptors(void) {
  int fd;
  do fd = open("/dev/null", O_RDWR);
  while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd >= 0) close(fd);
}

/* malloc(3) keeps what was a mapping of its own once such sizes have become usual: after 300
 * slow readers of a large file 90 MiB. A threshold that was set stays where it is. */
static void give_memory_back(void) {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 128 << 10);
#endif
}

static int run(int argc, char **argv) {
  if (argc < 2) return fail(EXIT_USAGE, "no command given; see um-tls --help");
  if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help"))
    return print_help();
  if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "version")) return command_version();
  for (size_t i = 0; i < COMMANDS; i++) {
    if (strcmp(argv[1], commands[i].name)) continue;
    say_as(commands[i].name);
    return commands[i].run(argc - 1, argv + 1);
  }
  return fail(EXIT_USAGE, "unknown command %s; see um-tls --help", argv[1]);
}

/* A result that nobody can read is none. */
static int finish(int code) {
  if (!fflush(stdout) && !ferror(stdout)) return code;
  return fail(code ? code : EXIT_LOST, "cannot write to standard output: %s", strerror(errno));
}

int main(int argc, char **argv) {
  hold_standard_descriptors();
  give_memory_back();
  signal(SIGPIPE, SIG_IGN); /* a closed standard output is an error to report, not a death */
  return finish(run(argc, argv));
}
