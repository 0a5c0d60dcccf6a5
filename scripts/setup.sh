#!/bin/sh
# Installs what building and testing need; ./run setup calls it. Says nothing when nothing is to do.
#
#   scripts/setup.sh [PACKAGE...]      Debian packages that a lane needs beside the others
#
# Debian: distribution packages, as root or with sudo. Debian 12 has liburing 2.3, where 2.9 is
# needed: Debian 13's package is unpacked under build/deps, so that the system mixes no releases.
# Elsewhere: only says what is missing.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
deps=$root/build/deps

packages="gcc libc6-dev make meson ninja-build pkgconf python3 libssl-dev libcriterion-dev
  openssl curl gnutls-bin nginx strace ca-certificates
  systemtap-sdt-dev python3-prometheus-client"
# The last ones are clients and servers for the gem's tests.
[ -d "$root/ext/ruby" ] && packages="$packages ruby ruby-dev ruby-minitest
  ruby-async ruby-webrick ruby-redis redis-server python3-aiosmtpd"

packages="$packages $*"

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

id=unknown version=
if [ -r /etc/os-release ]; then
  # shellcheck disable=SC1091
  id=$(. /etc/os-release; echo "${ID:-unknown}")
  version=$(. /etc/os-release; echo "${VERSION_ID:-}")
fi

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Words of "$@" that are not installed.
missing_packages() {
  installed=" $(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null |
    sed -n 's/^installed //p' | tr '\n' ' ')"
  for package; do
    case $installed in *" $package "*) ;; *) printf '%s ' "$package" ;; esac
  done
}

apt() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"
}

# Runs a command; its output is shown only if it fails.
quietly() {
  log=$(mktemp)
  if "$@" >"$log" 2>&1; then
    rm -f "$log"
  else
    sed 's/^/  /' "$log" >&2
    rm -f "$log"
    return 1
  fi
}

# nginx and redis are here for tests, which start them themselves: installing them must not start
# them as services, now or at the next boot.
install_packages() {
  policy=/usr/sbin/policy-rc.d
  if [ -e $policy ]; then
    policy=
  else
    # shellcheck disable=SC2064
    trap "as_root rm -f $policy" EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
    as_root chmod 755 $policy
  fi
  status=0
  quietly apt install -y --no-install-recommends "$@" || status=$?
  if [ -n "$policy" ]; then
    as_root rm -f "$policy"
    trap - EXIT INT TERM
  fi
  if command -v systemctl >/dev/null 2>&1; then
    for service in nginx redis-server; do
      case " $* " in *" $service "*) as_root systemctl disable $service >/dev/null 2>&1 || true ;; esac
    done
  fi
  return $status
}

setup_packages() {
  # shellcheck disable=SC2086
  missing=$(missing_packages $packages)
  [ -n "$missing" ] || return 0
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null 2>&1 ||
      die "needs root to install packages, and there is no sudo: run '$root/run setup' as root once"
    # Asks for the password where the question can be seen.
    sudo -v || die "needs root to install packages"
  fi
  say "installing $missing"
  quietly apt update || say "apt-get update failed; trying with the package lists that are there"
  for package in $missing; do
    apt-cache show "$package" >/dev/null 2>&1 ||
      die "the package sources of this machine have no '$package': see /etc/apt/sources.list.d, then run this again"
  done
  # shellcheck disable=SC2086
  install_packages $missing || die "apt-get could not install: $missing"
}

unpack_liburing() {
  say "unpacking a newer liburing under build/deps"
  mkdir -p "$root/build"
  new=$deps.new.$$
  # shellcheck disable=SC2064
  trap "rm -rf '$new'" EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  # linux-libc-dev too: liburing's headers use kernel headers that Debian 12's lack.
  "$root/scripts/debian-unpack.sh" trixie "$new" liburing-dev linux-libc-dev ||
    die "so Debian 13's liburing cannot be fetched"
  # The package has the asm/ headers of every architecture, each in a folder of its own.
  mv "$new/usr/include/$(gcc -print-multiarch)/asm" "$new/usr/include/asm"
  rm -rf "$new"/usr/include/*-linux-gnu* "$new/usr/share"
  mkdir "$new/objects"
  (cd "$new/objects" && ar x "$new"/usr/lib/*/liburing.a)
  rm -rf "$deps"
  mv "$new" "$deps"
  trap - EXIT INT TERM
}

setup_liburing() {
  pkg-config --atleast-version=2.9 liburing 2>/dev/null && return 0
  [ -d "$deps/objects" ] && return 0
  unpack_liburing
}

setup_elsewhere() {
  lacking=
  for tool in cc meson ninja pkg-config python3 openssl curl; do
    command -v $tool >/dev/null 2>&1 || lacking="$lacking $tool,"
  done
  if command -v pkg-config >/dev/null 2>&1; then
    pkg-config --atleast-version=2.9 liburing 2>/dev/null || lacking="$lacking liburing >= 2.9 with its headers,"
    pkg-config --atleast-version=3.0 openssl 2>/dev/null || lacking="$lacking OpenSSL >= 3.0 with its headers,"
    pkg-config --exists criterion 2>/dev/null || lacking="$lacking Criterion with its headers,"
  fi
  [ -z "$lacking" ] || die "this is not Debian 12 or later, so nothing is installed for you; missing:${lacking%,}"
}

if [ "$id" != debian ]; then
  setup_elsewhere
elif [ "$version" = 12 ]; then
  setup_packages
  setup_liburing
elif [ -z "$version" ] || [ "$version" -ge 13 ]; then
  # OpenSSL there names zstd among what a static link needs, and leaves its package to us.
  packages="$packages liburing-dev libzstd-dev"
  setup_packages
else
  die "Debian $version is too old: OpenSSL 3.0 came with Debian 12"
fi
