/* Loading: the extension and the openssl gem must use one and the same libssl. */
#include "um_ruby.h"

#include <dlfcn.h>
#include <string.h>

VALUE um_eError, um_eTimeout;

void um_raise(int code) {
  if (code > -20000) rb_syserr_fail(-code, NULL);
  rb_raise(um_eError, "%s", um_strerror(code));
}

/* Where the gem's extension has SSL_new from. False when that cannot be told: the gem
 * has a libssl inside, whose symbols nobody sees. */
static bool find_gems_libssl(Dl_info *info) {
  VALUE features = rb_gv_get("$LOADED_FEATURES");
  for (long i = 0; i < RARRAY_LEN(features); i++) {
    VALUE feature = rb_ary_entry(features, i);
    const char *path = StringValueCStr(feature), *name = strrchr(path, '/');
    if (!name || strcmp(name, "/openssl.so")) continue;
    void *library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    void *symbol = library ? dlsym(library, "SSL_new") : NULL;
    if (library) dlclose(library);
    if (symbol && dladdr(symbol, info)) return true;
  }
  return false;
}

/* Two copies of libssl can be in a process. An SSL of one must not reach the other, not
 * even if both are of the same version. */
static void check_libssl(void) {
  Dl_info ours, theirs;
  if (!dladdr((void *)(uintptr_t)SSL_new, &ours)) ours = (Dl_info){.dli_fname = "a libssl"};
  bool found = find_gems_libssl(&theirs);
  VALUE version = rb_const_get(rb_path2class("OpenSSL"), rb_intern("OPENSSL_LIBRARY_VERSION"));
  if (found && ours.dli_fbase && theirs.dli_fbase == ours.dli_fbase) return;
  rb_raise(rb_eLoadError,
           "um-tls is linked with %s (%s) and the openssl gem with %s (%s): an SSL of one cannot be "
           "used by the other. Rebuild um-tls against the gem's OpenSSL (gem pristine um-tls).",
           ours.dli_fname, OpenSSL_version(OPENSSL_VERSION),
           found ? theirs.dli_fname : "one of its own",
           StringValueCStr(version));
}

static VALUE make_timeout_error(void) {
  ID timeout = rb_intern("TimeoutError");
  if (rb_const_defined(rb_cIO, timeout)) return rb_const_get(rb_cIO, timeout);
  return rb_define_class_id_under(um_cUM, timeout, rb_eIOError);
}

__attribute__((visibility("default"))) void Init_um_tls(void) {
#ifdef HAVE_RB_EXT_RACTOR_SAFE
  rb_ext_ractor_safe(true);
#endif
  rb_require("openssl");
  check_libssl();
  um_cUM = rb_define_class("UM", rb_cObject);
  /* Document-class: UM::Error
   * What the library reports and no Errno means. */
  um_eError = rb_define_class_under(um_cUM, "Error", rb_eStandardError);
  um_eTimeout = make_timeout_error();
  if (!rb_const_defined(um_cUM, rb_intern("TimeoutError")))
    /* IO::TimeoutError where Ruby has it: a connection's deadline passed. */
    rb_define_const(um_cUM, "TimeoutError", um_eTimeout);
  VALUE tls = rb_define_module_under(um_cUM, "TLS");
  /* The version of libbio_uring. */
  rb_define_const(um_cUM, "LIBRARY_VERSION", rb_obj_freeze(rb_str_new_cstr(um_version())));
  /* The version of the OpenSSL that both this and the openssl gem use. */
  rb_define_const(tls, "OPENSSL_VERSION", rb_obj_freeze(rb_str_new_cstr(OpenSSL_version(OPENSSL_VERSION))));
  um_init_connection(tls);
  um_init_machine();
  um_init_machine_io();
  um_init_queue();
}
