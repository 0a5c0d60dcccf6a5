#!/bin/sh
# lane: Ruby's own test/fiber, from the distribution's source package, with our scheduler: Ruby 3.1, Debian 13's 3.3
# needs: root, debootstrap (installed), 3 GB of disk
exec "$(dirname "$0")/../../scripts/both.sh" \
  './run build && ruby ext/ruby/test/upstream_fiber.rb build/release "$(scripts/ruby-source.sh build/ruby-source)"'
