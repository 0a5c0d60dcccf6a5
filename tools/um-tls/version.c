#include "commands.h"
#include "exit_codes.h"

#include <bio_uring/reactor.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <sys/utsname.h>

static void print_backend(const char *name) {
  um_reactor *reactor;
  um_error error;
  um_reactor_config config = {.backend = name};
  int result = um_reactor_create(&reactor, &config, &error);
  if (!result) {
    printf("backend %-7s works here\n", um_reactor_backend(reactor));
    um_reactor_destroy(reactor);
  } else {
    printf("backend %-7s not usable: %s\n", name, error.message);
  }
}

int command_version(void) {
  struct utsname system;
  printf("um-tls %s (libbio_uring)\n%s\n", um_version(), OpenSSL_version(OPENSSL_VERSION));
  if (!uname(&system)) printf("%s %s %s\n", system.sysname, system.release, system.machine);
  print_backend("uring");
  return EXIT_OK;
}
