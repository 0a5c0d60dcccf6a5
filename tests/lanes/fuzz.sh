#!/bin/sh
# lane: clang's libFuzzer against TLS streams, the memory BIO and HTTP, 60 seconds
# needs: clang (installed)
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
"$root/run" build
exec "$root/scripts/fuzz.sh" 60
