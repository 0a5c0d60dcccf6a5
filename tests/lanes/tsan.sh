#!/bin/sh
# lane: ThreadSanitizer over fibers, sync objects, posts and what else crosses threads
# needs: what ./run setup installs
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
"$root/run" build
build=$root/build/tsan
rm -rf "$build"
# Criterion forks its workers in a way that ThreadSanitizer does not survive: a plain runner.
meson setup "$build" "$root" -Dwerror=true -Db_sanitize=thread -Dtools=false -Dexamples=false \
  -Dbench=false >"$root/build/variant.log" || { cat "$root/build/variant.log"; exit 1; }
ninja --quiet -C "$build" tests/reactor/test_reactor_plain tests/tls/test_tls_offload_plain \
  tests/tls/test_tls_crowd_plain
exec "$root/scripts/meson-tests.sh" "$build" "reactor plain" "tls offload plain" "tls crowd plain"
