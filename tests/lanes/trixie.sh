#!/bin/sh
# lane: the same tests on a bare Debian 13: its compiler, OpenSSL 3.5, its liburing
# needs: root, debootstrap (installed), 2 GB of disk
exec "$(dirname "$0")/../../scripts/chroot.sh" trixie './run test'
