#!/bin/sh
# Runs the meson tests of a build folder and sums up: scripts/meson-tests.sh BUILD [meson test arguments]
# The last line is "N passed, N failed, N skipped"; fails if a test failed or none ran.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
build=$1
shift
rm -f "$build/meson-logs/testlog.json" "$build/meson-logs/testlog.junit.xml"
status=0
meson test -C "$build" --no-rebuild --print-errorlogs "$@" || status=$?
python3 "$here/count-tests.py" "$build/meson-logs" || status=1
exit $status
