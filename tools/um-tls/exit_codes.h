/* What um-tls exits with. The numbers of sysexits.h where one fits. `um-tls
 * --help` prints the same table from exit_codes.c. */
#ifndef UM_TLS_EXIT_CODES_H
#define UM_TLS_EXIT_CODES_H

#include <stdio.h>

enum {
  EXIT_OK = 0,
  EXIT_FAILED = 1,       /* anything without a code of its own; errors in a load run */
  EXIT_USAGE = 64,       /* EX_USAGE */
  EXIT_TRUNCATED = 65,   /* EX_DATAERR */
  EXIT_FILE = 66,        /* EX_NOINPUT */
  EXIT_RESOLVE = 68,     /* EX_NOHOST */
  EXIT_UNREACHABLE = 69, /* EX_UNAVAILABLE */
  EXIT_NO_REACTOR = 71,  /* EX_OSERR */
  EXIT_LISTEN = 73,      /* EX_CANTCREAT */
  EXIT_LOST = 74,        /* EX_IOERR */
  EXIT_TIMEOUT = 75,     /* EX_TEMPFAIL */
  EXIT_TLS = 76,         /* EX_PROTOCOL */
  EXIT_VERIFY = 77,      /* EX_NOPERM */
};

/* The code for a negative result of the library, met on a connection. */
int exit_code_for(int error);
void exit_codes_print(FILE *out);

#endif
