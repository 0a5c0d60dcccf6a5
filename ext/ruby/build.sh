#!/bin/sh
# Builds the extension into BUILD/ext/ruby: ext/ruby/build.sh BUILD; ./run build calls it.
# Says why and succeeds where there is no Ruby to build it for.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
build=$(CDPATH= cd -- "$1" && pwd)
ruby=${RUBY:-ruby}
out=$build/ext/ruby

skip() { echo "ruby extension: not built: $*" >&2; exit 0; }

command -v "$ruby" >/dev/null 2>&1 || skip "no ruby (install ruby and ruby-dev)"
headers=$("$ruby" -rrbconfig -e 'print RbConfig::CONFIG["rubyhdrdir"]')
[ -f "$headers/ruby.h" ] || skip "no headers of $("$ruby" -e 'print RUBY_DESCRIPTION') (install ruby-dev)"
"$ruby" -ropenssl -e '' 2>/dev/null || skip "this ruby has no openssl"

mkdir -p "$out"
# What mkmf does not look at: another Ruby, the archive, its headers.
stamp=$("$ruby" -e 'print RUBY_DESCRIPTION')
archive=$build/libbio_uring.a
if [ "$(cat "$out/.ruby" 2>/dev/null)" != "$stamp" ] || [ ! -f "$out/Makefile" ] ||
  [ "$here/ext/um_tls/extconf.rb" -nt "$out/Makefile" ]; then
  rm -rf "$out"
  mkdir -p "$out"
  (cd "$out" && "$ruby" "$here/ext/um_tls/extconf.rb" \
    --with-bio-uring-include="$here/../../include" --with-bio-uring-archive="$archive") \
    >"$out/extconf.log" 2>&1 || { cat "$out/extconf.log" >&2; exit 1; }
  printf '%s' "$stamp" >"$out/.ruby"
fi
if [ -f "$out/um_tls.so" ] &&
  [ -n "$(find "$archive" "$here/../../include" -newer "$out/um_tls.so" -print 2>/dev/null | head -n 1)" ]; then
  rm -f "$out"/*.o "$out/um_tls.so"
fi
make -s -C "$out" >"$out/make.log" 2>&1 || { cat "$out/make.log" >&2; exit 1; }
grep -h 'warning:' "$out/make.log" >&2 || true
