#include "error_queue.h"

#include "reactor/alloc.h"

#include <openssl/err.h>

#define MOST 16 /* the depth of OpenSSL's own queue */

struct um_saved_errors {
  int count;
  struct {
    unsigned long code;
    char *file, *function, *data; /* copies: OpenSSL frees its own with the entry */
    int line;
  } errors[MOST];
};

um_saved_errors *um__errors_save(void) {
  if (!ERR_peek_error()) return NULL;
  um_saved_errors *saved = um__alloc(sizeof *saved);
  for (int i = 0; saved && i < MOST; i++) {
    const char *file, *function, *data;
    int flags;
    saved->errors[i].code = ERR_get_error_all(&file, &saved->errors[i].line, &function, &data, &flags);
    if (!saved->errors[i].code) break;
    saved->errors[i].file = um__strdup(file);
    saved->errors[i].function = um__strdup(function);
    if (flags & ERR_TXT_STRING) saved->errors[i].data = um__strdup(data);
    saved->count++;
  }
  ERR_clear_error();
  return saved;
}

void um__errors_restore(um_saved_errors *saved) {
  if (ERR_peek_error()) ERR_clear_error();
  if (!saved) return;
  for (int i = 0; i < saved->count; i++) {
    unsigned long code = saved->errors[i].code;
    char *data = saved->errors[i].data;
    ERR_new();
    ERR_set_debug(saved->errors[i].file, saved->errors[i].line, saved->errors[i].function);
    if (data) ERR_set_error(ERR_GET_LIB(code), ERR_GET_REASON(code), "%s", data);
    else ERR_set_error(ERR_GET_LIB(code), ERR_GET_REASON(code), NULL);
    um__free(saved->errors[i].file);
    um__free(saved->errors[i].function);
    um__free(data);
  }
  um__free(saved);
}
