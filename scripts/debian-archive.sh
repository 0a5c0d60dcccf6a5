#!/bin/sh
# Prints where this machine gets its Debian from, or fails with a message.
# Without package lists apt knows only what its sources say, not what they turned out to be:
# hence the second question.
set -eu
codename=$(. /etc/os-release; echo "${VERSION_CODENAME:-}")
uri=$(
  set -- --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main'
  { apt-get indextargets "$@" "Codename: $codename"
    apt-get indextargets --no-release-info "$@" "Release: $codename"; } | head -n 1
)
[ -n "$uri" ] || {
  echo "no source for Debian packages ($codename main) in /etc/apt" >&2
  exit 1
}
echo "$uri"
