#!/bin/sh
# lane: clang-tidy with the analyser of clang (.clang-tidy), cppcheck and gcc's -fanalyzer
# needs: clang-tidy, cppcheck (installed)
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
"$root/scripts/setup.sh" clang-tidy cppcheck
"$root/run" build
cd "$root"
out=$root/build/analysis
mkdir -p "$out"
passed=0 failed=0

judge() { # NAME LOG: nothing in the log is good
  if [ -s "$2" ]; then
    head -n 60 "$2"
    failed=$((failed + 1))
    echo "$1: not clean; all of it is in ${2#"$root/"}"
  else
    passed=$((passed + 1))
    echo "$1: clean"
  fi
}

# src/ablation.c is not part of what is built; system headers are not ours.
files=$(find src tools/um-tls -name '*.c' ! -name ablation.c)
# shellcheck disable=SC2086
printf '%s\n' $files | xargs -P "$(nproc)" -n 8 clang-tidy -p build/release --quiet >"$out/tidy.all" 2>/dev/null || true
grep -E '(warning|error):' "$out/tidy.all" | sort -u >"$out/tidy" || true
judge clang-tidy "$out/tidy"

# autoVariables: um__waitq_wait() unlinks what is on its stack before it returns.
queue=$(echo '#include <sys/queue.h>' | gcc -E - | sed -n 's/^# 1 "\(.*queue.h\)".*/\1/p' | head -n 1)
cppcheck -q -j "$(nproc)" --enable=warning,performance,portability --inline-suppr --std=c11 \
  -D__x86_64__ -D_GNU_SOURCE --include="$queue" -Iinclude -Isrc \
  --suppress=autoVariables:src/reactor/waitq.c --suppress="*:$queue" \
  src tools/um-tls >"$out/cppcheck" 2>&1 || echo "cppcheck failed" >>"$out/cppcheck"
judge cppcheck "$out/cppcheck"

CC=gcc meson setup --wipe "$out/gcc" "$root" -Dc_args=-fanalyzer -Dtests=false -Dbench=false -Dexamples=false \
  -Dman=false >"$out/meson" 2>&1 || CC=gcc meson setup "$out/gcc" "$root" -Dc_args=-fanalyzer -Dtests=false \
  -Dbench=false -Dexamples=false -Dman=false >"$out/meson" 2>&1
ninja -C "$out/gcc" >"$out/gcc.all" 2>&1 || echo "gcc failed" >"$out/gcc.failed"
grep -E 'warning:|error:' "$out/gcc.all" | sort -u >"$out/gcc.log" || true
judge "gcc -fanalyzer" "$out/gcc.log"

echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
