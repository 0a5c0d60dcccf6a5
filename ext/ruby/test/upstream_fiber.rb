# frozen_string_literal: true

# Ruby's own test/fiber, unmodified: once with the schedulers that come with it, and once with
# UM::FiberScheduler under the same names (fiber_scheduler_shim.rb).
#
#   upstream_fiber.rb BUILD SOURCE       SOURCE: what scripts/ruby-source.sh unpacked
#
# Fails when a test that passes stock does not pass with ours and is not listed below, or when one
# that is listed passes. The last line is "N passed, N failed, N skipped".
require "fileutils"
require "rbconfig"

class UpstreamFiber
  # What test/fiber's own schedulers do, and ours does otherwise.
  DIFFERENT = {
    "TestFiberMutex#test_mutex_deadlock" =>
      "calls Fiber.yield in a scheduled fiber: ours are transferred to, nobody resumed them, so it raises FiberError",
    "TestFiberSleep#test_sleep" =>
      "reads the table of waiting fibers that test/fiber's own scheduler has",
    "TestFiberSleep#test_broken_sleep" =>
      "expects what a scheduled fiber raises to end its thread: ours tells about it on stderr, and others go on",
    "TestFiberThread#test_broken_unblock" =>
      "expects what a scheduled fiber raises to end its thread: ours tells about it on stderr, and others go on",
  }.freeze
  LIMIT = Integer(ENV.fetch("UM_UPSTREAM_LIMIT", "300"))

  def initialize(build, source)
    @source = File.expand_path(source)
    @logs = File.expand_path("upstream-fiber", build)
    @paths = [File.expand_path("ext/ruby", build), File.expand_path("../lib", __dir__)]
    @ran = []
    FileUtils.rm_rf(@logs)
    FileUtils.mkdir_p(@logs)
  end

  def run
    stock, ours = passed("stock", {}), passed("ours", with_ours)
    abort "no test passes with the stock scheduler: see #{@logs}/stock.log" if stock.empty?
    made = File.exist?(counts) ? File.readlines(counts).sum(&:to_i) : 0
    puts "#{stock.size} pass with the stock scheduler, #{ours.size} with ours (#{made} of ours were made)"
    excused, lost = (stock - ours).partition { |name| DIFFERENT.key?(name) }
    excused.each { |name| puts "different: #{name}: #{DIFFERENT[name]}" }
    lost.each { |name| puts "passes with the stock scheduler only: #{name}" }
    needless = DIFFERENT.keys & ours
    needless.each { |name| puts "listed as different, but passes: #{name}" }
    failed = lost.size + needless.size + (made.zero? ? 1 : 0)
    puts "#{(stock & ours).size} passed, #{failed} failed, #{@ran.size - (stock & ours).size - lost.size} skipped"
    exit failed.zero?
  end

  private

  def counts = File.join(@logs, "counts")

  # In every process that the tests start as well.
  def with_ours
    shim = File.expand_path("fiber_scheduler_shim.rb", __dir__)
    { "RUBYOPT" => [*@paths.map { |path| "-I#{path}" }, "-r#{shim}"].join(" "),
      "UM_FIBER_TESTS" => File.join(@source, "test/fiber"), "UM_COUNTS" => counts }
  end

  # The names of the tests that passed.
  def passed(name, environment)
    log = File.join(@logs, "#{name}.log")
    command = ["timeout", "-s", "KILL", LIMIT.to_s, RbConfig.ruby, "-W0", "-Itool/lib", "tool/test/runner.rb",
               "--verbose", "--show-skip", "--color=never", "test/fiber"]
    system(environment, *command, chdir: @source, out: log, err: %i[child out], in: File::NULL)
    text = File.read(log, encoding: "BINARY")
    puts "#{name}: #{text[/^\d+ tests, .*/] || "did not finish in #{LIMIT} s"}"
    ran = text.scan(%r{^\[ *\d+/\d+\] (\S+#\S+) = \d}).flatten
    @ran |= ran
    ran - text.scan(/^ *(?:\d+\) )?(?:Failure|Error|Skipped):\n([^\s\[:]+#[^\s\[:]+)/).flatten
  end
end

UpstreamFiber.new(*ARGV).run
