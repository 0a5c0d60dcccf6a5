#include "tls_messages.h"

#include <errno.h>
#include <openssl/err.h>
#include <string.h>

const char *openssl_reason(void) {
  unsigned long error = ERR_peek_error(); /* the first is the cause, later ones its effects */
  const char *reason = NULL;
  if (error && ERR_SYSTEM_ERROR(error)) reason = strerror(ERR_GET_REASON(error));
  else if (error) reason = ERR_reason_error_string(error);
  ERR_clear_error();
  return reason ? reason : "no reason given";
}
