#!/bin/sh
# lane: other kernels: Debian's 6.1, 6.12 and newest in qemu, both backends; features, a subset of the tests, a CPU quota
# needs: root or sudo, a Debian mirror with kernels for x86-64, 0.5 GB of disk
#
# UM_LANE_KERNELS="bookworm sid" runs some of them; UM_LANE_KEEP=DIR keeps what the machines said.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
build=$root/build/release
. "$root/tests/support/kernel-guest.sh"

# Features that the kernel of a suite must show: by them, and not by its number, it is chosen
# what is tested.
features_of() {
  case $1 in
    bookworm) echo "multishot send_zc msg_ring" ;;
    trixie) echo "multishot send_zc msg_ring incremental futex waitid" ;;
    sid) echo "multishot send_zc msg_ring incremental futex waitid capped" ;;
  esac
}

skip() {
  printf 'skipped: %s\n0 passed, 0 failed, 1 skipped\n' "$1"
  exit 0
}

[ "$(uname -m)" = x86_64 ] || skip "only for x86-64"
"$root/scripts/debian-archive.sh" >/dev/null || skip "Debian's kernels are not to be had here"
"$root/scripts/setup.sh" qemu-system-x86 busybox-static cpio
"$root/run" build

tmp=$(mktemp -d)
qemu=
cleanup() {
  [ -z "$qemu" ] || { kill "$qemu" 2>/dev/null; wait "$qemu" || true; }
  rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# KVM where it works, and not only is there; else emulated, some 10 times as slow.
accelerator() {
  if { echo quit | timeout 10 qemu-system-x86_64 -accel kvm -cpu host -S -monitor stdio \
    -display none; } >/dev/null 2>&1; then
    echo "-accel kvm -cpu host"
  else
    # qemu 7.2 emulates cmpxchg16b wrongly: the allocator of 6.12 dies of the flags it leaves.
    echo "-accel tcg,thread=multi -cpu max,cx16=off"
  fi
}

boot() {
  # shellcheck disable=SC2086
  timeout 3000 qemu-system-x86_64 $accelerator -smp 2 -m 1536 -display none -no-reboot -nodefaults \
    -serial "file:$2" -kernel "$1" -initrd "$tmp/initramfs" \
    -append "console=ttyS0 quiet loglevel=1 panic=-1" </dev/null &
  qemu=$!
  wait "$qemu" || echo "qemu ended with $?"
  qemu=
}

libraries_of() { ldd "$@" | grep -o '/[^ ]*\.so[^ ]*' | sort -u; }

make_initramfs "$(command -v busybox)"
accelerator=$(accelerator)
echo "qemu $accelerator"
status=0
for suite in ${UM_LANE_KERNELS:-bookworm trixie sid}; do
  kernels=$tmp/kernel-$suite
  printf '\n-- the kernel of Debian %s\n' "$suite"
  if ! "$root/scripts/debian-unpack.sh" "$suite" "$kernels" kernel:cloud-amd64; then
    echo "skipped: not to be had here"
    echo "0 passed, 0 failed, 1 skipped" >>"$tmp/results"
    continue
  fi
  began=$(date +%s)
  boot "$(find "$kernels" -name 'vmlinuz*' | head -n 1)" "$tmp/serial"
  tr -d '\r' <"$tmp/serial" >"$tmp/log"
  [ -z "${UM_LANE_KEEP:-}" ] || cp "$tmp/log" "$UM_LANE_KEEP/kernel-$suite.log"
  judge "$tmp/log" "$(features_of "$suite")" >"$tmp/judged" || status=1
  sed '$d' "$tmp/judged"
  tail -n 1 "$tmp/judged" >>"$tmp/results"
  printf '%s: %s, %d s\n' "$suite" "$(tail -n 1 "$tmp/judged")" $(($(date +%s) - began))
  rm -rf "$kernels"
done
echo
"$root/scripts/sum-tests.sh" <"$tmp/results" || status=1
exit $status
