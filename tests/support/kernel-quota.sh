#!/bin/busybox sh
# A test in a machine of tests/lanes/kernel.sh: um-tls serve with a fifth of a CPU (cgroup v2), as a
# container may have. Takes --tap=FILE as the others do; may be slow, and is never too slow.
. /settings
um_tls=$build/tools/um-tls/um-tls
group=/sys/fs/cgroup/quota
count=0 status=0
exec 3>"${1#--tap=}"

skip() {
  printf '1..1\nok 1 - a server under a quota # SKIP %s\n' "$1" >&3
  exit 0
}

check() {
  what=$1
  count=$((count + 1))
  shift
  if "$@"; then
    echo "ok $count - $what" >&3
  else
    echo "not ok $count - $what" >&3
    status=1
  fi
}

start_server() {
  : >/tmp/listening
  (
    echo 0 >"$group/cgroup.procs" && exec "$um_tls" serve --listen 127.0.0.1:0 --echo \
      --handshake-timeout 300 --cert "$UM_TEST_CERTS/server.pem" --key "$UM_TEST_CERTS/server.key"
  ) >/tmp/listening &
  server=$!
  until grep -q listening /tmp/listening; do
    kill -0 "$server" || return 1
    sleep 0.1
  done
  address=$(sed -n 's/^listening on //p' /tmp/listening)
}

client() {
  command=$1
  shift
  "$um_tls" "$command" "$address" --servername localhost --ca "$UM_TEST_CERTS/ca.pem" --timeout 300 "$@"
}

bytes_come_back() {
  dd if=/dev/urandom of=/tmp/sent bs=1M count=2 2>/dev/null
  client connect </tmp/sent >/tmp/came && cmp /tmp/sent /tmp/came
}

many_are_served() { client load --echo --connections 100 --requests 2000; }

# Whatever the speed: what was asked of it takes more than 20 ms, and it may have no more in 100.
was_throttled() {
  throttled=$(sed -n 's/^nr_throttled //p' "$group/cpu.stat")
  echo "# throttled in $throttled of $(sed -n 's/^nr_periods //p' "$group/cpu.stat") periods" >&3
  [ "$throttled" -gt 0 ]
}

stops() { kill "$server" && wait "$server"; }

grep -qw cpu /sys/fs/cgroup/cgroup.controllers || skip "no CPU controller of cgroup v2 in this kernel"
echo +cpu >/sys/fs/cgroup/cgroup.subtree_control
mkdir -p "$group"
[ -e "$group/cpu.max" ] || skip "no CPU quotas in this kernel"
echo "1..5" >&3
echo 20000 100000 >"$group/cpu.max"
check "starts" start_server
check "2 MiB come back" bytes_come_back
check "100 connections are served" many_are_served
check "was throttled" was_throttled
check "stops" stops
rmdir "$group"
exit $status
