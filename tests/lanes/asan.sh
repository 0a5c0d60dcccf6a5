#!/bin/sh
# lane: AddressSanitizer with leak detection and UndefinedBehaviorSanitizer; gcc's warnings are errors
# needs: what ./run setup installs
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
"$root/run" build
reports=$root/build/asan-reports
rm -rf "$reports"
mkdir -p "$reports"

# Leaks are judged by reports in files, not by exit codes: Criterion lets a test pass that
# leaked, a test may not look at the exit code of a program that it started, and Criterion 2.4's
# own runner leaks 48 bytes when a test takes long. Other errors abort as well.
export ASAN_OPTIONS="log_path=$reports/asan:detect_leaks=1:exitcode=0:abort_on_error=1"
export LSAN_OPTIONS="print_suppressions=0" # else a file that says only that one was used
export UBSAN_OPTIONS="log_path=$reports/ubsan:print_stacktrace=1:abort_on_error=1"

# True for a report of nothing but leaks that Criterion or its libraries allocated themselves. A
# suppression would not do: Criterion is further up the stack of every test.
not_ours() {
  awk '/leak of .* allocated from:/ { leaks++ }
    /^ *#1 .*lib(criterion|boxfort|nanomsg)\.so/ { theirs++ }
    /ERROR: AddressSanitizer|runtime error:/ { other++ }
    END { exit !(leaks > 0 && leaks == theirs && !other) }' "$1"
}

status=0
"$root/scripts/variant.sh" asan -Dwerror=true -Db_sanitize=address,undefined -Dbench=false || status=$?

found=0
for report in "$reports"/*; do
  [ -f "$report" ] || continue
  if not_ours "$report"; then continue; fi
  found=$((found + 1))
  [ $found -gt 5 ] || head -n 60 "$report"
done
if [ $found -gt 0 ]; then
  echo "$found sanitizer reports in build/asan-reports"
  exit 1
fi
exit $status
