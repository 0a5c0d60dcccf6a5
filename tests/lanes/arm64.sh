#!/bin/sh
# lane: cross-compiled and linked for arm64 with Debian 13's packages; nothing is run, qemu-user has no io_uring
# needs: root, debootstrap (installed), 2 GB of disk
exec "$(dirname "$0")/../../scripts/chroot.sh" trixie '
  set -e
  export DEBIAN_FRONTEND=noninteractive
  dpkg --add-architecture arm64
  apt-get -qq update
  apt-get -qq install -y --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross \
    meson ninja-build pkgconf python3 libssl-dev:arm64 liburing-dev:arm64 >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
  cat >/tmp/cross <<END
[binaries]
c = "aarch64-linux-gnu-gcc"
ar = "aarch64-linux-gnu-ar"
strip = "aarch64-linux-gnu-strip"
pkg-config = "pkg-config"
[properties]
pkg_config_libdir = "/usr/lib/aarch64-linux-gnu/pkgconfig:/usr/share/pkgconfig"
[host_machine]
system = "linux"
cpu_family = "aarch64"
cpu = "armv8-a"
endian = "little"
END
  sed -i "s/\"/'"'"'/g" /tmp/cross
  meson setup build/arm64 --cross-file /tmp/cross -Dtests=false -Dwerror=true >/tmp/log || { cat /tmp/log; exit 1; }
  ninja --quiet -C build/arm64
  aarch64-linux-gnu-readelf -h build/arm64/libbio_uring.so | grep AArch64
  echo "1 passed, 0 failed, 0 skipped"'
