#!/bin/sh
# ./run abuse and ./run soak: hostile peers against the build in the folder BUILD.
#
#   scripts/abuse.sh BUILD abuse|soak [ARGUMENT...]
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
build=$1 what=$2
shift 2
export UM_TLS="$build/tools/um-tls/um-tls" ATTACKER="$build/tests/abuse/attacker"
export UM_CERTS="$root/build/certs" ABUSE_FOLDER="$root/build/abuse" PYTHONDONTWRITEBYTECODE=1
mkdir -p "$ABUSE_FOLDER"
ulimit -n "$(ulimit -H -n)"
exec python3 "$root/tests/abuse/$what.py" "$@"
