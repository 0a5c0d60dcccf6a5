#!/bin/sh
# lane: arm64: cross-compiled with Debian 13's packages, then its kernel in qemu, both backends, as the lane "kernel"
# needs: root, debootstrap (installed), 2 GB of disk
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
[ "${1:-}" = --inside ] || exec "$root/scripts/chroot.sh" trixie "tests/lanes/arm64.sh --inside"

# Here is the bare Debian 13.
build=$root/build/arm64 tmp=/tmp/arm64
libraries=/usr/lib/aarch64-linux-gnu
. "$root/tests/support/kernel-guest.sh"
mkdir "$tmp"
quietly() { "$@" >"$tmp/log" 2>&1 || { cat "$tmp/log"; exit 1; }; }

quietly dpkg --add-architecture arm64
quietly apt-get -qq update
export DEBIAN_FRONTEND=noninteractive
quietly apt-get -qq install -y --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross \
  meson ninja-build pkgconf python3 openssl libssl-dev:arm64 liburing-dev:arm64 libcriterion-dev:arm64 \
  qemu-system-arm busybox-static:arm64 cpio
cat >"$tmp/cross" <<'END'
[binaries]
c = 'aarch64-linux-gnu-gcc'
ar = 'aarch64-linux-gnu-ar'
strip = 'aarch64-linux-gnu-strip'
pkg-config = 'pkg-config'
[properties]
pkg_config_libdir = '/usr/lib/aarch64-linux-gnu/pkgconfig:/usr/share/pkgconfig'
[host_machine]
system = 'linux'
cpu_family = 'aarch64'
cpu = 'armv8-a'
endian = 'little'
END
quietly meson setup "$build" --cross-file "$tmp/cross" -Dwerror=true -Dbench=false
ninja --quiet -C "$build"
quietly "$root/certs/make.sh" "$root/build/certs"
kernel=$(apt-cache depends --important linux-image-cloud-arm64:arm64 | sed -n 's/.*Depends: //p' | head -n 1)
(cd "$tmp" && quietly apt-get -qq -o APT::Sandbox::User=root download "$kernel" && dpkg-deb -x ./*.deb .)

# Not ldd: it runs the program.
libraries_of() { ls "$libraries"/*.so.* "$build"/libbio_uring.so.0 /lib/ld-linux-aarch64.so.1; }
make_initramfs "$(command -v busybox)"
timeout 3000 qemu-system-aarch64 -machine virt -cpu max,pauth-impdef=on -accel tcg,thread=multi -smp 2 \
  -m 1536 -display none -no-reboot -nodefaults -serial "file:$tmp/serial" -kernel "$tmp"/boot/vmlinuz-* \
  -initrd "$tmp/initramfs" -append "console=ttyAMA0 quiet loglevel=1 panic=-1" </dev/null ||
  echo "qemu ended with $?"
tr -d '\r' <"$tmp/serial" >"$tmp/said"
judge "$tmp/said" "multishot send_zc msg_ring incremental futex waitid"
