# frozen_string_literal: true

# Finds libbio_uring: what --with-bio-uring-include=DIR and --with-bio-uring-archive=FILE name
# (a build of the tree says so), else an installed one through pkg-config, else builds the
# archive in the tree that --with-bio-uring-tree=DIR names or that this file lies in.
require "mkmf"

def build_archive(tree) # :nodoc:
  return unless tree && File.exist?(File.join(tree, "src", "bio_uring.c"))
  folder = File.join(Dir.pwd, "bio_uring")
  parts = %w[tests tools examples bench man].map { |part| "-D#{part}=false" }
  ok = File.exist?(File.join(folder, "build.ninja")) ||
       xsystem(["meson", "setup", folder, tree, "--buildtype=release", *parts])
  ok && xsystem(["ninja", "-C", folder, "libbio_uring.a"]) or
    abort "um-tls: building libbio_uring in #{tree} failed; mkmf.log says how"
  [File.join(tree, "include"), File.join(folder, "libbio_uring.a")]
end

include_dir = with_config("bio-uring-include")
archive = with_config("bio-uring-archive")
tree = with_config("bio-uring-tree")
installed = !archive && !tree && pkg_config("bio_uring")
unless archive || installed
  include_dir, archive = build_archive(tree || File.expand_path("../../../..", __dir__))
end

if archive
  # A static archive makes the extension self-contained. Its symbols stay its own: another copy
  # of the library may be in the process.
  $INCFLAGS = "-I#{include_dir} #{$INCFLAGS}"
  $LOCAL_LIBS = "#{archive} #{$LOCAL_LIBS}"
  $DLDFLAGS << " -Wl,--exclude-libs,ALL"
elsif !installed
  abort <<~MESSAGE
    um-tls needs libbio_uring and did not find it.
    Install it (meson install) so that `pkg-config --cflags bio_uring` works, or name its source:
      gem install um-tls -- --with-bio-uring-tree=DIR
  MESSAGE
end

# The same libssl as the openssl gem's, normally the system's.
pkg_config("openssl") || $libs = append_library($libs, "ssl") + " -lcrypto"

# An archive made where liburing is a package of the system does not contain it.
if archive && !try_link("int um_now(void); int um_reactor_create(void *, void *, void *);\n" \
                        "int main(void) { return um_reactor_create(0, 0, 0); }",
                        "#{$LOCAL_LIBS} #{$libs}")
  $libs = append_library($libs, "uring")
end

$CFLAGS << " -std=gnu11 -fvisibility=hidden -Wall -Wextra -Wno-unused-parameter"
# Ruby's own headers do not pass these.
$warnflags = $warnflags.to_s.gsub(/-Wdeclaration-after-statement|-Wdeprecated-declarations/, "") if $warnflags

have_func("rb_io_timeout", "ruby/io.h")
have_func("rb_io_descriptor", "ruby/io.h")
have_func("rb_io_closed_p", "ruby/io.h")
have_func("rb_process_status_new")
have_func("rb_ext_ractor_safe")
have_func("rb_thread_lock_native_thread", "ruby/thread.h")

create_makefile("um_tls")
