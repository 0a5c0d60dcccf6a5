# frozen_string_literal: true

require_relative "helper"

# The garbage collector, Ractors, and what the wire sees.
class TestCore < TLSTest
  def shaken_pair(**options)
    near, far = tcp_pair
    client = UM::TLS.wrap(near, client_context, hostname: "localhost", **options)
    server = UM::TLS.wrap(far, server_context, **options)
    [-> { client.connect }, -> { server.accept }].map { |block| Thread.new(&block) }.each(&:join)
    [client, server]
  end

  def test_defaults
    context = OpenSSL::SSL::SSLContext.new
    assert_same context, UM::TLS.defaults(context)
    assert_equal OpenSSL::SSL::OP_NO_COMPRESSION, context.options & OpenSSL::SSL::OP_NO_COMPRESSION
    assert_equal 1 << 30, context.options & 1 << 30, "SSL_OP_NO_RENEGOTIATION"
    names = context.ciphers.map(&:first)
    assert_includes names, "ECDHE-RSA-AES128-GCM-SHA256"
    assert_empty names.reject { |name| name.match?(/GCM|POLY1305/) }
    assert_raises(TypeError) { UM::TLS.defaults("context") }
    context.freeze # answers true
    assert_raises(FrozenError) { UM::TLS.defaults(context) }
  end

  # A collection at each object: a minute and more on a busy machine.
  def before_setup
    @limit = 300 if name.start_with?("test_gc_stress")
    super
  end

  def under_stress
    GC.stress = true
    yield
  ensure
    GC.stress = false
  end

  def test_gc_stress_in_threads
    client, server = shaken_pair
    under_stress do
      5.times do |i|
        client.write("line #{i}\n", "x" * 3000)
        assert_equal "line #{i}\n", server.gets
        assert_equal "x" * 3000, server.read(3000)
        assert_equal :wait_readable, client.read_nonblock(10, exception: false)
      end
    end
    [client, server].each { |ssl| ssl.to_io.close }
  end

  def test_gc_stress_on_a_machine
    machine = UM.new
    client, server = shaken_pair
    under_stress do
      echo = machine.spin { 5.times { server.write(server.readpartial(100)) } }
      got = machine.join(machine.spin { Array.new(5) { |i| client.write("ping #{i}") && client.readpartial(100) } })
      machine.join(echo)
      assert_equal Array.new(5) { |i| "ping #{i}" }, got
      reader, writer = UM.pipe
      assert_equal [1], machine.join([machine.spin { machine.read(reader, +"", 10) }].tap { machine.write(writer, "x") })
      assert_raises(UM::TimeoutError) { machine.timeout(0.001, UM::TimeoutError) { machine.sleep(1) } }
    end
    machine.shut_down
    [client, server].each { |ssl| ssl.to_io.close }
  end

  def test_parked_fibers_survive_collection_and_compaction
    machine = UM.new
    pairs = Array.new(20) { shaken_pair }
    readers = pairs.map { |client, _| machine.spin { client.gets + client.gets } }
    machine.snooze
    3.times do |i|
      GC.start
      GC.compact if GC.respond_to?(:compact)
      Array.new(10_000) { "garbage #{i}" }
    end
    pairs.each_with_index { |(_, server), i| server.write("#{i}\n", "and #{i}\n") }
    assert_equal Array.new(20) { |i| "#{i}\nand #{i}\n" }, machine.join(readers)
    machine.shut_down
    pairs.flatten.each { |ssl| ssl.to_io.close }
  end

  # A connection nobody refers to any more goes away quietly, with or without its peer.
  def test_forgotten_connections_are_collected
    100.times { shaken_pair.each { |ssl| ssl.write("unread") } }
    2.times { GC.start }
    assert_operator ObjectSpace.each_object(UM::TLS::Socket).count, :<, 150
  end

  def value_of(ractor) = ractor.respond_to?(:take) ? ractor.take : ractor.value

  def skip_where_threads_of_ractors_move
    skip "Ruby 3.3 moves the threads of Ractors between native ones" if RUBY_VERSION.start_with?("3.3")
  end

  def test_a_ring_is_refused_where_threads_move
    verbose, $VERBOSE = $VERBOSE, nil
    skip "only Ruby 3.3 cannot be told to leave them" unless RUBY_VERSION.start_with?("3.3")
    ractor = Ractor.new do
      UM.new
    rescue UM::Error => e
      e.message
    end
    assert_match(/Ruby 3.3 moves/, value_of(ractor))
  ensure
    $VERBOSE = verbose
  end

  # The machine needs nothing of the openssl gem.
  # One after the other: Ruby shares the stacks of fibers between Ractors without a lock, so that two
  # of them at once crash with no library at all (seen on 3.1 and 3.3).
  def test_machines_in_ractors
    verbose, $VERBOSE = $VERBOSE, nil
    skip_where_threads_of_ractors_move
    answers = Array.new(2) do |number|
      ractor = Ractor.new(number) do |mine|
        machine = UM.new
        reader, writer = IO.pipe
        got = +""
        fiber = machine.spin { machine.read(reader, got, 10) }
        queue = UM::Queue.new
        machine.spin { machine.sleep(0.001) and machine.push(queue, mine) }
        machine.write(writer, "ractor #{mine}")
        machine.join(fiber)
        [got, machine.blocking { queue.shift }]
      ensure
        machine.shut_down
      end
      value_of(ractor)
    end
    assert_equal [["ractor 0", 0], ["ractor 1", 1]], answers
  ensure
    $VERBOSE = verbose
  end

  def test_a_scheduler_in_a_ractor
    verbose, $VERBOSE = $VERBOSE, nil
    skip_where_threads_of_ractors_move
    ractor = Ractor.new do
      order = []
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule { sleep(0.002) and order << 2 }
      Fiber.schedule { sleep(0.001) and order << 1 }
      Fiber.set_scheduler(nil)
      order
    end
    assert_equal [1, 2], value_of(ractor)
  ensure
    $VERBOSE = verbose
  end

  def nonblock_in_ractors?
    ractor = Ractor.new do
      IO.pipe[0].nonblock = true
    rescue Ractor::UnsafeError
      false
    end
    value_of(ractor)
  end

  def test_in_a_ractor
    verbose, $VERBOSE = $VERBOSE, nil
    skip "io/nonblock, which the openssl gem needs, refuses Ractors here" unless nonblock_in_ractors?
    near, far = tcp_pair
    folder = Certificates::FOLDER
    server = UM::TLS.wrap(far, server_context)
    ractor = Ractor.new(near.tap { |io| io.autoclose = false }.fileno, folder) do |fd, certificates|
      context = OpenSSL::SSL::SSLContext.new
      context.verify_mode = OpenSSL::SSL::VERIFY_NONE
      ssl = UM::TLS.wrap(TCPSocket.for_fd(fd), context)
      ssl.connect
      ssl.write("from a ractor")
      ssl.read(2)
    end
    server.accept
    assert_equal "from a ractor", server.readpartial(100)
    server.write("ok")
    assert_equal "ok", value_of(ractor)
  ensure
    $VERBOSE = verbose
  end

  # connect, accept, write, read and close, each in a fiber or thread of its own.
  def life(together, size = 300_000)
    near, far = tcp_pair
    client = UM::TLS.wrap(near, client_context, hostname: "localhost", sync_close: true)
    server = UM::TLS.wrap(far, server_context, sync_close: true)
    together.(-> { client.connect }, -> { server.accept })
    data = Random.bytes(size)
    written, got = together.(-> { client.write(data) }, -> { server.read(data.bytesize) })
    assert_equal [data.bytesize, true], [written, got == data]
    assert_equal ["x\n", nil], together.(-> { [client.gets, client.gets] }, -> { [server.puts("x"), server.close] }).first
    client.close
    assert client.closed? && server.closed?
  end

  def in_threads = ->(*blocks) { blocks.map { |block| Thread.new(&block) }.map(&:value) }

  # Not what a fiber raised, but an array of what they returned.
  def on(machine)
    lambda do |*blocks|
      results = machine.join(blocks.map { |block| machine.spin { [block.call] } })
      results.map { |result| result.is_a?(Exception) ? raise(result) : result[0] }
    end
  end

  def test_gc_stress_over_a_life
    machine = UM.new
    under_stress { life(in_threads, 20_000) }
    under_stress { life(on(machine), 20_000) }
    machine.shut_down
  end

  # Objects are moved whenever something waits.
  def test_compaction_over_a_life
    skip "no GC.compact here" unless GC.respond_to?(:compact)
    compacting = true
    compactor = Thread.new { GC.compact while compacting && sleep(0.001) }
    machine = UM.new
    5.times { life(in_threads) }
    5.times { life(on(machine)) }
    machine.spin { (GC.compact; machine.sleep(0.001)) while compacting }
    5.times { life(on(machine)) }
  ensure
    compacting = false
    compactor&.join
    machine&.drain
    machine&.shut_down
  end

  # Sends of this process while the block runs, as strace sees them. (A proxy that counts what it
  # is given at a time would see TCP's choices.)
  def sends
    trace = "/tmp/um-trace-#{$$}"
    tracer = spawn("strace", "-f", "-p", $$.to_s, "-e", "trace=sendto", "-o", trace, err: File::NULL)
    50.times { File.exist?(trace) ? break : sleep(0.02) }
    sleep 0.2
    yield
    Process.kill(:INT, tracer)
    Process.wait(tracer)
    File.foreach(trace).grep(/sendto\(/).grep_v(/EAGAIN/).size
  ensure
    File.unlink(trace) if File.exist?(trace)
  end

  # In a ring what is submitted is counted too, whatever it is.
  def test_large_writes_are_few_sends
    skip "no strace" unless system("command -v strace >/dev/null 2>&1")
    size = 64 << 20
    machine = UM.new
    writers = { thread: ->(write) { write.call }, ring: ->(write) { machine.join(machine.spin { [write.call] }) } }
    writers.each do |kind, writer|
      client, server = shaken_pair
      reader = Thread.new do
        buffer = +""
        got = 0
        got += server.readpartial(1 << 20, buffer).bytesize while got < size
        got
      end
      sent = sends { writer.call(-> { client.write("x" * size) }) && assert_equal(size, reader.value) }
      skip "strace may not attach here" if sent.zero?
      sent += machine.metrics[:submissions] if kind == :ring
      figure "#{kind}: #{sent} sends for #{size / 16_384} records"
      assert_operator sent, :<, size / 16_384 / 2, "#{kind}: #{sent} sends for #{size / 16_384} records"
      [client, server].each { |ssl| ssl.to_io.close }
    end
    machine.shut_down
  end
end
