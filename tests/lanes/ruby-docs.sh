#!/bin/sh
# lane: the gem's RBS signatures, validated and checked against running tests, and its RDoc, all of it
# needs: what ./run setup installs
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
ruby=${RUBY:-ruby}
"$root/run" build
cd "$root/ext/ruby"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
export UM_CERTS="$root/build/certs"
extension=$root/build/release/ext/ruby

passed=0 failed=0 skipped=0
# ok NAME COMMAND...: one test; what the command says is shown if it fails.
ok() {
  title=$1
  shift
  if "$@" >"$tmp/log" 2>&1; then
    passed=$((passed + 1))
    echo "ok - $title"
  else
    failed=$((failed + 1))
    echo "not ok - $title"
    sed 's/^/  /' "$tmp/log"
  fi
}

[ -e "$extension/um_tls.so" ] || { echo "the extension was not built"; echo "0 passed, 1 failed, 0 skipped"; exit 1; }

# ---- documentation ----

# The sources themselves: what they include is no documentation of ours.
document() { "$ruby" -S rdoc "$@" lib ext/um_tls/*.c; }

# rdoc says what lacks, and succeeds.
covered() { document -C --dry-run >"$tmp/coverage" 2>&1 && cat "$tmp/coverage" && grep -q '100\.*0*% documented' "$tmp/coverage"; }

ok "rdoc finds nothing that is not documented" covered
document --quiet --ri --op "$tmp/ri"
ok "the page for those who come from uringmachine runs" \
  "$ruby" -W0 -I "$extension" -I lib check_examples.rb "$root/docs/ruby-from-uringmachine.md"

# Installed, the gem has nothing beside it.
inside() { ! grep -n '](\.\./' README.md CHANGELOG.md; }
ok "the gem's pages link to nothing outside of it" inside

# ---- signatures ----

if ! rbs=$("$ruby" -e 'print Gem.bin_path("rbs", "rbs")' 2>/dev/null); then
  echo "no rbs with $("$ruby" -e 'print RUBY_DESCRIPTION'): signatures were not looked at"
  skipped=$((skipped + 1))
else
  ok "the signatures are valid" "$ruby" "$rbs" -r openssl -r socket -I sig validate
  # Every public name, as Ruby has it loaded: C and Ruby alike.
  "$ruby" -I "$extension" -I lib check_docs.rb "$tmp/ri" >"$tmp/names" 2>&1 || true
  sed '$s/^/names: /' "$tmp/names"
  sum=$(tail -n 1 "$tmp/names")
  case $sum in
    *" passed, "*" failed, "*)
      passed=$((passed + ${sum%% passed*}))
      sum=${sum#*passed, }
      failed=$((failed + ${sum%% failed*})) ;;
    *) failed=$((failed + 1)) ;;
  esac

  # rbs/test compares each argument and result with its signature while tests run. Not with it:
  # tests that pass wrong types on purpose, pass lambdas (it makes procs of them) or look at the clock.
  typed() {
    file=$1
    shift
    RBS_TEST_LOGLEVEL=error RBS_TEST_RAISE=true RBS_TEST_TARGET='UM,UM::*' \
      RBS_TEST_OPT='-I sig -r openssl -r socket' \
      "$ruby" -W0 -r rbs/test/setup -I "$extension" -I lib -I test "test/$file.rb" "$@"
  }
  ok "types hold in the drop-in tests" typed test_drop_in
  ok "types hold in the schedulers' tests" typed test_schedulers -e '/its_buffer|test_sleep_block|bad_input/'
  ok "types hold in the machine's tests" typed test_machine -n /TestMachine/ -e '/spin_and_join|test_sleepers|bad_input/'
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
