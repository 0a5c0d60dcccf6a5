#!/bin/sh
# lane: other kernels: Debian's 6.1, 6.12 and newest in qemu, both backends; features, a subset of the tests, a CPU quota
# needs: root or sudo, a Debian mirror with kernels for x86-64, 0.5 GB of disk
#
# UM_LANE_KERNELS="bookworm sid" runs some of them; UM_LANE_KEEP=DIR keeps what the machines said.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
build=$root/build/release

# Between them, the three kernels and the two backends have each feature and lack it.
tests="acceptor alloc epoll fibers groups host io_files io_sockets limits observe ops posts processes
  reactor sync threads timers worker"
bio="blocking memory suspending"
# Without churn, whose thousands of connections take too long on an emulated machine.
tls="stream duplex interrupt verify serve connect tickets offload"

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

programs() {
  for name in $tests; do echo "$build/tests/reactor/test_reactor_$name"; done
  for name in $bio; do echo "$build/tests/bio/test_bio_$name"; done
  for name in $tls; do echo "$build/tests/tls/test_tls_$name"; done
}

# With the paths of here, so that each finds its libraries and certificates.
make_initramfs() {
  guest=$tmp/guest
  mkdir -p "$guest/bin" "$guest/proc" "$guest/sys" "$guest/dev" "$guest/tmp" "$guest/root" "$guest/etc"
  others="$build/tests/reactor/features $build/tools/um-tls/um-tls"
  programs >"$guest/programs"
  # shellcheck disable=SC2046,SC2086
  { ldd $others $(programs) | grep -o '/[^ ]*\.so[^ ]*' | sort -u
    ls $others $(cat "$guest/programs")
    find "$root/build/certs" -type f; } | while read -r file; do
    mkdir -p "$guest$(dirname "$file")"
    cp -L "$file" "$guest$file"
  done
  cp "$(command -v busybox)" "$guest/bin/busybox"
  cp "$root/tests/support/kernel-init.sh" "$guest/init"
  cp "$root/tests/support/kernel-quota.sh" "$guest/quota"
  echo /quota >>"$guest/programs"
  printf 'build=%s\nexport UM_TEST_CERTS=%s\n' "$build" "$root/build/certs" >"$guest/settings"
  (cd "$guest" && find . | cpio --quiet -o -H newc | gzip -1) >"$tmp/initramfs"
}

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

# Counts what the machine's tests said: its log, the features wanted.
judge() {
  awk -v wanted="features: $2" '
    function count(good, what) {
      if (good) { passed++; of[backend]++ } else { failed++; bad_of[backend]++; print "FAILED: " what }
    }
    /^## / && $2 != "end" {
      backend = $3; program = $2 " on " backend; sub(/.*\//, "", program); bad = planned = seen = 0
    }
    /^features:/ { print; shown = 1; count($0 == wanted, "wanted " wanted) }
    /^(um-tls|OpenSSL|Linux|backend|used)/ { print }
    /^1\.\./ { planned = substr($0, 4) + 0 }
    /^(not )?ok / { seen++ }
    /^not ok / { bad++; count(0, program ": " $0) }
    /^ok .*# SKIP/ { skipped++; none_of[backend]++; if (!told[$0]++) print "skipped: " $0; next }
    /^ok / { count(1) }
    /^# throttled/ { print "quota: " substr($0, 3) " on " backend }
    /^said: / { print "  " $0 }
    /^## end / {
      if ($3 != 0 && !bad) count(0, program " ended with " $3)
      else if (seen == 0 || seen != planned) count(0, program ": " seen " of " planned " tests")
    }
    /^all done$/ { done = 1 }
    END {
      if (!shown) count(0, "no features were told")
      if (!done) count(0, "the machine stopped before its end, in " program)
      for (i = split("epoll uring", names); i; i--) {
        b = names[i]
        printf "on %s: %d passed, %d failed, %d skipped\n", b, of[b], bad_of[b], none_of[b]
      }
      printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
      exit failed > 0
    }' "$1"
}

make_initramfs
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
