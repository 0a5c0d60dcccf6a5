#!/bin/sh
# Unpacks packages of a newer Debian into a folder: scripts/debian-unpack.sh SUITE DIR PACKAGE...
# The package "kernel:FLAVOUR" is the one with the suite's current kernel, as kernel:cloud-amd64.
# Through a private configuration: neither /etc/apt nor the system is touched. No root needed.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
suite=$1 out=$2
shift 2

die() { printf 'debian-unpack: %s\n' "$*" >&2; exit 1; }

uri=$("$root/scripts/debian-archive.sh") || die "so packages of $suite cannot be fetched"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -p "$tmp/parts" "$tmp/lists/partial" "$tmp/debs" "$out"
# The sandbox user of apt must be able to read it.
chmod 755 "$tmp" "$tmp/debs"
printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n' "$uri" "$suite" >"$tmp/parts/$suite.sources"

private() {
  tool=$1
  shift
  "$tool" -qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$tmp/parts" \
    -o Dir::Etc::preferencesparts="$tmp" -o Dir::State::lists="$tmp/lists" \
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User="$(id -un)" \
    "$@"
}

# Its output is shown only if it fails.
private_apt() {
  private apt-get "$@" >"$tmp/log" 2>&1 || { sed 's/^/  /' "$tmp/log" >&2; return 1; }
}

# linux-image-FLAVOUR only names the current version, and in newer suites that has the kernel in a
# package of its own.
kernel_package() {
  version=$(private apt-cache depends --important "linux-image-$1" |
    sed -n 's/^ *Depends: linux-image-\([0-9].*\)/\1/p' | head -n 1)
  [ -n "$version" ] || return 1
  private apt-cache pkgnames "linux-binary-$version" | grep -x "linux-binary-$version" ||
    echo "linux-image-$version"
}

private_apt update ||
  die "cannot read the package lists of $suite from this machine's mirror (its signing key comes with debian-archive-keyring: 'apt-get install debian-archive-keyring' brings the current ones)"
for package; do
  shift
  case $package in kernel:*)
    package=$(kernel_package "${package#kernel:}") || die "$suite has no kernel '${package#kernel:}'" ;;
  esac
  set -- "$@" "$package"
done
(cd "$tmp/debs" && private_apt download "$@") || die "cannot download from $suite: $*"
for deb in "$tmp"/debs/*.deb; do
  dpkg-deb -x "$deb" "$out"
done
