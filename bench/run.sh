#!/bin/sh
# bench/run.sh BUILD_DIR [ruby] [WORKLOAD...] [--quick] [--json FILE] ...
# `./run bench` comes here after building; bench.py --help has the rest, ruby --help that of Ruby.
set -eu
build=${1:?"usage: bench/run.sh BUILD_DIR [ruby] [WORKLOAD...] [--quick] [--json FILE]"}
shift
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
root=$(dirname "$here")
ablation=$root/build/ablation

# Design decisions can be switched off in a build of its own: the library that is shipped has
# no such switches.
build_ablation() {
  if [ "$(cat "$ablation/made-for" 2>/dev/null)" != "$root" ]; then
    rm -rf "$ablation"
    meson setup "$ablation" "$root" -Dablation=true -Dtests=false -Dtools=false \
      -Dexamples=false -Dman=false >"$root/build/ablation.log" 2>&1 || return 1
    echo "$root" >"$ablation/made-for"
  fi
  ninja --quiet -C "$ablation" >"$root/build/ablation.log" 2>&1
}

case ${1:-} in
  ruby)
    shift
    command -v "${RUBY:-ruby}" >/dev/null 2>&1 || { echo "bench: no ruby: install ruby and ruby-dev" >&2; exit 1; }
    exec "${RUBY:-ruby}" "$here/ruby/bench.rb" --build "$build" "$@" ;;
esac

for word; do
  [ "$word" = ablate ] || continue
  build_ablation || { cat "$root/build/ablation.log" >&2; exit 3; }
done
exec python3 "$here/bench.py" --build "$build" --ablation-build "$ablation" "$@"
