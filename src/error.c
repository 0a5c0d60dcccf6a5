#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static const struct {
  int code;
  const char *text;
} messages[] = {
    {UM_ENOTFIBER, "this call may wait and must be made in a fiber: spawn one with um_fiber_spawn()"},
    {UM_ETRUNCATED, "the peer ended the connection without close_notify: data may be missing"},
    {UM_ETLS, "TLS failure: um_tls_error() says which"},
    {UM_EVERIFY, "the peer's certificate was not accepted: check the CA file, the name and the dates"},
    {UM_EREENTRANT, "another fiber is inside the same call on this object: let one fiber read"},
    {UM_EFORKED, "the reactor belongs to the parent process: create one after fork"},
    {UM_EWRONGTHREAD, "the object belongs to another thread's reactor: use um_post()"},
    {UM_ECONFIG, "a configuration field is out of range"},
    {UM_ENOURING, "io_uring cannot be used here"},
    {UM_ERESOLVE, "the host name could not be resolved: check the name and the resolver"},
    {UM_ECLOSED, "the object was closed"},
    {UM_ECERT, "the certificate or key could not be used: check the files and that they match"},
    {UM_ETOOLONG, "the limit was reached before the wanted bytes came: allow more, or refuse the peer"},
    {UM_EPLAINTEXT, "the peer speaks plain HTTP on a TLS port: use https"},
    {-ETIMEDOUT, "the deadline passed"},
    {-ECANCELED, "cancelled"},
};

const char *um_strerror(int code) {
  static _Thread_local char unknown[64];
  if (code >= 0) return "no error";
  for (size_t i = 0; i < sizeof messages / sizeof *messages; i++)
    if (messages[i].code == code) return messages[i].text;
  const char *name = strerrordesc_np(-code);
  if (name) return name;
  snprintf(unknown, sizeof unknown, "unknown error %d", code);
  return unknown;
}

int um__fail(um_error *error, int code, const char *format, ...) {
  if (!error) return code;
  error->code = code;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error->message, sizeof error->message, format, arguments);
  va_end(arguments);
  return code;
}

#define UM_STRING_(x) #x
#define UM_STRING(x) UM_STRING_(x)

const char *um_version(void) {
  return UM_STRING(UM_VERSION_MAJOR) "." UM_STRING(UM_VERSION_MINOR) "." UM_STRING(UM_VERSION_PATCH);
}

um_time um_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (um_time)now.tv_sec * UM_SECOND + now.tv_nsec;
}

um_time um_after(int64_t milliseconds) {
  if (milliseconds < 0 || milliseconds > INT64_MAX / UM_MS / 2) return UM_FOREVER;
  return um_now() + milliseconds * UM_MS;
}
