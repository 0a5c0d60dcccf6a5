#!/bin/sh
# Installs a build elsewhere and uses it as a stranger would: check.sh SOURCE BUILD COMPILER...
# Speaks TAP.
set -u
source=$1 build=$2
shift 2
compiler=$*
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
trap 'exit 1' INT TERM

number=0
# ok NAME COMMAND...: one test; what the command says is its diagnosis.
ok() {
  name=$1
  shift
  number=$((number + 1))
  if "$@" >"$stage/log" 2>&1; then
    echo "ok $number - $name"
  else
    echo "not ok $number - $name"
    # meson shows stderr of a failed TAP test, and not its comments.
    sed 's/^/  /' "$stage/log" >&2
  fi
}

install_it() {
  DESTDIR=$stage/root meson install -C "$build" --no-rebuild
}

# A DESTDIR is not where the library believes to be: that one line is all that has to change.
relocate() {
  pc=$(find "$stage/root" -name bio_uring.pc)
  [ -n "$pc" ] && sed -i "s|^prefix=|prefix=$stage/root|" "$pc"
  PKG_CONFIG_PATH=$(dirname "$pc")
  export PKG_CONFIG_PATH
}

files_installed() {
  for header in "$source"/include/bio_uring.h "$source"/include/bio_uring/*.h; do
    set -- "$stage"/root/*/*/include "$stage"/root/*/include
    found=
    for dir; do
      [ -f "$dir/${header#"$source/include/"}" ] && found=1
    done
    [ -n "$found" ] || { echo "${header#"$source/"} is not installed"; return 1; }
  done
}

library() { find "$stage/root" -name "$1" ! -type l; }

soname() { readelf -d "$(library 'libbio_uring.so.*')" | grep 'SONAME.*\[libbio_uring\.so\.0\]'; }

exported() {
  nm -D --defined-only "$(library 'libbio_uring.so.*')" | awk '$2 != "A" { print $3 }' | sed 's/@.*//' | sort
}

declared() {
  sed -n 's/^UM_API [^(]*[ *]\([A-Za-z0-9_]*\)(.*/\1/p' "$source"/include/bio_uring/*.h | sort
}

only_ours_exported() {
  ! exported | grep -Ev '^(um_[a-z0-9_]+|BIO_[a-z_]*uring[a-z_]*|SSL_set_uring_fd)$'
}

all_declared_exported() {
  exported >"$stage/exported"
  declared >"$stage/declared"
  [ -s "$stage/declared" ] || { echo "no UM_API function found"; return 1; }
  echo "declared but not exported:"
  ! comm -13 "$stage/exported" "$stage/declared" | grep .
}

all_exported_declared() {
  echo "exported but in no public header:"
  ! comm -23 "$stage/exported" "$stage/declared" | grep .
}

# What pkg-config says is split into words, as on any compiler command line.
# shellcheck disable=SC2046,SC2086
use() {
  $compiler -Wall -Wextra -pedantic -Werror -o "$stage/consumer" "$source/tests/install/consumer.c" \
    $(pkg-config --cflags --libs "$@" bio_uring)
}

use_shared() {
  use && LD_LIBRARY_PATH=$(dirname "$(library 'libbio_uring.so.*')") "$stage/consumer" &&
    readelf -d "$stage/consumer" | grep -F libbio_uring.so.0
}

use_static() {
  find "$stage/root" -name 'libbio_uring.so*' -exec rm {} +
  use --static && "$stage/consumer"
}

# shellcheck disable=SC2046
use_cplusplus() {
  echo '#include <bio_uring.h>' |
    c++ -x c++ -std=c++17 -Wall -Wextra -Werror -fsyntax-only $(pkg-config --cflags bio_uring) -
}

echo "TAP version 13"
ok "installs" install_it
relocate
ok "every public header is installed" files_installed
ok "the shared library has a versioned soname" soname
ok "only public names are exported" only_ours_exported
ok "every declared function is exported" all_declared_exported
ok "every exported function is declared" all_exported_declared
ok "a program builds and runs with the shared library" use_shared
ok "a program builds and runs with the static library" use_static
if command -v c++ >/dev/null 2>&1; then
  ok "the headers compile as C++" use_cplusplus
else
  number=$((number + 1))
  echo "ok $number - the headers compile as C++ # SKIP no C++ compiler"
fi
echo "1..$number"
