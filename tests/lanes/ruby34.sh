#!/bin/sh
# lane: Debian unstable with Ruby 3.4: our Ruby tests, Ruby's own of SSLSocket and of schedulers, and the refusal of another libssl
# needs: root, debootstrap (installed), 3 GB of disk
exec "$(dirname "$0")/../../scripts/chroot.sh" sid '
  set -e
  export DEBIAN_FRONTEND=noninteractive RUBY=ruby3.4
  install() {
    apt-get -qq install -y --no-install-recommends "$@" >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
  }
  # Ruby 3.4 alone comes from experimental: OpenSSL 4 is there too, which it is not linked with.
  sed -n "s/ sid / experimental /p" /etc/apt/sources.list >/etc/apt/sources.list.d/experimental.list
  printf "Package: src:ruby3.4\nPin: release a=experimental\nPin-Priority: 990\n" >/etc/apt/preferences.d/ruby
  apt-get -qq update
  install ruby3.4 ruby3.4-dev ruby-minitest
  ./run build
  : >/tmp/results
  suite() {
    status=0
    "$@" >/tmp/said 2>&1 || status=$?
    cat /tmp/said
    tail -n 1 /tmp/said | grep -E "^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$" >>/tmp/results && return
    echo "0 passed, 1 failed, 0 skipped" >>/tmp/results
  }
  suite ext/ruby/test.sh build/release
  source=$(scripts/ruby-source.sh build/ruby-source)
  suite ruby3.4 ext/ruby/test/upstream.rb build/release "$source"
  suite ruby3.4 ext/ruby/test/upstream_fiber.rb build/release "$source"

  # Beside the libssl of the gem another one, which the extension is linked with.
  install libssl-dev/experimental
  meson setup build/other -Dtests=false -Dtools=false -Dexamples=false -Dbench=false >/tmp/log || { cat /tmp/log; exit 1; }
  ninja --quiet -C build/other
  ext/ruby/build.sh build/other
  suite ext/ruby/test/refusal.sh build/other
  scripts/sum-tests.sh </tmp/results'
