#include "session_file.h"

#include "exit_codes.h"
#include "say.h"
#include "tls_messages.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int session_load(const char *file, SSL_SESSION **out) {
  *out = NULL;
  FILE *in = fopen(file, "re");
  if (!in && errno == ENOENT) return EXIT_OK;
  if (!in) return fail(EXIT_FILE, "cannot read --session %s: %s", file, strerror(errno));
  *out = PEM_read_SSL_SESSION(in, NULL, NULL, NULL);
  fclose(in);
  if (*out) return EXIT_OK;
  return fail(EXIT_FILE, "--session %s holds no session (%s): delete it to start anew", file,
              openssl_reason());
}

int session_save(const char *file, SSL_SESSION *session) {
  int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  FILE *out = fd < 0 ? NULL : fdopen(fd, "w");
  int written = out && PEM_write_SSL_SESSION(out, session);
  if (out) written = !fclose(out) && written;
  else if (fd >= 0) close(fd);
  return written ? EXIT_OK
                 : fail(EXIT_FILE, "cannot write --session %s: %s", file, strerror(errno));
}
