# frozen_string_literal: true

# Ruby's own tests of SSLSocket, and of what the standard library puts on top of it, unmodified:
# once with stock sockets, and once with UM::TLS.install under every one.
#
#   upstream.rb BUILD SOURCE       SOURCE: what scripts/ruby-source.sh unpacked
#
# Fails when a test that passes with stock sockets does not pass with ours. The last line is
# "N passed, N failed, N skipped"; skipped is what the stock socket does not pass either.
require "fileutils"
require "rbconfig"

class Upstream
  FILES = %w[openssl/test_ssl.rb openssl/test_ssl_session.rb openssl/test_pair.rb openssl/test_ssl_server.rb
             net/http/test_https.rb net/http/test_https_proxy.rb net/smtp/test_ssl.rb net/smtp/test_starttls.rb
             drb/test_drbssl.rb open-uri/test_ssl.rb].freeze
  LIMIT = Integer(ENV.fetch("UM_UPSTREAM_LIMIT", "600"))

  # In every process the tests start as well. What it counts shows that the sockets were ours.
  PRELOAD = <<~'RUBY'
    require "um/tls"
    $um_attached = 0
    UM::TLS::Methods.prepend(Module.new do
      private def um_attach(...)
        $um_attached += 1
        super
      end
    end)
    UM::TLS.install
    pid = $$
    at_exit { File.write(ENV["UM_COUNTS"], "#{$um_attached}\n", mode: "a") if $$ == pid }
  RUBY

  def initialize(build, source)
    @source = File.expand_path(source)
    @logs = File.expand_path("upstream", build)
    @paths = [File.expand_path("ext/ruby", build), File.expand_path("../lib", __dir__)]
    @files = FILES.map { |file| "test/#{file}" }.select { |file| File.exist?(File.join(@source, file)) }
    @ran = []
    FileUtils.rm_rf(@logs)
    FileUtils.mkdir_p(@logs)
  end

  def run
    stock = passed("stock", {})
    ours = passed("ours", with_ours)
    abort "no test passes with stock sockets: see #{@logs}/stock.log" if stock.empty?
    attached = File.exist?(counts) ? File.readlines(counts).sum(&:to_i) : 0
    puts "#{stock.size} pass with stock sockets, #{ours.size} with ours (#{attached} sockets of ours were made)"
    lost = stock - ours
    lost << "no socket was ours" if attached.zero?
    said = File.read(File.join(@logs, "ours.log"), encoding: "BINARY")
    lost.each { |name| puts "passes with stock sockets only: #{name}", said[/^#{Regexp.escape(name)}[\s\[:](?!.* = ).*?\n\n/m] }
    puts "#{(stock & ours).size} passed, #{lost.size} failed, #{@ran.size - (stock | ours).size} skipped"
    exit lost.empty?
  end

  private

  def counts = File.join(@logs, "counts")

  def with_ours
    preload = File.join(@logs, "preload.rb")
    File.write(preload, PRELOAD)
    { "RUBYOPT" => [*@paths.map { |path| "-I#{path}" }, "-r#{preload}"].join(" "), "UM_COUNTS" => counts }
  end

  # The names of the tests that passed.
  def passed(name, environment)
    log = File.join(@logs, "#{name}.log")
    command = ["timeout", LIMIT.to_s, RbConfig.ruby, "-W0", "-Itool/lib", "tool/test/runner.rb",
               "--verbose", "--show-skip", "--color=never", *@files]
    system(environment, *command, chdir: @source, out: log, err: %i[child out], in: File::NULL)
    text = File.read(log, encoding: "BINARY")
    puts "#{name}: #{text[/^\d+ tests, .*/] || "did not finish in #{LIMIT} s"}"
    ran = text.scan(%r{^\[ *\d+/\d+\] (\S+#\S+) = }).flatten
    @ran |= ran
    ran - text.scan(/^ *(?:\d+\) )?(?:Failure|Error|Skipped):\n([^\s\[:]+(?:::[^\s\[:]+)*#[^\s\[:]+)/).flatten
  end
end

Upstream.new(*ARGV).run
