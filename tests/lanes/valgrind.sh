#!/bin/sh
# lane: memcheck over the reactor's tests and those of TLS streams, on the epoll backend: errors and definite leaks fail
# needs: what ./run setup installs, and valgrind (installed)
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
"$root/scripts/setup.sh" valgrind
"$root/run" build
# Another build: tests then know valgrind by its header, and skip what it lacks.
build=$root/build/valgrind
rm -rf "$build"
meson setup "$build" "$root" -Dwerror=true -Dtools=false -Dexamples=false -Dbench=false \
  >"$root/build/variant.log" || { cat "$root/build/variant.log"; exit 1; }
ninja --quiet -C "$build" tests/reactor/test_reactor_plain tests/tls/test_tls_offload_plain \
  tests/tls/test_tls_crowd_plain

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Only definite leaks: glibc's thread descriptors, of workers that idle when the process ends, look
# possibly lost. valgrind 3.19 has no io_uring: hence epoll. Of syscalls that it does not know it
# warns; the library does without them.
check() {
  name=${1##*/}
  echo "-- $name"
  status=0
  UM_BACKEND=epoll UM_TEST_CERTS="$root/build/certs" timeout 1200 \
    valgrind --error-exitcode=9 --leak-check=full --show-leak-kinds=definite \
    --errors-for-leak-kinds=definite --fair-sched=yes --num-callers=30 \
    --log-file="$tmp/$name.%p" "$1" >"$tmp/tap" 2>"$tmp/said" || status=$?
  passed=$(grep '^ok ' "$tmp/tap" | grep -vc '# SKIP' || true)
  skipped=$(grep -c '^ok .*# SKIP' "$tmp/tap" || true)
  grep '^ok .*# SKIP' "$tmp/tap" || true
  failed=0
  # Tests fork: what valgrind says of the children stays theirs, but for a note here.
  if [ $status != 0 ]; then
    failed=1
    tail -n 3 "$tmp/tap"
    cat "$tmp/said"
    cat "$tmp/$name".* | grep '^==' | head -n 300
    echo "$name ended with $status"
  fi
  echo "$passed passed, $failed failed, $skipped skipped" | tee -a "$tmp/results" | sed "s/^/$name: /"
}

check "$build/tests/reactor/test_reactor_plain"
check "$build/tests/tls/test_tls_offload_plain"
check "$build/tests/tls/test_tls_crowd_plain"
"$root/scripts/sum-tests.sh" <"$tmp/results"
