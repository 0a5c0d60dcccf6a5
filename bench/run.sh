#!/bin/sh
# bench/run.sh BUILD_DIR [WORKLOAD...] [--quick] [--json FILE] ...
# `./run bench` comes here after building; bench.py --help has the rest.
set -eu
build=${1:?"usage: bench/run.sh BUILD_DIR [WORKLOAD...] [--quick] [--json FILE]"}
shift
exec python3 "$(dirname "$0")/bench.py" --build "$build" "$@"
