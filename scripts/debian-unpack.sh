#!/bin/sh
# Unpacks packages of a newer Debian into a folder: scripts/debian-unpack.sh SUITE DIR PACKAGE...
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

# Its output is shown only if it fails.
private_apt() {
  apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$tmp/parts" \
    -o Dir::Etc::preferencesparts="$tmp" -o Dir::State::lists="$tmp/lists" \
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User="$(id -un)" \
    "$@" >"$tmp/log" 2>&1 || { sed 's/^/  /' "$tmp/log" >&2; return 1; }
}

private_apt update ||
  die "cannot read the package lists of $suite from this machine's mirror (its signing key comes with debian-archive-keyring: 'apt-get install debian-archive-keyring' brings the current ones)"
(cd "$tmp/debs" && private_apt download "$@") || die "cannot download from $suite: $*"
for deb in "$tmp"/debs/*.deb; do
  dpkg-deb -x "$deb" "$out"
done
