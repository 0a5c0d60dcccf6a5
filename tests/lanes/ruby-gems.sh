#!/bin/sh
# lane: the Ruby tests with the openssl gem's versions 3.3 and 4.0, on this machine's Ruby and on Debian 13's
# needs: RubyGems (skipped without), root, debootstrap (installed), 3 GB of disk
exec "$(dirname "$0")/../../scripts/both.sh" './run build && ext/ruby/test/gems.sh build/release'
