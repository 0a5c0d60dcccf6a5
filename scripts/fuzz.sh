#!/bin/sh
# Fuzzes everything that parses what a peer sends: scripts/fuzz.sh [SECONDS [TARGET...]]; see
# ./run fuzz. SECONDS in all (default 60), shared by the targets: stream, bio, http. With
# FUZZER=afl AFL++ does it instead of clang's libFuzzer. New inputs stay in build/fuzz-corpus and
# are where the next run begins; inputs that fail are named and kept in build/fuzz-findings.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
seconds=${1:-60}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- stream bio http
case $seconds in '' | *[!0-9]*) echo "fuzz: SECONDS is '$seconds': wanted is a number, such as 60" >&2; exit 64 ;; esac
fuzzer=${FUZZER:-libfuzzer}
findings=$root/build/fuzz-findings
mkdir -p "$findings"
export UM_TEST_CERTS="$root/build/certs"
export ASAN_OPTIONS=abort_on_error=1:symbolize=0:detect_leaks=1 UBSAN_OPTIONS=abort_on_error=1

for target; do
  case $target in stream | bio | http) ;; *)
    echo "fuzz: no target '$target'; there are stream, bio and http" >&2
    exit 64 ;;
  esac
done

case $fuzzer in
  libfuzzer)
    "$root/scripts/setup.sh" clang
    export CC=clang
    instrument=-fsanitize=fuzzer-no-link,address,undefined ;;
  afl)
    "$root/scripts/setup.sh" clang afl++
    export CC=afl-clang-fast AFL_QUIET=1
    instrument=-fsanitize=address,undefined
    ASAN_OPTIONS=abort_on_error=1:symbolize=0:detect_leaks=0 ;;
  *) echo "fuzz: FUZZER is '$fuzzer': wanted is libfuzzer or afl" >&2; exit 64 ;;
esac

build=$root/build/fuzz-$fuzzer
if [ ! -f "$build/build.ninja" ]; then
  meson setup "$build" "$root" -Dc_args="$instrument -fno-sanitize-recover=undefined" \
    -Dc_link_args=-fsanitize=address,undefined -Db_lundef=false -Dbench=false -Dexamples=false \
    -Dman=false >"$root/build/fuzz.log" 2>&1 || { cat "$root/build/fuzz.log"; exit 1; }
fi
wanted=tests/fuzz/record
for target; do wanted="$wanted tests/fuzz/fuzz_$target"; done
# shellcheck disable=SC2086
ninja --quiet -C "$build" $wanted >"$root/build/fuzz.log" 2>&1 || { cat "$root/build/fuzz.log"; exit 1; }

# Where a target begins: what is in the tree, what earlier runs found, and for streams what real
# peers say. Those depend on the certificates, so they are made here.
seeds() {
  corpus=$root/build/fuzz-corpus/$1
  mkdir -p "$corpus"
  [ ! -d "$root/tests/fuzz/corpus/$1" ] || cp -n "$root/tests/fuzz/corpus/$1"/* "$corpus"
  [ "$1" != stream ] || "$build/tests/fuzz/record" "$corpus"
  [ -n "$(ls "$corpus")" ] || printf '\003\000\020hello' >"$corpus/first"
}

with_libfuzzer() {
  dictionary=$root/tests/fuzz/$1.dict
  [ ! -f "$dictionary" ] || set -- "$1" -dict="$dictionary"
  target=$1
  shift
  "$build/tests/fuzz/fuzz_$target" "$@" -max_total_time="$share" -timeout=20 -rss_limit_mb=2000 \
    -print_final_stats=1 -artifact_prefix="$findings/$target-" "$corpus" >"$log" 2>&1
}

with_afl() {
  rm -rf "$build/out-$1"
  AFL_SKIP_CPUFREQ=1 AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES=1 AFL_NO_UI=1 AFL_NO_AFFINITY=1 AFL_FAST_CAL=1 \
    afl-fuzz -V "$share" -t 5000+ -m none -i "$corpus" -o "$build/out-$1" -- \
    "$build/tests/fuzz/fuzz_$1" >"$log" 2>&1 || return 1
  found=$(find "$build/out-$1" -path '*crashes/id*' -o -path '*hangs/id*' | wc -l)
  [ "$found" -eq 0 ] || { cp "$build/out-$1"/default/crashes/id* "$findings"; return 1; }
}

runs() {
  case $fuzzer in
    libfuzzer) sed -n 's/^stat::number_of_executed_units: *//p' "$log" ;;
    afl) sed -n 's/^execs_done *: *//p' "$build/out-$1/default/fuzzer_stats" ;;
  esac
}

edges() {
  case $fuzzer in
    libfuzzer) sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1 ;;
    afl) sed -n 's/^edges_found *: *//p' "$build/out-$1/default/fuzzer_stats" ;;
  esac
}

share=$((seconds / $#))
[ $share -gt 0 ] || share=1
log=$root/build/fuzz.log
status=0
passed=0 failed=0
printf '%s, %s s a target\n%-8s %12s %8s %8s  %s\n' "$fuzzer" "$share" target executions edges inputs result
for target; do
  seeds "$target"
  result=good
  case $fuzzer in
    libfuzzer) with_libfuzzer "$target" || result=FAILED ;;
    afl) with_afl "$target" || result=FAILED ;;
  esac
  case $(runs "$target") in '' | 0) result=FAILED ;; esac # nothing ran: nothing was shown
  printf '%-8s %12s %8s %8s  %s\n' "$target" "$(runs "$target")" "$(edges "$target")" \
    "$(ls "$corpus" | wc -l)" "$result"
  if [ $result = good ]; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1)) status=1
    tail -n 40 "$log"
    echo "inputs that fail are in build/fuzz-findings: build/fuzz-$fuzzer/tests/fuzz/fuzz_$target FILE repeats one"
  fi
done
cat <<'END'

stream: what a peer sends to a TLS stream, client or server; bio: the BIO in memory mode, fed and
drained in any order; http: requests to um-tls. executions: mutated inputs tried; edges: branches
of the code that they took; inputs: those in build/fuzz-corpus, where the next run begins; good: no
crash, no hang, nothing that AddressSanitizer or UBSan had to report.
END
echo "$passed passed, $failed failed, 0 skipped"
exit $status
