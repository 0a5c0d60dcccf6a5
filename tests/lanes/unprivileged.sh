#!/bin/sh
# lane: all tests as an ordinary user with 8 MiB of locked memory, the usual limit; others run as root
# needs: root, and setpriv and prlimit (util-linux); else it skips
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
user=65534 # nobody: owns no file, and no process of ours either
if [ "$(id -u)" != 0 ]; then
  echo "not root: ./run test is this lane then, under this user's own limits"
  echo "0 passed, 0 failed, 1 skipped"
  exit 0
fi
"$root/run" setup

# A copy of the tree that the user may enter and write to, whatever folder this one is in.
copy=$(mktemp -d /tmp/unprivileged.XXXXXX)
trap 'rm -rf "$copy"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir "$copy/project"
tar -C "$root" -c --exclude=./build --exclude=./.git . | tar -C "$copy/project" -x
mkdir -p "$copy/project/build"
[ ! -d "$root/build/deps" ] || cp -a "$root/build/deps" "$copy/project/build/deps"
chown -R "$user:$user" "$copy"

# The kernel counts locked memory by user: nobody else runs as this one.
cd "$copy/project"
env -i PATH="$PATH" HOME="$copy" LANG=C.UTF-8 TMPDIR=/tmp UM_BACKEND="${UM_BACKEND:-}" \
  prlimit --memlock=8388608:8388608 \
  setpriv --reuid="$user" --regid="$user" --clear-groups --no-new-privs ./run test
