#!/bin/sh
# A throw-away machine: scripts/chroot.sh SUITE COMMAND
#
# Runs `sh -c COMMAND` as root in a bare Debian SUITE, in /home/project, a copy of this tree
# without what was built. Nothing of it stays but the bare system, kept under
# ${UM_LANE_CACHE:-/var/cache/libbio_uring} for at most two weeks; deleting that is safe.
#
# With mount and process namespaces of its own, so that nothing stays mounted or running
# however it ends.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)

if [ "${1:-}" != --inside ]; then
  suite=$1 command=$2
  "$root/scripts/setup.sh" debootstrap
  [ "$(id -u)" = 0 ] || exec sudo "$0" "$@"
  unshare --mount --pid --fork true 2>/dev/null || {
    echo "chroot: this machine does not let root make mount and process namespaces (a container?)" >&2
    exit 1
  }

  cache=${UM_LANE_CACHE:-/var/cache/libbio_uring}
  base=$cache/$suite
  mkdir -p "$cache"
  tmp=$(mktemp -d "$cache/run.XXXXXX")
  child=
  cleanup() {
    [ -z "$child" ] || { kill -9 "$child" 2>/dev/null; wait "$child" 2>/dev/null || true; }
    rm -rf "$tmp"
  }
  trap cleanup EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM

  # Two lanes may want the same one.
  exec 8>"$cache/.lock"
  flock 8
  [ -z "$(find "$base" -maxdepth 0 -mtime +14 2>/dev/null)" ] || rm -rf "$base"
  if [ ! -d "$base" ]; then
    uri=$("$root/scripts/debian-archive.sh")
    include=
    case $uri in https:*) include=--include=ca-certificates ;; esac
    # In a namespace of its own: debootstrap mounts, and may be interrupted.
    # shellcheck disable=SC2086
    unshare --mount --pid --fork --kill-child \
      debootstrap --variant=minbase $include "$suite" "$tmp/base" "$uri" >"$tmp/log" 2>&1 8>&- &
    child=$!
    wait "$child" || { tail -n 20 "$tmp/log" "$tmp/base/debootstrap/debootstrap.log" >&2; exit 1; }
    child=
    rm -f "$tmp"/base/var/cache/apt/archives/*.deb
    touch "$tmp/base"
    mv "$tmp/base" "$base"
  fi
  exec 8>&-

  mkdir -p "$tmp/tree" "$tmp/root" "$tmp/upper" "$tmp/work"
  cd "$root"
  # Files that git does not ignore: what a clone of this state would have. Listed ones may be
  # deleted in the work tree.
  if [ -e .git ]; then
    git -c safe.directory="$root" ls-files -z --cached --others --exclude-standard |
      tar -c --null --ignore-failed-read -T - -f - 2>/dev/null | tar -x -C "$tmp/tree"
  else
    tar -c --exclude=./build -f - . | tar -x -C "$tmp/tree"
  fi
  [ -x "$tmp/tree/run" ] || { echo "chroot: could not copy the tree (git ls-files lists no ./run)" >&2; exit 1; }
  unshare --mount --pid --fork --kill-child "$0" --inside "$tmp" "$base" "$command" &
  child=$!
  status=0
  wait "$child" || status=$?
  child=
  exit $status
fi

tmp=$2 base=$3 command=$4
new=$tmp/root
mount -t overlay overlay -o "lowerdir=$base,upperdir=$tmp/upper,workdir=$tmp/work" "$new" 2>/dev/null ||
  cp -a "$base/." "$new"
mount -t proc proc "$new/proc"
mount -t sysfs -o ro sysfs "$new/sys" 2>/dev/null || true
mount --rbind /dev "$new/dev"
mount -t tmpfs tmpfs "$new/tmp"
chmod 1777 "$new/tmp"
mkdir -p "$new/home/project"
cp -a "$tmp/tree/." "$new/home/project"
chown -R 0:0 "$new/home/project"
cp /etc/resolv.conf "$new/etc/resolv.conf"
printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 %s\n' "$(hostname)" >"$new/etc/hosts"
# How this machine reaches its mirror holds for the chroot as well.
apt-config dump | grep -E '^Acquire::(http|https|Check-|Retries)' >"$new/etc/apt/apt.conf.d/00host" || true
cd /
env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
  chroot "$new" sh -c "cd /home/project && $command"
