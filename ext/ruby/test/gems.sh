#!/bin/sh
# Our tests, and Ruby's own of SSLSocket, with newer openssl gems than the Ruby has:
# ext/ruby/test/gems.sh BUILD. The last line is "N passed, N failed, N skipped".
#
# The gems come from RubyGems into a folder of their own in BUILD; where RubyGems cannot be
# reached, they are skipped.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
root=$here/../../..
build=$(CDPATH= cd -- "$1" && pwd)
homes=$build/gems
mkdir -p "$homes"
: >"$homes/results"

install_gem() {
  [ -d "$GEM_HOME/gems" ] && return 0
  timeout 300 gem install --no-document --install-dir "$GEM_HOME" openssl -v "~> $1.0" >"$homes/log" 2>&1 &&
    return 0
  rm -rf "$GEM_HOME"
  cat "$homes/log"
  return 1
}

reachable() { timeout 60 gem list --remote --exact openssl 2>/dev/null | grep -q '^openssl '; }

# The last line stands apart, the rest is shown.
suite() {
  "$@" >"$homes/log" 2>&1 || true
  cat "$homes/log"
  tail -n 1 "$homes/log" | grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' >>"$homes/results" ||
    echo "0 passed, 1 failed, 0 skipped" >>"$homes/results"
}

source=$("$root/scripts/ruby-source.sh" "$root/build/ruby-source")
for series in 3.3 4.0; do
  export GEM_HOME="$homes/$series"
  if ! install_gem "$series"; then
    if reachable; then
      echo "openssl $series cannot be installed on this Ruby"
      echo "0 passed, 1 failed, 0 skipped" >>"$homes/results"
    else
      echo "skipped: openssl $series: RubyGems cannot be reached"
      echo "0 passed, 0 failed, 1 skipped" >>"$homes/results"
    fi
    continue
  fi
  echo "-- openssl gem $(ruby -ropenssl -e 'print OpenSSL::VERSION, " on Ruby ", RUBY_VERSION')"
  ruby -ropenssl -e 'exit OpenSSL::VERSION.start_with?("'$series'.")' || {
    echo "another one is loaded"
    echo "0 passed, 1 failed, 0 skipped" >>"$homes/results"
    continue
  }
  suite "$here/../test.sh" "$build"
  suite ruby "$here/upstream.rb" "$build" "$source"
done
unset GEM_HOME
# Nothing but skips is no failure.
grep -qv '^0 passed, 0 failed,' "$homes/results" || {
  awk '{ n += $5 } END { print "0 passed, 0 failed, " n " skipped" }' "$homes/results"
  exit 0
}
"$root/scripts/sum-tests.sh" <"$homes/results"
