#!/bin/sh
# What testssl.sh finds at our servers; ./run testssl calls it: scripts/testssl.sh BUILD [SERVER...]
#
# um-tls serve with an ECDSA and with an RSA chain, and a Ruby server (ecdsa, rsa, ruby: all by
# default), a minute and a half each. Fails unless each is rated A+ and has no finding of severity
# MEDIUM or above. The full reports are left in build/testssl-reports.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
build=$1
shift
reports=$root/build/testssl-reports
tool=$root/build/testssl
server=

# Debian 12's is 3.0, which rates nothing: there Debian 13's is unpacked under build/.
if [ "$(. /etc/os-release 2>/dev/null && echo "$ID")" = debian ]; then
  "$root/scripts/setup.sh" bsdextrautils procps bind9-host
  if [ ! -x "$tool/usr/bin/testssl" ]; then
    rm -rf "$tool"
    "$root/scripts/debian-unpack.sh" trixie "$tool.new" testssl.sh
    mv "$tool.new" "$tool"
  fi
  export TESTSSL_INSTALL_DIR="$tool/etc/testssl"
  testssl=$tool/usr/bin/testssl
else
  testssl=$(command -v testssl || command -v testssl.sh) || {
    echo "testssl: install testssl.sh 3.2 or newer, then run this again" >&2
    exit 1
  }
fi

# The server was started by us: its own process is ended, and waited for.
stop() {
  [ -z "$server" ] || { kill "$server" 2>/dev/null; wait "$server" || true; }
  server=
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Waits until the server has said its port.
port_of() {
  tries=0
  until grep -q '^listening on ' "$1"; do
    tries=$((tries + 1))
    kill -0 "$server" 2>/dev/null && [ $tries -lt 300 ] ||
      { echo "testssl: the server did not start:" >&2; cat "$1" >&2; exit 1; }
    sleep 0.1
  done
  sed -n 's/^listening on .*:\([0-9]*\)$/\1/p' "$1"
}

start() {
  certs=$root/build/certs chain=server
  [ "$1" != rsa ] || chain=server-rsa
  : >"$reports/$1.log"
  if [ "$1" = ruby ]; then
    ruby -I "$build/ext/ruby" -I "$root/ext/ruby/lib" "$root/scripts/testssl-server.rb" \
      "$certs/$chain.pem" "$certs/$chain.key" >"$reports/$1.log" 2>&1 &
  else
    "$build/tools/um-tls/um-tls" serve --listen localhost:0 --cert "$certs/$chain.pem" \
      --key "$certs/$chain.key" --root "$reports/root" --hsts 31536000 >"$reports/$1.log" 2>&1 &
  fi
  server=$!
}

examine() {
  start "$1"
  port=$(port_of "$reports/$1.log")
  rm -f "$reports/$1.json"
  # Its exit code counts its own troubles, too; the findings are judged.
  "$testssl" --quiet --color 0 --warnings off --nodns none --ip 127.0.0.1 \
    --add-ca "$root/build/certs/ca.pem" --jsonfile "$reports/$1.json" \
    "https://localhost:$port/" >"$reports/$1.txt" 2>&1 </dev/null || true
  kill -0 "$server" 2>/dev/null || { echo "testssl: the server ended meanwhile" >>"$reports/$1.log"; }
  stop
}

mkdir -p "$reports/root"
echo '<p>testssl</p>' >"$reports/root/index.html"
skipped=0
if [ $# -eq 0 ]; then
  set -- ecdsa rsa ruby
  if [ ! -e "$build/ext/ruby/um_tls.so" ]; then
    echo "testssl: ruby is skipped: the extension was not built (ruby and ruby-dev are needed)" >&2
    skipped=1
    set -- ecdsa rsa
  fi
fi
for name; do
  case $name in
    ecdsa | rsa | ruby) ;;
    *) echo "testssl: no server '$name'; there are ecdsa, rsa and ruby" >&2; exit 64 ;;
  esac
done
for name; do
  echo "testssl.sh is examining: $name" >&2
  examine "$name"
done
exec python3 "$root/scripts/testssl-judge.py" "$reports" "$skipped" "$@"
