#!/bin/sh
# lane: the gem, built and installed without a network, over an installed library and over this tree
# needs: what ./run setup installs
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
ruby=${RUBY:-ruby}
"$root/scripts/setup.sh"
"$root/certs/make.sh" "$root/build/certs"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

passed=0 failed=0
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

not() { ! "$@"; }

gem() { "$ruby" -S gem "$@"; }

# Where it can be made, a network namespace with nothing in it, not even loopback.
offline=
for isolate in "unshare --net" "unshare --map-root-user --net"; do
  if [ -z "$offline" ] && $isolate true 2>/dev/null; then offline=$isolate; fi
done
[ -n "$offline" ] || echo "no network namespaces here: offline means gem's --local only"

# ---- the file ----

# A copy of ext/ruby alone: what the gem needs of the tree around it would be missed.
cp -a "$root/ext/ruby" "$tmp/source"
file=$tmp/um-tls.gem
build_gem() {
  (cd "$tmp/source" && $offline "$ruby" -S gem build --norc -o "$file" um-tls.gemspec) >"$tmp/said" 2>&1 &&
    sed '/^WARNING:  no homepage specified/d; /^WARNING:  See /d' "$tmp/said" >"$tmp/warned" &&
    cat "$tmp/warned" && not grep -q WARNING "$tmp/warned"
}

field() { gem specification --norc "$file" "$1" --yaml | "$ruby" -ryaml -e 'puts YAML.unsafe_load($stdin.read).to_s'; }

# All that is sources, signatures and documents, and nothing else.
has_files() {
  tar -xOf "$file" data.tar.gz | tar -tzf - | sort >"$tmp/in-gem"
  (cd "$tmp/source" && { find lib -name '*.rb'; find sig -name '*.rbs'
    find ext/um_tls -name '*.[ch]' -o -name extconf.rb; echo README.md; echo CHANGELOG.md; echo LICENSE; }) |
    sort >"$tmp/expected"
  diff "$tmp/expected" "$tmp/in-gem"
}

version() { "$ruby" -I "$tmp/source/lib" -e 'require "um/version"; print UM::VERSION'; }

has_version() { [ "$(field version)" = "$(version)" ]; }

# The first heading of the changelog is about this version.
has_changes() { [ "$(sed -n 's/^## \([0-9.]*\).*/\1/p' "$tmp/source/CHANGELOG.md" | head -n 1)" = "$(version)" ]; }

has_licence() { [ "$(field license)" = MIT ] && cmp "$root/LICENSE" "$tmp/source/LICENSE"; }

ok "gem build, without a warning" build_gem
ok "it holds the sources, the signatures and the documents, no more" has_files
ok "its version is UM::VERSION" has_version
ok "the changelog begins with that version" has_changes
ok "its licence is the project's" has_licence

# ---- installed ----

# install DOCUMENTS NAME [BUILD OPTIONS]: into a GEM_HOME of its own.
install() {
  documents=$1 name=$2
  shift 2
  mkdir -p "$tmp/$name"
  (cd "$tmp" && GEM_HOME=$tmp/$name $offline "$ruby" -S gem install --norc --local --document $documents \
    "$file" -- "$@") && return
  # What mkmf tried is in a file of its own.
  find "$tmp/$name" -name mkmf.log -exec tail -n 30 {} +
  return 1
}

installed_ruby() {
  name=$1
  shift
  GEM_HOME=$tmp/$name UM_CERTS=$root/build/certs "$ruby" -W1 "$@"
}

cat >"$tmp/echo.rb" <<'END'
context = OpenSSL::SSL::SSLContext.new
chain = OpenSSL::X509::Certificate.load_file("#{ENV["UM_CERTS"]}/server.pem")
context.add_certificate(chain[0], OpenSSL::PKey.read(File.read("#{ENV["UM_CERTS"]}/server.key")), chain[1..])
trusting = OpenSSL::SSL::SSLContext.new
trusting.set_params(ca_file: "#{ENV["UM_CERTS"]}/ca.pem")
data = Random.bytes(1 << 20)
listener = TCPServer.new("127.0.0.1", 0)
echo = proc do
  server = UM::TLS::Server.new(listener, context).accept
  server.write(server.read(data.bytesize))
  server.close
end
client = proc do
  socket = TCPSocket.new("127.0.0.1", listener.local_address.ip_port)
  ssl = UM::TLS.wrap(socket, trusting, hostname: "localhost", sync_close: true)
  ssl.connect
  ssl.write(data)
  got = ssl.read
  ssl.close
  got
end
Thread.new(&echo)
raise "threads: other bytes" unless client.call == data
got = nil
Thread.new do
  Fiber.set_scheduler(UM::FiberScheduler.new)
  Fiber.schedule(&echo)
  Fiber.schedule { got = client.call }
end.join
raise "fibers: other bytes" unless got == data
puts "echoed", Gem.loaded_specs.fetch("um-tls").full_gem_path, $LOADED_FEATURES.grep(/um_tls/),
     File.read("/proc/self/maps").scan(%r{/\S*bio_uring\S*}).uniq
END

# echoes NAME WHERE: by the installed gem; with the library of WHERE mapped, or none.
echoes() {
  installed_ruby "$1" -rum/tls "$tmp/echo.rb" >"$tmp/said" || return
  cat "$tmp/said"
  [ "$(sed -n 1p "$tmp/said")" = echoed ] || return
  not grep -v "^echoed\$\|^$tmp/" "$tmp/said" || return
  if [ -n "$2" ]; then grep "^$2/.*libbio_uring" "$tmp/said"; else not grep libbio_uring "$tmp/said"; fi
}

passes_core_tests() { installed_ruby "$1" -rum/tls -I "$tmp/source/test" "$tmp/source/test/test_core.rb"; }

has_documents() { [ -e "$(find "$tmp/$1/doc" -path '*rdoc/UM/TLS.html')" ]; }

# Without a library there is no gem, and the user is told what to do.
refused() {
  not install none nothing >"$tmp/refusal" 2>&1 || return
  cat "$tmp/refusal"
  grep -q "needs libbio_uring and did not find it" "$tmp/refusal" &&
    grep -q "with-bio-uring-tree=DIR" "$tmp/refusal"
}

export PKG_CONFIG_PATH=
if pkg-config --exists bio_uring; then
  echo "libbio_uring is installed on this machine: not looked at how its absence is told"
else
  ok "without the library it says what to do" refused
fi

ok "over the tree: installs" install ri,rdoc tree --with-bio-uring-tree="$root"
ok "over the tree: echoes TLS" echoes tree ""
ok "over the tree: brings its documents" has_documents tree

prefix=$tmp/prefix
install_library() {
  meson setup "$tmp/build" "$root" --prefix="$prefix" --libdir=lib --buildtype=release \
    -Dtests=false -Dtools=false -Dexamples=false -Dbench=false -Dman=false &&
    meson install -C "$tmp/build"
}
ok "meson install into a prefix" install_library
export PKG_CONFIG_PATH="$prefix/lib/pkgconfig" LD_LIBRARY_PATH="$prefix/lib"
ok "over pkg-config: installs" install none packaged
ok "over pkg-config: echoes TLS" echoes packaged "$prefix"
ok "over pkg-config: passes its core tests" passes_core_tests packaged

echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]
