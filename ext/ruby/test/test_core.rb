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

  def nonblock_in_ractors?
    ractor = Ractor.new do
      IO.pipe[0].nonblock = true
    rescue Ractor::UnsafeError
      false
    end
    ractor.respond_to?(:take) ? ractor.take : ractor.value
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
    assert_equal "ok", ractor.respond_to?(:take) ? ractor.take : ractor.value
  ensure
    $VERBOSE = verbose
  end

  # A proxy that counts what it is given at a time would see TCP's choices; strace sees ours.
  def test_large_writes_are_few_sends
    skip "no strace" unless system("command -v strace >/dev/null 2>&1")
    trace = "/tmp/um-trace-#{$$}"
    client, server = shaken_pair
    size = 64 << 20
    reader = Thread.new do
      buffer = +""
      got = 0
      got += server.readpartial(1 << 20, buffer).bytesize while got < size
      got
    end
    tracer = spawn("strace", "-f", "-p", $$.to_s, "-e", "trace=sendto", "-o", trace, err: File::NULL)
    50.times { File.exist?(trace) ? break : sleep(0.02) }
    sleep 0.2
    client.write("x" * size)
    assert_equal size, reader.value
    Process.kill(:INT, tracer)
    Process.wait(tracer)
    calls = File.foreach(trace).grep(/sendto\(/)
    skip "strace may not attach here" if calls.empty?
    sends = calls.grep_v(/EAGAIN/).size
    assert_operator sends, :<, size / 16_384 / 2, "#{sends} sends for #{size / 16_384} records"
  ensure
    File.unlink(trace) if trace && File.exist?(trace)
    [client, server].compact.each { |ssl| ssl.to_io.close }
  end
end
