#!/bin/busybox sh
# The first process of a machine of tests/lanes/kernel.sh and arm64.sh: runs the tests, tells the
# console.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
ln -s /proc/self/fd /dev/fd
ln -s fd/1 /dev/stdout
ip link set lo up
echo '127.0.0.1 localhost' >/etc/hosts
echo 'root:x:0:0:root:/root:/bin/sh' >/etc/passwd
exec >/dev/console 2>&1
. /settings

"$build/tools/um-tls/um-tls" --version
"$build/tests/reactor/features"

# A machine without KVM may be slow: time alone is no failure before this.
run() {
  echo "## $1 $UM_BACKEND"
  timeout 1500 "$1" --tap=/tmp/tap >/tmp/said 2>&1
  status=$?
  cat /tmp/tap
  [ $status = 0 ] || grep -v '^\[====\]' /tmp/said | tail -n 20 | sed 's/^/said: /'
  echo "## end $status"
  rm -f /tmp/tap
}

for UM_BACKEND in uring epoll; do
  export UM_BACKEND
  while read -r program; do run "$program" </dev/null; done </programs
done
echo "all done"
sync
poweroff -f
