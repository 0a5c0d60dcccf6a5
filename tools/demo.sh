#!/bin/sh
# tools/demo.sh BUILD_DIR: what the library does, shown on this machine in about a
# minute. `./run demo` comes here after set-up and build. Exits with 1 if anything
# that was to be shown did not hold, and leaves nothing running.
set -u

build=${1:?"usage: tools/demo.sh BUILD_DIR"}
source=$(CDPATH= cd "$(dirname "$0")/.." && pwd)
megabytes=256
connections=2000

scratch=$(mktemp -d "${TMPDIR:-/tmp}/bio_uring-demo.XXXXXX") || exit 1
children=        # what runs in the background, to be stopped by pid
measured=        # lines repeated in the summary
passed=0
failed=0

# ---- saying and stopping ----

title() { printf '\n%s\n' "$*"; }
note() { printf '       %s\n' "$*"; }
ok() { printf '  ok   %s\n' "$*"; passed=$((passed + 1)); }
bad() {
  printf '  FAIL %s\n' "$*"
  failed=$((failed + 1))
  if [ -s "$scratch/error" ]; then sed -n 's/^/       | /; $p' "$scratch/error"; fi
}
figure() { note "$1"; measured="$measured  $1
"; }
check() { if [ "$1" -eq 0 ]; then shift; ok "$*"; else shift; bad "$*"; fi; }

# A child that has ended and has not been waited for is a zombie.
running() {
  case $(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) in '' | Z*) return 1 ;; esac
}

# Stops one child and leaves its exit code in $ended; one that ignores SIGTERM for
# five seconds is killed.
stop() {
  kill "$1" 2>/dev/null
  tries=0
  while [ "$tries" -lt 100 ] && running "$1"; do
    tries=$((tries + 1))
    sleep 0.05
  done
  kill -9 "$1" 2>/dev/null
  wait "$1" 2>/dev/null
  ended=$?
  rest=
  for child in $children; do [ "$child" = "$1" ] || rest="$rest $child"; done
  children=$rest
}

clean_up() {
  trap : INT TERM HUP # not ignored: children would inherit that
  exec 3>&- 2>/dev/null
  for child in $children; do stop "$child"; done
  rm -rf "$scratch"
}
trap clean_up EXIT
trap 'printf "\ninterrupted\n"; exit 130' INT
trap 'exit 143' TERM HUP

# Runs a command so that Ctrl-C and SIGTERM are answered at once: a shell waits for a
# foreground command before it looks at its traps. Standard input and output are files.
run() {
  in=$1 out=$2
  shift 2
  timeout 120 "$@" <"$in" >"$out" 2>"$scratch/error" &
  current=$!
  children="$children $current"
  wait "$current"
  code=$?
  children=${children% "$current"}
  return "$code"
}

# ---- small helpers ----

now_ms() { echo $(($(date +%s%N) / 1000000)); }
sum() { sha256sum "$1" | cut -d' ' -f1; }
seconds() { echo "$1" | awk '{ printf "%.1f s", $1 / 1000 }'; }
rate() { awk -v mib="$1" -v ms="$2" 'BEGIN { printf "%.0f MB/s", mib * 1048.576 / (ms + !ms) }'; }
pss_kb() { awk '/^Pss:/ { print $2 }' "/proc/$1/smaps_rollup"; }
cpu_ms() {
  awk -v hz="$(getconf CLK_TCK)" '{ print int(($14 + $15) * 1000 / hz) }' "/proc/$1/stat"
}

# Starts `um-tls serve ARGS`; sets $pid and $port.
serve() {
  log=$scratch/serve.$1
  : >"$log" # exists before the child has opened it
  shift
  "$um_tls" serve --listen 127.0.0.1:0 --cert "$scratch/certs/server.pem" \
    --key "$scratch/certs/server.key" "$@" >"$log" 2>"$log.err" </dev/null &
  pid=$!
  children="$children $pid"
  tries=0
  until port=$(sed -n 's/^listening on .*:\([0-9]*\)$/\1/p' "$log") && [ -n "$port" ]; do
    tries=$((tries + 1))
    if [ "$tries" -gt 100 ] || ! kill -0 "$pid" 2>/dev/null; then
      cp "$log.err" "$scratch/error"
      bad "um-tls serve $* did not say 'listening on ...'"
      return 1
    fi
    sleep 0.1
  done
  note "um-tls serve $* listens on port $port (pid $pid)"
}

