#!/bin/sh
# Builds in build/NAME with other options and runs its meson tests:
# scripts/variant.sh NAME [meson setup options]. $CC chooses the compiler.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
build=$root/build/$1
shift
# Options may have changed since the folder was made, so it starts anew.
rm -rf "$build"
meson setup "$build" "$root" "$@" >"$root/build/variant.log" || { cat "$root/build/variant.log"; exit 1; }
ninja --quiet -C "$build"
exec "$root/scripts/meson-tests.sh" "$build"
