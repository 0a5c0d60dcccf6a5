#!/bin/sh
# Unpacks the source package of the Ruby that runs here: scripts/ruby-source.sh DIR
#
# Prints the folder; does nothing when DIR has it already. Through a private configuration of
# apt, because a machine's own rarely names sources: /etc/apt is not touched. Of the suites, only
# the distribution's main ones: what a security update changes is no test.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
"$root/scripts/setup.sh" dpkg-dev
mkdir -p "$1"
cd "$1"

version=$("${RUBY:-ruby}" -e 'print RUBY_VERSION[/\A\d+\.\d+/]')
unpacked() { find "$PWD" -maxdepth 1 -type d -name "ruby$version-*" | head -n 1; }
[ -z "$(unpacked)" ] || { unpacked; exit 0; }

rm -rf apt
mkdir -p apt/parts apt/lists/partial
# Wherever lists of the distribution's packages came from. A mirror of its own has another label.
apt-get indextargets --format 'deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)' \
  'Created-By: Packages' 'Component: main' 'Origin: Debian' 'Label: Debian' | sort -u >apt/parts/source.list
[ -s apt/parts/source.list ] || { echo "ruby-source: apt knows no archive of Debian's (apt-get update?)" >&2; exit 1; }
set -- -qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$PWD/apt/parts" \
  -o Dir::State::lists="$PWD/apt/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
  -o APT::Sandbox::User="$(id -un)"
apt-get "$@" update >&2
# The newest first; not every archive keeps the source of each version that it lists.
for full in $(apt-cache "$@" showsrc --only-source "ruby$version" | sed -n 's/^Version: //p' | sort -rVu); do
  if apt-get "$@" source "ruby$version=$full" >apt/log 2>&1; then
    rm -rf apt ./*.tar.* ./*.dsc
    unpacked
    exit
  fi
  cat apt/log >&2
done
echo "ruby-source: no source of ruby$version to be had" >&2
exit 1