end_server() {
  stop "$1"
  [ "$ended" -eq 0 ]
  check $? "SIGTERM ends the $2 server with exit code $ended"
}

# Waits for a line in a file that a child writes.
wait_for() {
  tries=0
  until grep -q "$1" "$2"; do
    tries=$((tries + 1))
    if [ "$tries" -gt 300 ] || ! kill -0 "$3" 2>/dev/null; then return 1; fi
    sleep 0.1
  done
}

# ---- what is needed ----

find_program() {
  for candidate in "$build/$1/$2" "$build/$1" "$build/$2"; do
    if [ -f "$candidate" ] && [ -x "$candidate" ]; then echo "$candidate"; return; fi
  done
  echo "demo: $2 is not built in $build: './run build' first" >&2
  return 1
}

prepare() {
  for tool in curl openssl sha256sum python3 timeout; do
    if ! command -v "$tool" >/dev/null; then
      echo "demo: $tool is needed: './run setup' installs it" >&2
      return 1
    fi
  done
  um_tls=$(find_program tools/um-tls um-tls) || return 1
  load=$(find_program bench bench-load) || return 1
  free=$(df -Pk "$scratch" | awk 'NR == 2 { print int($4 / 1024) }')
  if [ "$free" -lt $((3 * megabytes)) ]; then
    echo "demo: ${TMPDIR:-/tmp} has $free MiB free, $((3 * megabytes)) are needed: set TMPDIR" >&2
    return 1
  fi
  ulimit -n "$(ulimit -H -n)" 2>/dev/null
  descriptors=$(ulimit -n)
  if [ "$descriptors" != unlimited ] && [ "$descriptors" -lt $((connections + 100)) ]; then
    note "only $descriptors descriptors are allowed (ulimit -n): less than $connections connections"
    connections=$((descriptors - 100))
  fi
}

make_files() {
  mkdir "$scratch/root" &&
    sh "$source/certs/make.sh" "$scratch/certs" >/dev/null 2>"$scratch/error"
  check $? "certificates made by certs/make.sh: a CA, and 'localhost' signed by it" || return 1
  ca=$scratch/certs/ca.pem
  big=$scratch/root/random.bin
  echo "hello from a fiber" >"$scratch/root/hello.txt"
  run /dev/null "$big" head -c "${megabytes}M" /dev/urandom
  big_sum=$(sum "$big")
  note "$megabytes MiB of random bytes, sha256 $(echo "$big_sum" | cut -c1-16)..."
}

# ---- what is shown ----

same_as_hello() { cmp -s "$1" "$scratch/root/hello.txt"; }

show_clients() {
  url=https://localhost:$port
  out=$scratch/out
  for version in 1.2 1.3; do
    run /dev/null "$out" curl -sS --cacert "$ca" "--tlsv$version" --tls-max "$version" \
      -w '%{stderr}%{http_version} %{http_code}' "$url/hello.txt" && same_as_hello "$out"
    check $? "curl over TLS $version, certificate and name verified: HTTP/$(cat "$scratch/error")"
  done
  run /dev/null "$out" curl -sS "$url/hello.txt"
  [ $? -eq 60 ]
  check $? "curl without our CA refuses the certificate"
  : >"$scratch/error"

  printf '%s\r\n' 'GET /hello.txt HTTP/1.1' 'Host: localhost' 'Connection: close' '' \
    >"$scratch/request"
  run "$scratch/request" "$out" openssl s_client -connect "localhost:$port" -CAfile "$ca" \
    -servername localhost -verify_hostname localhost -verify_return_error -quiet -ign_eof
  tail -n 1 "$out" >"$out.last"
  same_as_hello "$out.last"
  check $? "openssl s_client: $(head -n 1 "$out" | tr -d '\r')"

  run "$scratch/request" "$out" "$um_tls" connect "localhost:$port" --ca "$ca"
  code=$?
  tail -n 1 "$out" >"$out.last"
  [ "$code" -eq 0 ] && same_as_hello "$out.last"
  check $? "um-tls connect: $(head -n 1 "$out" | tr -d '\r')"
}

