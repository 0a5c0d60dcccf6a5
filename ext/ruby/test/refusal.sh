#!/bin/sh
# An extension linked with another libssl than the openssl gem is refused, with both named, and
# Ruby goes on without it: ext/ruby/test/refusal.sh BUILD, BUILD made for such an extension.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
build=$(CDPATH= cd -- "$1" && pwd)
ours=$(ldd "$build/ext/ruby/um_tls.so" | sed -n 's/.*=> \(.*libssl[^ ]*\) .*/\1/p')
status=0
said=$("${RUBY:-ruby}" -I "$build/ext/ruby" -I "$here/../lib" -e '
  begin
    require "um/tls"
  rescue LoadError => e
    puts e.message
  end
  OpenSSL::SSL::SSLContext.new.set_params
  puts "alive"') || status=$?
echo "$said"
case $said in
  *"linked with $ours ("*") and the openssl gem with "*"Rebuild um-tls"*alive) ;;
  *) status=1 ;;
esac
[ $status = 0 ] && echo "1 passed, 0 failed, 0 skipped" || echo "0 passed, 1 failed, 0 skipped"
exit $status
