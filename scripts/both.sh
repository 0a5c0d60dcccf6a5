#!/bin/sh
# The same on this machine and on a bare Debian 13, for a lane: scripts/both.sh COMMAND
# COMMAND runs in the top folder. The last line adds up those of both.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
here=0 there=0
echo "-- here"
sh -c "$1" >"$logs/here" 2>&1 || here=$?
cat "$logs/here"
echo "-- Debian 13"
scripts/chroot.sh trixie "$1" >"$logs/there" 2>&1 || there=$?
cat "$logs/there"
for log in here there; do
  tail -n 1 "$logs/$log" | grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' ||
    echo "0 passed, 1 failed, 0 skipped"
done >"$logs/results"
# Nothing but skips is no failure here.
scripts/sum-tests.sh <"$logs/results" || ! grep -qE ' [1-9][0-9]* failed,' "$logs/results" || exit 1
[ $here = 0 ] && [ $there = 0 ]
