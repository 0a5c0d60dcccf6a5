#!/bin/sh
# The gem's tests against a finished build: ext/ruby/test.sh BUILD [minitest options].
# The last line is "N passed, N failed, N skipped".
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
build=$(CDPATH= cd -- "$1" && pwd)
shift
ruby=${RUBY:-ruby}
if [ ! -e "$build/ext/ruby/um_tls.so" ]; then
  echo "the Ruby extension was not built (ruby and ruby-dev are needed)"
  echo "0 passed, 0 failed, 1 skipped"
  exit 0
fi
UM_CERTS=${UM_CERTS:-$here/../../build/certs}
export UM_CERTS
exec "$ruby" -W1 -I "$build/ext/ruby" -I "$here/lib" -I "$here/test" "$here/test/all.rb" "$@"
