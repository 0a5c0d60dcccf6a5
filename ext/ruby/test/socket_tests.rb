# frozen_string_literal: true

require_relative "helper"
require_relative "bad_input_tests"

# What every kind of surroundings must do alike. A class that includes this says with
# #concurrently how two things run at once there, and with #wrap which socket it is about;
# the peer is the same kind, or stock.
module SocketTests
  include BadInputTests

  # Runs the blocks at once and returns their results.
  def concurrently(*blocks) = threads(*blocks)

  def threads(*blocks) = blocks.map { |block| Thread.new(&block) }.map(&:value)

  # Which peers can run beside ours: a stock one blocks its thread.
  def kinds = %i[ours stock]

  def around = yield

  def wrap(io, context, **options) = UM::TLS.wrap(io, context, sync_close: true, **options)

  def stock(io, context, hostname: nil)
    ssl = OpenSSL::SSL::SSLSocket.new(io, context)
    ssl.hostname = hostname if hostname
    ssl.sync_close = true
    ssl
  end

  # A shaken pair: the client ours, the server the kind that is asked for.
  def pair(server: :ours, server_context: self.server_context, client_context: self.client_context,
           **options)
    near, far = tcp_pair
    client = wrap(near, client_context, hostname: "localhost", **options)
    peer = server == :ours ? wrap(far, server_context, **options) : stock(far, server_context)
    concurrently(-> { client.connect }, -> { peer.accept })
    [client, peer]
  end

  def each_pair
    kinds.each do |server|
      around do
        client, peer = pair(server: server)
        yield client, peer
      ensure
        client&.close
        peer&.close
      end
    end
  end

  def test_handshake_tells_what_stock_tells
    each_pair do |client, peer|
      assert_kind_of OpenSSL::SSL::SSLSocket, client
      assert_equal "TLSv1.3", client.ssl_version
      assert_equal peer.cipher, client.cipher
      assert_match(/CN=localhost/, client.peer_cert.subject.to_s)
      assert_equal 2, client.peer_cert_chain.size
      assert client.post_connection_check("localhost")
      assert_equal OpenSSL::X509::V_OK, client.verify_result
      refute client.session_reused?
      assert_same client.io, client.to_io
      assert_equal client.io.fileno, client.fileno
    end
  end

  def test_both_ways
    each_pair do |client, peer|
      client.write("to the server\n", "twice\n")
      assert_equal "to the server\n", peer.gets
      assert_equal "twice\n", peer.gets
      peer.puts("to", :the, "client")
      assert_equal %W[to\n the\n client\n], Array.new(3) { client.gets }
      peer << "a" << "b"
      peer.print("c", "d")
      peer.printf("%03d", 7)
      assert_equal "abcd007", client.read(7)
    end
  end

  def test_reading_every_way
    each_pair do |client, peer|
      peer.write("line 1\nline 2\nrest of it")
      peer.close
      assert_equal "line 1\n", client.readline
      client.ungetc("L")
      assert_equal "L", client.getc
      client.each_line { |line| break assert_equal("line 2\n", line) }
      assert_equal "r".ord, client.getbyte
      assert_equal "est", client.readpartial(3)
      buffer = +"something long that goes away"
      assert_same buffer, client.read(3, buffer)
      assert_equal " of", buffer
      refute client.eof?
      assert_equal " it", client.read
      assert client.eof?
      assert_nil client.read(1)
      assert_equal "", client.read
      assert_raises(EOFError) { client.sysread(1) }
      assert_raises(EOFError) { client.readpartial(1) }
      assert_nil client.read_nonblock(1, exception: false)
    end
  end

  def test_sysread_and_its_buffer
    each_pair do |client, peer|
      peer.syswrite("0123456789")
      assert_equal "", client.sysread(0)
      assert_equal "0123", client.sysread(4)
      assert_equal 6, client.pending
      buffer = +"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
      assert_same buffer, client.sysread(100, buffer)
      assert_equal "456789", buffer
      assert_raises(FrozenError) { client.sysread(1, "frozen") }
      assert_raises(TypeError) { client.sysread("1") }
    end
  end

  def test_nonblocking_family
    each_pair do |client, peer|
      assert_equal :wait_readable, client.read_nonblock(10, exception: false)
      error = assert_raises(OpenSSL::SSL::SSLErrorWaitReadable) { client.read_nonblock(10) }
      assert_kind_of IO::WaitReadable, error
      peer.write("abc")
      client.wait_readable(5)
      assert_equal "abc", client.read_nonblock(10)
      assert_equal 3, client.write_nonblock("def")
      assert_equal "def", peer.readpartial(10)
    end
  end

  def test_nonblocking_handshake
    around do
      near, far = tcp_pair
      client = wrap(near, client_context, hostname: "localhost")
      peer = stock(far, server_context)
      assert_equal :wait_readable, client.connect_nonblock(exception: false)
      assert_raises(OpenSSL::SSL::SSLErrorWaitReadable) { client.connect_nonblock }
      steps = [-> { peer.accept_nonblock(exception: false) }, -> { client.connect_nonblock(exception: false) }]
      1000.times do
        steps.reject! { |step| !step.call.is_a?(Symbol) }
        break if steps.empty?
      end
      assert_empty steps
      client.write("x")
      assert_equal "x", peer.read(1)
      client.close
    ensure
      peer&.close
    end
  end

  # Full until the peer reads; then nothing is lost or doubled.
  def test_nonblocking_writes_against_a_full_socket
    each_pair do |client, peer|
      data = Random.bytes(16 * 1024)
      sent = 0
      loop do
        wrote = client.write_nonblock(data, exception: false)
        break if wrote == :wait_writable
        sent += wrote
        flunk "never full" if sent > 256 << 20
      end
      got = +""
      reader = lambda do
        got << peer.readpartial(65536) while got.bytesize < sent + data.bytesize
      end
      writer = lambda do
        loop do
          wrote = client.write_nonblock(data, exception: false)
          break assert_equal(data.bytesize, wrote) unless wrote == :wait_writable
          client.wait_writable(5)
        end
      end
      concurrently(reader, writer)
      assert_equal sent + data.bytesize, got.bytesize
      assert_equal data, got[-data.bytesize..]
      assert_equal data * (got.bytesize / data.bytesize), got
    end
  end

  def test_large_writes_arrive_whole
    each_pair do |client, peer|
      data = Random.bytes((3 << 20) + 17)
      written, got = concurrently(-> { client.write(data) }, -> { peer.read(data.bytesize) })
      assert_equal data.bytesize, written
      assert_equal data, got
      written, got = concurrently(-> { peer.write(data) }, -> { client.read(data.bytesize) })
      assert_equal data.bytesize, written
      assert_equal data, got
    end
  end

  # Both write far more than the sockets hold before either has read it all.
  def test_full_duplex
    each_pair do |client, peer|
      up, down = Random.bytes(2 << 20), Random.bytes(2 << 20)
      results = concurrently(-> { client.write(up) }, -> { peer.write(down) },
                             -> { client.read(down.bytesize) }, -> { peer.read(up.bytesize) })
      assert_equal [up.bytesize, down.bytesize, down, up], results
    end
  end

  def test_concurrent_writers_take_turns
    each_pair do |client, peer|
      lines = Array.new(8) { |i| i.to_s * 50_000 + "\n" }
      reader = -> { Array.new(8 * 3) { peer.gets } }
      writers = lines.map { |line| -> { 3.times { client.write(line) } } }
      got = concurrently(reader, *writers).first
      assert_equal (lines * 3).sort, got.sort
    end
  end

  def test_half_close
    each_pair do |client, peer|
      client.write("request")
      client.stop if client.respond_to?(:stop)
      client.__send__(:stop)
      assert_equal "request", peer.read
      peer.write("answer")
      peer.close
      assert_equal "answer", client.read
    end
  end

  def test_truncation_and_reset
    around do
      client, peer = pair
      peer.to_io.close
      error = assert_raises(OpenSSL::SSL::SSLError, EOFError) { client.sysread(1) }
      assert_match(/unexpected eof|end of file/, error.message)
      client.close
    end
    around do
      client, peer = pair
      peer.to_io.setsockopt(Socket::SOL_SOCKET, Socket::SO_LINGER, [1, 0].pack("ii"))
      peer.to_io.close
      assert_raises(Errno::ECONNRESET) { client.sysread(1) }
      assert_raises(SystemCallError, OpenSSL::SSL::SSLError) { 20.times { client.syswrite("x" * 100_000) } }
      client.close
    end
  end

  def test_bad_certificates
    %w[wrongname expired unknown].each do |name|
      stock = refusals(name, :threads) { |*arguments, **options| stock(*arguments, **options) }
      ours = around do
        refusals(name, :concurrently) { |*arguments, **options| wrap(*arguments, **options) }
      end
      assert_equal stock, ours
    end
  end

  def refusals(name, together)
    near, far = tcp_pair
    client = yield near, client_context, hostname: "localhost"
    server = yield far, server_context(name)
    results = public_send(together, -> { try { client.connect } }, -> { try { server.accept } })
    results.map { |error| [error.class, error.message.sub(/\d+\.\d+\.\d+\.\d+:\d+/, "ADDRESS")] }
  ensure
    client&.close
    server&.close
  end

  def try
    yield
  rescue OpenSSL::SSL::SSLError, SystemCallError, EOFError => e
    e
  end

  def test_resumption_and_session_callback
    around do
      sessions = []
      context = client_context(session_cache_mode: OpenSSL::SSL::SSLContext::SESSION_CACHE_CLIENT,
                               session_new_cb: ->((_, session)) { sessions << session })
      server_context = self.server_context
      2.times do |round|
        near, far = tcp_pair
        client = wrap(near, context, hostname: "localhost")
        client.session = sessions.last if round == 1
        server = wrap(far, server_context)
        concurrently(-> { client.connect }, -> { server.accept })
        server.write("x")
        client.read(1)
        assert_equal round == 1, client.session_reused?
        [client, server].each(&:close)
      end
      refute_empty sessions
    end
  end

  def test_alpn
    around do
      server = server_context(alpn_select_cb: ->(offered) { offered.last })
      client, peer = pair(server_context: server, alpn: %w[h2 http/1.1])
      assert_equal %w[http/1.1 http/1.1], [client.alpn_protocol, peer.alpn_protocol]
      [client, peer].each(&:close)
    end
  end

  def test_tls12
    around do
      client, peer = pair(client_context: client_context(max_version: OpenSSL::SSL::TLS1_2_VERSION))
      assert_equal "TLSv1.2", client.ssl_version
      data = Random.bytes(300_000)
      assert_equal data, concurrently(-> { client.write(data) }, -> { peer.read(data.bytesize) }).last
      [client, peer].each(&:close)
    end
  end

  def test_after_close
    each_pair do |client, peer|
      client.close
      assert client.closed?
      assert_nil client.close
      [-> { client.sysread(1) }, -> { client.syswrite("x") }, -> { client.read_nonblock(1) }].each do |use|
        assert_raises(IOError) { use.call }
      end
      assert_equal "", peer.read
    end
  end

  # A write that fails before it began leaves nothing of an earlier one behind.
  def test_a_write_to_a_closed_io
    each_pair do |client, peer|
      client.write("a long one that went well")
      client.to_io.close
      2.times { assert_raises(IOError) { client.write("x") } }
      assert_equal "a long one that went well", peer.readpartial(100)
    end
  end

  # Writes with and without sync, to our socket and to a stock one.
  def test_buffered_writes
    each_pair do |client, peer|
      client.sync = false
      client.write("a" * 10)
      assert_equal :wait_readable, peer.read_nonblock(1, exception: false)
      client.flush
      assert_equal "a" * 10, peer.readpartial(100)
      client.write("b" * 40_000)
      assert_equal "b" * 40_000, peer.read(40_000)
    end
  end

  # ---- waiting ----

  def pause(seconds = 0.02) = @machine ? @machine.sleep(seconds) : sleep(seconds)

  # What the block returned or raised.
  def attempt
    yield
  rescue StandardError => e
    e
  end

  def foreign? = self.class.name == "TestForeignScheduler"

  def test_deadline
    around do
      client, peer = pair(deadline: 0.05)
      assert_raises(UM::TimeoutError) { client.sysread(1) }
      peer.write("x")
      assert_equal "x", client.read(1)
      late = concurrently(-> { attempt { client.gets } }, -> { attempt { client.gets } },
                          -> { attempt { client.write("x" * (32 << 20)) } }, -> { attempt { client.write("y" * (32 << 20)) } })
      assert_equal [UM::TimeoutError] * 4, late.map(&:class)
      [client, peer].each { |ssl| ssl.to_io.close }
    end
  end

  # What an interrupted write has taken is sent, once; the rest follows with the next write.
  def test_an_interrupted_write_is_resumed
    around do
      client, peer = pair(deadline: 0.2)
      data = Random.bytes(16 << 20)
      assert_raises(UM::TimeoutError) { client.write(data) }
      assert_operator client.consumed, :<, data.bytesize
      sent = lambda do
        client.write("more")
      rescue UM::TimeoutError
        begin
          client.flush
        rescue UM::TimeoutError
          retry
        end
      end
      got = concurrently(-> { read_patiently(peer, data.bytesize + 4) }, sent).first
      assert_equal data + "more", got
      [client, peer].each(&:close)
    end
  end

  # However often its deadline passes.
  def read_patiently(ssl, length)
    got = +""
    while got.bytesize < length
      part = attempt { ssl.readpartial(length - got.bytesize) }
      part.is_a?(UM::TimeoutError) ? next : got << part
    end
    got
  end

  def test_close_releases_those_who_wait
    skip "another scheduler is not told of a close" if foreign?
    %i[close io_close].each do |way|
      each_pair do |client, peer|
        reading = -> { attempt { client.gets } }
        writing = -> { attempt { client.write("x" * (32 << 20)) } }
        closing = -> { pause && (way == :close ? client.close : client.to_io.close) }
        results = concurrently(reading, reading, writing, closing)
        assert_equal [IOError] * 3, results[0, 3].map(&:class), results.inspect
        assert client.closed?
        peer.to_io.close
      end
    end
  end

  def test_attach
    around do
      [true, false].each do |sync_close|
        near, far = tcp_pair
        client = UM::TLS.attach(stock(near, client_context, hostname: "localhost")) unless UM::TLS.installed?
        client ||= stock(near, client_context, hostname: "localhost")
        client.sync_close = sync_close
        peer = wrap(far, server_context)
        concurrently(-> { client.connect }, -> { peer.accept })
        client.puts("hello")
        assert_equal "hello\n", peer.gets
        assert_raises(ArgumentError) { UM::TLS.attach(client) }
        assert_raises(ArgumentError) { UM::TLS.attach(peer) }
        peer.puts("and back")
        assert_equal "and back\n", client.gets # with the tickets: what is unread makes close a reset
        client.close
        assert_equal sync_close, near.closed?
        assert_equal "", peer.read
        [near, peer].each(&:close)
      end
    end
  end

  def test_readahead_when_asked_for
    around do
      client, peer = pair(readahead: true)
      3.times { |i| peer.syswrite("record #{i}") }
      pause
      assert_equal "record 0", client.sysread(100)
      assert_operator client.pending, :>, 0
      assert client.wait_readable(0)
      assert_equal ["record 1", "record 2"], [client.sysread(100), client.sysread(100)]
      [client, peer].each(&:close)
    end
  end

  # Decrypted and put aside by gets and the like, or received and not yet decrypted.
  def test_select_knows_what_was_received
    around do
      client, peer = pair(readahead: true)
      2.times { |i| peer.syswrite("record #{i}") }
      pause
      assert_equal "rec", client.readpartial(3)
      ["ord 0", "record 1"].each do |rest|
        assert_equal [[client], [client], []], IO.select([client], [client], nil, 5)
        assert_equal rest, client.readpartial(100)
      end
      assert_nil IO.select([client], nil, nil, 0.001)
      [client, peer].each(&:close)
    end
  end

  def test_bad_input_for_select
    around do
      client, peer = pair
      assert_raises(TypeError) { IO.select(client) }
      assert_raises(TypeError) { IO.select([BasicObject.new]) }
      [client, peer].each(&:close)
      assert_raises(IOError) { IO.select([client]) }
    end
  end

  # Everything that is not read stays in the socket.
  def test_no_readahead_when_declined
    around do
      client, peer = pair(readahead: false)
      3.times { |i| peer.syswrite("record #{i}") }
      3.times do |i|
        assert client.wait_readable(5)
        assert_equal "record #{i}", client.sysread(100)
        assert_equal 0, client.pending
      end
      refute client.wait_readable(0)
      [client, peer].each(&:close)
    end
  end

  def test_timeout_of_the_io
    skip "no IO#timeout in Ruby #{RUBY_VERSION}" unless IO.method_defined?(:timeout=)
    each_pair do |client, peer|
      client.respond_to?(:timeout=) ? client.timeout = 0.05 : client.to_io.timeout = 0.05
      assert_equal 0.05, client.to_io.timeout
      assert_raises(IO::TimeoutError) { client.gets }
      peer.write("late\n")
      assert_equal "late\n", client.gets
      client.to_io.timeout = nil
    end
  end

  # A fiber of the caller's own, in whose block the socket is read.
  def test_in_an_inner_fiber
    skip "that scheduler leaves fibers by Fiber.yield" if foreign?
    each_pair do |client, peer|
      lines = Enumerator.new { |all| loop { all << client.gets } }
      got = concurrently(-> { Array.new(3) { lines.next } }, -> { 3.times { |i| pause && peer.puts("line #{i}") } }).first
      assert_equal ["line 0\n", "line 1\n", "line 2\n"], got
      reading = lambda do
        inner = Fiber.new { Fiber.yield(client.gets) }
        last = inner.resume
        [last, attempt { inner.raise(ArgumentError, "from outside") }.class]
      end
      assert_equal ["last\n", ArgumentError], concurrently(reading, -> { pause && peer.puts("last") }).first
    end
  end

  def test_session
    around do
      client_context = self.client_context(max_version: OpenSSL::SSL::TLS1_2_VERSION)
      server_context = self.server_context
      session = nil
      2.times do |round|
        near, far = tcp_pair
        client, peer = wrap(near, client_context, hostname: "localhost"), wrap(far, server_context)
        client.session = session if session
        concurrently(-> { client.connect }, -> { peer.accept })
        assert_equal round == 1, client.session_reused?
        session = client.session
        assert_instance_of OpenSSL::SSL::Session, session
        assert_match(/BEGIN SSL SESSION/, session.to_pem)
        assert_instance_of OpenSSL::SSL::Session, peer.session
        [client, peer].each(&:close)
      end
    end
  end

  def test_nonblocking_accept
    around do
      near, far = tcp_pair
      server = wrap(far, server_context)
      client = stock(near, client_context, hostname: "localhost")
      assert_equal :wait_readable, server.accept_nonblock(exception: false)
      assert_raises(OpenSSL::SSL::SSLErrorWaitReadable) { server.accept_nonblock }
      steps = [-> { server.accept_nonblock(exception: false) }, -> { client.connect_nonblock(exception: false) }]
      1000.times { steps.reject! { |step| !step.call.is_a?(Symbol) } }
      assert_empty steps
      [client, server].each(&:close)
    end
  end

  def test_many_strings_in_one_write
    each_pair do |client, peer|
      strings = Array.new(100) { |i| i.to_s * (i * 10) }
      written, got = concurrently(-> { client.write(*strings) }, -> { peer.read(strings.sum(&:bytesize)) })
      assert_equal strings.sum(&:bytesize), written
      assert_equal strings.join, got
      assert_equal 0, client.write
    end
  end
end
