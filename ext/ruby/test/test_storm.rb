# frozen_string_literal: true

require_relative "helper"
require_relative "allocator"

# Many connections on one thread while some of them are hit by timeouts, exceptions and closes.
# UM_STORM="CONNECTIONS SECONDS" makes it bigger: the full one is "1000 60".
class TestStorm < TLSTest
  CONNECTIONS, SECONDS = (ENV["UM_STORM"] || "60 1").split.map(&:to_i)
  ROUNDS = 4

  class Hit < StandardError
  end

  def before_setup
    @limit = 60 + 2 * ROUNDS * SECONDS
    super
  end

  def setup
    @machine = UM.new
    @client_context, @server_context = client_context, server_context
    @tcp = TCPServer.new("127.0.0.1", 0)
    @tcp.listen(4096)
    @counts = Hash.new(0)
    @failures = []
  end

  def teardown
    @machine.shut_down
    @tcp.close
  end

  def serve(fd)
    ssl = UM::TLS.wrap(TCPSocket.for_fd(fd), @server_context, sync_close: true)
    ssl.accept
    loop { ssl.write(ssl.readpartial(65536)) }
  rescue EOFError, SystemCallError, IOError, OpenSSL::SSL::SSLError
    @counts[:server_ends] += 1
  ensure
    ssl&.close
  end

  def connect
    io = Socket.new(:INET, :STREAM)
    @machine.connect(io, "127.0.0.1", @tcp.local_address.ip_port)
    ssl = UM::TLS.wrap(io, @client_context, hostname: "localhost", sync_close: true)
    ssl.connect
    ssl
  rescue Exception
    io.close
    raise
  end

  def exchange(ssl, random)
    data = random.bytes(random.rand(1..(random.rand(10).zero? ? 200_000 : 3000)))
    writer = @machine.spin { ssl.write(data) }
    got = ssl.read(data.bytesize)
    @machine.join(writer).then { |result| raise result if result.is_a?(Exception) }
    got == data or raise "#{data.bytesize} bytes came back as #{got&.bytesize} others"
    @counts[:exchanges] += 1
  end

  # Never touched: not a byte may be lost or doubled.
  def peaceful(index)
    random = Random.new(index)
    ssl = connect
    exchange(ssl, random) until over?
    ssl.close
  rescue Exception => e
    @failures << e
  end

  # Reads that time out leave the connection usable: the bytes come later, once.
  def impatient(index)
    random = Random.new(index)
    ssl = connect
    until over?
      data = random.bytes(random.rand(1..5000))
      got = +""
      begin
        @machine.timeout(0.0001 * random.rand(1..20), Hit.new) { got << ssl.readpartial(10_000) }
      rescue Hit
        @counts[:timeouts] += 1
      end
      ssl.write(data)
      while got.bytesize < data.bytesize
        begin
          @machine.timeout(0.0002 * random.rand(1..20), Hit.new) { got << ssl.readpartial(10_000) }
        rescue Hit
          @counts[:timeouts] += 1
        end
      end
      raise "timed out reads changed the stream" unless got == data
    end
    ssl.close
  rescue Exception => e
    @failures << e
  end

  def doomed(index)
    random = Random.new(index)
    until over?
      begin
        ssl = connect
        @open[index] = ssl
        exchange(ssl, random) until over?
      rescue Hit, IOError, SystemCallError, OpenSSL::SSL::SSLError
        @counts[:hits] += 1
      ensure
        @open[index] = nil
        ssl&.close
      end
    end
  rescue Hit
    @counts[:late_hits] += 1
  rescue Exception => e
    @failures << e
  end

  def fate(victims)
    random = Random.new(7)
    until over?
      @machine.sleep(0.002)
      index, fiber = victims.to_a.sample(random: random)
      next if fiber.done?
      random.rand(2).zero? ? fiber.raise(Hit, "hit") : @open[index]&.close
    end
  end

  def over? = Process.clock_gettime(Process::CLOCK_MONOTONIC) > @end

  def resident = File.read("/proc/self/statm").split[1].to_i * 4

  def run_storm(duration)
    @end = Process.clock_gettime(Process::CLOCK_MONOTONIC) + duration
    @open = {}
    acceptor = @machine.spin { @machine.accept_each(@tcp) { |fd| @machine.spin { serve(fd) } } }
    third = CONNECTIONS / 3
    clients = Array.new(third) { |i| @machine.spin { peaceful(i) } }
    clients += Array.new(third) { |i| @machine.spin { impatient(i) } }
    victims = Array.new(third) { |i| [i, @machine.spin { doomed(i) }] }.to_h
    @machine.await(@machine.spin { fate(victims) }, *clients, *victims.values)
    @machine.terminate(acceptor)
    @machine.drain
  end

  # What a round left behind, the garbage apart.
  def left
    3.times { GC.start }
    Allocator.trim
    {
      fds: Dir.children("/proc/self/fd").size, live: @machine.live,
      pending: @machine.metrics[:pending], buffers: @machine.metrics[:buffers_used],
      sockets: ObjectSpace.each_object(BasicSocket).count { |io| !io.closed? },
      resident: resident, allocated: Allocator.in_use
    }
  end

  # Of what was allocated nothing may be left. The process itself still grows a little, for a while:
  # Ruby keeps the stacks of fibers that ended, and every round touches some of them more deeply.
  def test_storm
    start = left
    rounds = Array.new(ROUNDS) { run_storm(SECONDS) && left }
    puts @counts, start, rounds if ENV["UM_STORM"]
    assert_empty @failures.map { |e| "#{e.class}: #{e.message} #{e.backtrace&.first(3)}" }
    %i[exchanges timeouts hits].each { |kind| assert_operator @counts[kind], :>, 0, kind }
    rounds.each do |round|
      assert_operator round[:pending], :<=, 1 # the wake-up
      assert_equal start.slice(:live, :buffers, :sockets), round.slice(:live, :buffers, :sockets)
      assert_operator round[:fds], :<=, start[:fds], "descriptors"
    end
    assert_operator rounds[-1][:resident] - rounds[-2][:resident], :<, 10_000 + CONNECTIONS * 50
    return unless Allocator.known?
    assert_operator rounds[-1][:allocated] - rounds[1][:allocated], :<, 256 + CONNECTIONS / 4, "KiB allocated"
  end
end
