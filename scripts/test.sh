#!/bin/sh
# All suites against a finished build: scripts/test.sh BUILD [meson test arguments]; see ./run test.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
build=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0

case ${1:-} in --list | --help) exec meson test -C "$build" --no-rebuild "$@" ;; esac

# POSIX sh has no pipefail. A suite's own sum is marked as such: only ours stands alone.
logged() {
  { "$@" 2>&1 || echo failed >"$log.status"; } | tee -a "$log" |
    sed -u 's/^[0-9]* passed, [0-9]* failed, [0-9]* skipped$/suite: &/'
  if [ -e "$log.status" ]; then rm -f "$log.status"; status=1; fi
}

logged "$root/scripts/meson-tests.sh" "$build" "$@"
# The gem's tests end with the same line. Names on the command line are meson's.
if [ $# -eq 0 ] && [ -x "$root/ext/ruby/test.sh" ]; then
  logged "$root/ext/ruby/test.sh" "$build"
fi

"$root/scripts/sum-tests.sh" <"$log" || status=1
exit $status
