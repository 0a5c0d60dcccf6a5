#!/bin/sh
# Runs lanes one after the other and sums up: scripts/lanes.sh [NAME...]; see ./run lanes.
# A lane is tests/lanes/NAME.sh; its "# lane:" and "# needs:" lines describe it.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)

about() { sed -n "s/^# $2: //p" "$root/tests/lanes/$1.sh"; }

if [ $# -eq 0 ]; then
  for file in "$root"/tests/lanes/*.sh; do
    name=$(basename "$file" .sh)
    printf '%-10s %s\n%-10s needs: %s\n' "$name" "$(about "$name" lane)" '' "$(about "$name" needs)"
  done
  exit 0
fi

for name; do
  [ -f "$root/tests/lanes/$name.sh" ] || {
    echo "lanes: no lane '$name'; ./run lanes lists them" >&2
    exit 64
  }
done

logs=$(mktemp -d)
running=
# A lane has a process group of its own, so that all of it can be stopped.
stop() {
  [ -z "$running" ] || { kill -- "-$running" 2>/dev/null; wait "$running" || true; }
  rm -rf "$logs"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

bad=
: >"$logs/.results"
for name; do
  printf '\n== %s: %s\n' "$name" "$(about "$name" lane)"
  started=$(date +%s)
  mkfifo "$logs/pipe"
  # Only the last line of all stands alone.
  tee "$logs/$name" <"$logs/pipe" |
    sed -u "s/^[0-9]* passed, [0-9]* failed, [0-9]* skipped\$/$name: &/" &
  copier=$!
  setsid "$root/tests/lanes/$name.sh" >"$logs/pipe" 2>&1 </dev/null &
  running=$!
  status=0
  wait "$running" || status=$?
  running=
  wait "$copier"
  rm "$logs/pipe"
  seconds=$(($(date +%s) - started))
  case $status in
    0) printf '== %s: good, %d s\n' "$name" "$seconds" ;;
    *) printf '== %s: FAILED (%d), %d s\n' "$name" "$status" "$seconds"; bad="$bad $name" ;;
  esac
  # A lane sums up its suites itself: its last such line is its result.
  line=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$logs/$name" | tail -n 1)
  echo "$line" >>"$logs/.results"
  # What is no test can fail as well: a build, a leak.
  case $status:$line in
    0:*) ;;
    *" 0 failed, "* | *:) echo "0 passed, 1 failed, 0 skipped" >>"$logs/.results" ;;
  esac
done

printf '\n'
[ -z "$bad" ] || printf 'failed lanes:%s\n' "$bad"
status=0
"$root/scripts/sum-tests.sh" <"$logs/.results" || status=1
[ -z "$bad" ] || status=1
exit $status
