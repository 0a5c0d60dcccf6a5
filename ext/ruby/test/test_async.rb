# frozen_string_literal: true

require_relative "helper"

# Under somebody else's real scheduler: the async gem, where it is installed.
class TestAsync < TLSTest
  def setup
    require "async"
  rescue LoadError
    skip "the async gem is not installed"
  end

  def shaken_pair(task)
    near, far = tcp_pair
    client = UM::TLS.wrap(near, client_context, hostname: "localhost", sync_close: true)
    server = UM::TLS.wrap(far, server_context, sync_close: true)
    accepting = task.async { server.accept }
    client.connect
    accepting.wait
    [client, server]
  end

  def test_everything_through_its_io_wait
    data = Random.bytes(5 << 20)
    Async do |task|
      client, server = shaken_pair(task)
      # Version 1 ends its io_wait by answering that the time is up, as if we had set one.
      timeout = Async::VERSION.start_with?("1.") ? UM::TimeoutError : Async::TimeoutError
      assert_raises(timeout) { task.with_timeout(0.02) { client.gets } }
      server.puts("after")
      assert_equal "after\n", client.gets
      writing = task.async { client.write(data) }
      assert_equal data, server.read(data.bytesize)
      writing.wait
      reading = task.async { client.read(1) }
      sleep 0.01
      reading.stop
      server.write("z")
      assert_equal "z", client.read(1)
      [client, server].each(&:close)
    end.wait
  end

  def test_many_connections
    counts = []
    Async do |task|
      50.times do |i|
        task.async do
          client, server = shaken_pair(task)
          echo = task.async { 20.times { server.write(server.gets) } }
          20.times do |j|
            client.puts("#{i} #{j}")
            counts << (client.gets == "#{i} #{j}\n")
          end
          echo.wait
          [client, server].each(&:close)
        end
      end
    end
    assert_equal({ true => 1000 }, counts.tally)
  end
end
