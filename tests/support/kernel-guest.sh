#!/bin/sh
# What a machine of tests/lanes/kernel.sh and arm64.sh runs, and what it said. Sourced; wants
# $root, $build and $tmp, and libraries_of(), which prints the files that programs are linked with.

# Between them, the three kernels and the two backends have each feature and lack it.
tests="acceptor alloc epoll fibers groups host io_files io_sockets limits observe ops posts processes
  reactor sync threads timers worker"
bio="blocking memory suspending"
# Without churn, whose thousands of connections take too long on an emulated machine.
tls="stream duplex interrupt verify serve connect tickets offload"

programs() {
  for name in $tests; do echo "$build/tests/reactor/test_reactor_$name"; done
  for name in $bio; do echo "$build/tests/bio/test_bio_$name"; done
  for name in $tls; do echo "$build/tests/tls/test_tls_$name"; done
}

# With the paths of here, so that each finds its libraries and certificates: make_initramfs BUSYBOX.
make_initramfs() {
  guest=$tmp/guest
  mkdir -p "$guest/bin" "$guest/proc" "$guest/sys" "$guest/dev" "$guest/tmp" "$guest/root" "$guest/etc"
  others="$build/tests/reactor/features $build/tools/um-tls/um-tls"
  programs >"$guest/programs"
  # shellcheck disable=SC2046,SC2086,SC2154
  { libraries_of $others $(programs)
    ls $others $(cat "$guest/programs")
    find "$root/build/certs" -type f; } | while read -r file; do
    mkdir -p "$guest$(dirname "$file")"
    cp -L "$file" "$guest$file"
  done
  cp "$1" "$guest/bin/busybox"
  cp "$root/tests/support/kernel-init.sh" "$guest/init"
  cp "$root/tests/support/kernel-quota.sh" "$guest/quota"
  echo /quota >>"$guest/programs"
  printf 'build=%s\nexport UM_TEST_CERTS=%s\n' "$build" "$root/build/certs" >"$guest/settings"
  (cd "$guest" && find . | cpio --quiet -o -H newc | gzip -1) >"$tmp/initramfs"
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
