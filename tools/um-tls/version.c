#include "commands.h"
#include "exit_codes.h"

#include <bio_uring/observe.h>
#include <bio_uring/reactor.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <sys/utsname.h>

static void print_backend(const char *name) {
  um_reactor *reactor;
  um_error error;
  um_reactor_config config = {.backend = name};
  if (um_reactor_create(&reactor, &config, &error) < 0) {
    printf("backend %-7s not usable: %s\n", name, error.message);
    return;
  }
  printf("backend %-7s works here\n", name);
  um_reactor_destroy(reactor);
}

/* What the environment and the kernel make of it. */
static void print_chosen(void) {
  um_reactor *reactor;
  um_error error;
  if (um_reactor_create(&reactor, NULL, &error) < 0) {
    printf("used: none: %s\n", error.message);
    return;
  }
  printf("used: %s\n", um_reactor_backend(reactor));
  um_reactor_destroy(reactor);
}

int command_version(void) {
  struct utsname system;
  printf("um-tls %s (libbio_uring)\n%s\n", um_version(), OpenSSL_version(OPENSSL_VERSION));
  if (!uname(&system)) printf("%s %s %s\n", system.sysname, system.release, system.machine);
  um_log_set(UM_LOG_ERROR, NULL, NULL); /* a warning would repeat what is printed */
  print_backend("uring");
  print_backend("epoll");
  print_chosen();
  return EXIT_OK;
}
