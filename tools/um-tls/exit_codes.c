#include "exit_codes.h"

#include <bio_uring/base.h>

static const struct { int code; const char *meaning; } meanings[] = {
  {EXIT_OK, "everything went well (serve: stopped by SIGTERM or SIGINT)"},
  {EXIT_FAILED, "a failure without a code of its own; load: any request failed"},
  {EXIT_USAGE, "the command line cannot be understood"},
  {EXIT_TRUNCATED, "the peer closed without close_notify: data may be missing"},
  {EXIT_FILE, "a certificate, key, CA, session file or the root directory cannot be used"},
  {EXIT_RESOLVE, "the host name cannot be resolved"},
  {EXIT_UNREACHABLE, "the peer cannot be reached: refused, or no route"},
  {EXIT_NO_REACTOR, "the reactor cannot start: io_uring is not usable here"},
  {EXIT_LISTEN, "cannot listen: the port is in use, not permitted, or not ours"},
  {EXIT_LOST, "the connection was lost: reset, or an input/output error"},
  {EXIT_TIMEOUT, "the peer did not answer in time"},
  {EXIT_TLS, "TLS failed: no common parameters, an alert, or not TLS at all"},
  {EXIT_VERIFY, "the peer's certificate was not accepted"},
};

void exit_codes_print(FILE *out) {
  fputs("Exit codes:\n", out);
  for (size_t i = 0; i < sizeof meanings / sizeof *meanings; i++)
    fprintf(out, "  %2d  %s\n", meanings[i].code, meanings[i].meaning);
}

int exit_code_for(int error) {
  switch (error) {
  case UM_ETRUNCATED: return EXIT_TRUNCATED;
  case UM_ECERT: return EXIT_FILE;
  case UM_ERESOLVE: return EXIT_RESOLVE;
  case UM_ENOURING: return EXIT_NO_REACTOR;
  case UM_ETLS:
  case UM_EPLAINTEXT: return EXIT_TLS;
  case UM_EVERIFY: return EXIT_VERIFY;
  case -ETIMEDOUT: return EXIT_TIMEOUT;
  case -ECONNREFUSED:
  case -EHOSTUNREACH:
  case -ENETUNREACH:
  case -EHOSTDOWN:
  case -ENETDOWN:
  case -EADDRNOTAVAIL: return EXIT_UNREACHABLE;
  case -ECONNRESET:
  case -ECONNABORTED:
  case -EPIPE:
  case -EIO: return EXIT_LOST;
  default: return EXIT_FAILED;
  }
}