# moved WHAT MIB START CODE: whether $scratch/back is the file, and how fast it came.
moved() {
  took=$(($(now_ms) - $3))
  back_sum=$(sum "$scratch/back")
  rm -f "$scratch/back"
  [ "$4" -eq 0 ] && [ "$back_sum" = "$big_sum" ]
  check $? "$1: the same sha256, in $(seconds $took)"
  if [ "$back_sum" = "$big_sum" ]; then figure "$1: $(rate "$2" $took)"; fi
}

show_download() {
  start=$(now_ms)
  run /dev/null "$scratch/back" curl -sS --cacert "$ca" "https://localhost:$port/random.bin"
  moved "$megabytes MiB from serve --root to curl" "$megabytes" "$start" $?
}

show_echo() {
  start=$(now_ms)
  run "$big" "$scratch/back" "$um_tls" connect "localhost:$port" --ca "$ca"
  moved "$megabytes MiB up and down through serve --echo and um-tls connect" \
    "$megabytes" "$start" $?
}

show_many() {
  first=$((connections / 10))
  mkfifo "$scratch/go"
  "$load" --idle --connect "127.0.0.1:$port" --first "$first" --connections "$connections" \
    <"$scratch/go" >"$scratch/holding" 2>"$scratch/error" &
  holder=$!
  children="$children $holder"
  exec 3>"$scratch/go"
  if ! wait_for "^holding $first$" "$scratch/holding" "$holder"; then
    bad "$first connections could not be opened"
    return
  fi
  small=$(pss_kb "$pid")
  echo >&3
  wait_for "^holding $connections$" "$scratch/holding" "$holder"
  check $? "$connections TLS connections open at once, each has echoed a message"
  sleep 0.3
  large=$(pss_kb "$pid")
  # The kernel lists its own workers (iou-wrk-*) beside the threads of the program;
  # they do what a socket cannot do without blocking, and go away when idle.
  workers=$(cat "/proc/$pid"/task/*/comm | grep -c '^iou-wrk')
  threads=$(($(cat "/proc/$pid"/task/*/comm | wc -l) - workers))
  [ "$threads" -eq 1 ]
  check $? "the server has $threads thread (and io_uring kernel workers at the moment: $workers)"
  figure "$(echo "$small $large $first $connections" | awk '{
    printf "%d connections: PSS %.1f MiB, %.1f KiB for each one more", $4, $2 / 1024,
           ($2 - $1) / ($4 - $3) }')"
  before=$(cpu_ms "$pid")
  sleep 1
  note "CPU used in a second of holding them: $(($(cpu_ms "$pid") - before)) ms"
  echo "still here" >"$scratch/request"
  run "$scratch/request" "$scratch/out" "$um_tls" connect "localhost:$port" --ca "$ca" &&
    cmp -s "$scratch/request" "$scratch/out"
  check $? "one more connection beside them is answered"
  exec 3>&-
  stop "$holder"
}

show_speed() {
  note "server on one CPU, load on another, in turns; takes about ten seconds"
  run /dev/null "$scratch/out" sh "$source/bench/run.sh" "$build" echo-64B-64c --rounds 3 \
    --seconds 1 --contenders ours,epoll-best --json "$scratch/bench.json"
  check $? "measured: 64 bytes echoed on 64 connections, beside the strongest epoll server"
  sed -n '/^echo-64B-64c/,/^$/ { /./ s/^/       /p; }' "$scratch/out"
  line=$(sed -n 's/^ *\(ours \/ epoll-best = .*\)/\1/p' "$scratch/out")
  [ -z "$line" ] || measured="$measured  server CPU per echo, $line
"
}

# ---- the demo ----

begun=$(now_ms)
echo "libbio_uring: OpenSSL over io_uring, fibers on one thread"
note "$(uname -sr), $(nproc) CPUs, $(openssl version | cut -d' ' -f1,2)"
prepare || exit 1

title "1. Certificates and a file"
make_files || exit 1

title "2. Files over HTTPS to curl, openssl s_client and um-tls connect"
if serve root --root "$scratch/root"; then
  root_pid=$pid
  show_clients
  title "3. $megabytes MiB each way"
  show_download
  end_server "$root_pid" "file"
fi
if serve echo --echo --threads 1; then
  show_echo
  title "4. $connections connections on one thread"
  show_many
  end_server "$pid" "echo"
fi

title "5. Beside epoll"
show_speed

title "Summary: $passed shown, $failed failed, in $(seconds $(($(now_ms) - begun)))"
printf '%s' "$measured"
[ "$failed" -eq 0 ]
