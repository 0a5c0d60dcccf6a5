# frozen_string_literal: true

require "minitest/autorun"
require "timeout"
require "um/tls"

# The line that scripts/sum-tests.sh adds up.
class SumReporter < Minitest::StatisticsReporter
  def report
    super
    failed = failures + errors
    io.puts "#{count - failed - skips} passed, #{failed} failed, #{skips} skipped"
  end
end

module Minitest
  def self.plugin_sum_init(options)
    reporter << SumReporter.new(options[:io], options)
  end
end
Minitest.extensions << "sum"

module Certificates
  FOLDER = ENV.fetch("UM_CERTS")

  def self.path(name) = File.join(FOLDER, name)

  def server_context(name = "server", **settings)
    context = OpenSSL::SSL::SSLContext.new
    chain = OpenSSL::X509::Certificate.load_file(Certificates.path("#{name}.pem"))
    key = OpenSSL::PKey.read(File.read(Certificates.path("#{name}.key")))
    context.add_certificate(chain[0], key, chain[1..])
    settings.each { |setting, value| context.public_send(:"#{setting}=", value) }
    context
  end

  def client_context(ca: "ca.pem", **settings)
    context = OpenSSL::SSL::SSLContext.new
    context.ca_file = Certificates.path(ca)
    context.verify_mode = OpenSSL::SSL::VERIFY_PEER
    context.verify_hostname = true
    settings.each { |setting, value| context.public_send(:"#{setting}=", value) }
    context
  end
end

# A hung test must fail, not hang the suite: the whole process ends, with every stack.
module Watchdog
  LIMIT = Integer(ENV.fetch("UM_TEST_LIMIT", "60"))

  def before_setup
    super
    test = "#{self.class}##{name}"
    main = Thread.current
    @watchdog = Thread.new do
      sleep @limit || LIMIT
      GC.stress = false
      # Not warn(), which tests may have silenced.
      $stderr.puts "#{test} hangs:", Thread.list.flat_map { |t| [t.inspect, *t.backtrace] }
      $stderr.puts main.backtrace
      exit! 1
    end
  end

  def after_teardown
    @watchdog.kill
    super
  end
end

class TLSTest < Minitest::Test
  include Certificates
  include Watchdog

  # A connected pair of TCP sockets.
  def tcp_pair
    server = TCPServer.new("127.0.0.1", 0)
    client = TCPSocket.new("127.0.0.1", server.local_address.ip_port)
    [client, server.accept]
  ensure
    server&.close
  end

  # What a test has measured, for who asks for it by UM_FIGURES=1.
  def figure(text)
    puts "#{name}: #{text}" if ENV["UM_FIGURES"]
  end

  # The block is true once when the machine lets it run: a load that delays it is no failure, and
  # what it asserts is asserted each time.
  def undisturbed
    200.times { return if yield }
    flunk "never in time, in 200 tries"
  end

  def seconds
    started = Process.clock_gettime(Process::CLOCK_MONOTONIC)
    yield
    Process.clock_gettime(Process::CLOCK_MONOTONIC) - started
  end
end
