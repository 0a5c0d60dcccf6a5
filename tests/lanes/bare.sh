#!/bin/sh
# lane: a bare Debian 12, as a newcomer: the demo as root, then on another one the tests as a user with sudo
# needs: root, debootstrap (installed), 2 GB of disk
set -eu
chroot=$(dirname "$0")/../../scripts/chroot.sh
"$chroot" bookworm './run demo'
echo "-- and now ./run test, from a bare machine again"
exec "$chroot" bookworm '
  apt-get -qq update
  apt-get -qq install -y --no-install-recommends sudo >/dev/null 2>&1
  useradd --create-home newcomer
  echo "newcomer ALL=(ALL) NOPASSWD: ALL" >/etc/sudoers.d/newcomer
  chown -R newcomer: /home/project
  exec setpriv --reuid=newcomer --regid=newcomer --init-groups env HOME=/home/newcomer ./run test'
