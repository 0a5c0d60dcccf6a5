#!/bin/sh
# lane: compiled with clang, where a warning is an error; the same tests
# needs: clang (installed)
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
"$root/scripts/setup.sh" clang
"$root/run" build
CC=clang "$root/scripts/variant.sh" clang -Dwerror=true
