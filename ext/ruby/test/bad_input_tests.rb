# frozen_string_literal: true

# What goes wrong, done to the stock socket and to ours: both must answer alike, with the same
# class and the same words. Included in SocketTests, for every kind of surroundings.
module BadInputTests
  # With a new socket's maker and an IO.
  MAKING = {
    "an IO that is closed" => ->(make, io) { io.close and make.(io) },
    "no IO: a string" => ->(make, _) { make.("socket") },
    "no IO: nil" => ->(make, _) { make.(nil) },
    "no IO: an object" => ->(make, _) { make.(Object.new) },
    "no context: a symbol" => ->(make, io) { make.(io, :context) },
    "no context: nil" => ->(make, io) { make.(io, nil) },
    "no context: a class" => ->(make, io) { make.(io, OpenSSL::SSL::SSLContext) },
    "hostname with NUL" => ->(make, io) { make.(io).hostname = "local\0host" },
    "hostname that is none" => ->(make, io) { make.(io).hostname = 7 },
    "a session that is none" => ->(make, io) { make.(io).session = "session" },
    "initialized twice" => ->(make, io) { make.(io).__send__(:initialize, io) }
  }.freeze

  # With a socket that has not shaken hands.
  UNSTARTED = {
    "sysread" => ->(ssl) { ssl.sysread(1) },
    "read" => ->(ssl) { ssl.read(1) },
    "gets" => ->(ssl) { ssl.gets },
    "syswrite" => ->(ssl) { ssl.syswrite("x") },
    "write" => ->(ssl) { ssl.write("x") },
    "read_nonblock" => ->(ssl) { ssl.read_nonblock(1) },
    "read_nonblock without exception" => ->(ssl) { ssl.read_nonblock(1, exception: false) },
    "write_nonblock" => ->(ssl) { ssl.write_nonblock("x") },
    "pending" => ->(ssl) { ssl.pending },
    "cipher" => ->(ssl) { ssl.cipher },
    "peer_cert" => ->(ssl) { ssl.peer_cert },
    "post_connection_check" => ->(ssl) { ssl.post_connection_check("localhost") },
    "session" => ->(ssl) { ssl.session },
    "close" => ->(ssl) { ssl.close },
    "sysclose" => ->(ssl) { ssl.sysclose }
  }.freeze

  # With a client before its handshake and the other end, a TCP socket that speaks no TLS.
  HANDSHAKES = {
    "the peer closes" => ->(ssl, far) { far.close and ssl.connect },
    "the peer resets" => ->(ssl, far) { reset(far) and ssl.connect },
    "the peer speaks HTTP" => ->(ssl, far) { far.write("HTTP/1.0 400 Bad\r\n\r\n") and ssl.connect },
    "the peer sends an alert" => ->(ssl, far) { far.write("\x15\x03\x03\x00\x02\x02\x28") and ssl.connect },
    "a record that never ends" => ->(ssl, far) { far.write("\x16\x03\x03\x40\x00abc") and far.close and ssl.connect },
    "a record that is too long" => ->(ssl, far) { far.write("\x16\x03\x03\xff\xff" + "x" * 70_000) and ssl.connect },
    "its IO is closed" => ->(ssl, _) { ssl.to_io.close and ssl.connect },
    "after its close" => ->(ssl, _) { [ssl.close, ssl.connect] },
    "a server gets HTTP" => ->(ssl, far) { far.write("GET / HTTP/1.0\r\n\r\n") and ssl.accept },
    "a server gets garbage" => ->(ssl, far) { far.write("\xff" * 100) and ssl.accept },
    "a server sees the peer close" => ->(ssl, far) { far.close and ssl.accept },
    "connect_nonblock, the peer closes" => ->(ssl, far) { far.close and nonblock(ssl) { ssl.connect_nonblock } },
    "accept_nonblock of garbage" => ->(ssl, far) { far.write("\xff" * 100) and nonblock(ssl) { ssl.accept_nonblock } }
  }.freeze

  # With both ends after the handshake; the peer is always the stock kind's or ours, as asked for.
  STARTED = {
    "connect again" => ->(ssl, _) { ssl.connect == ssl },
    "accept after connect" => ->(ssl, _) { ssl.accept == ssl },
    "sysread of less than nothing" => ->(ssl, _) { ssl.sysread(-1) },
    "sysread of no number" => ->(ssl, _) { ssl.sysread("1") },
    "sysread of nil" => ->(ssl, _) { ssl.sysread(nil) },
    "sysread into no string" => ->(ssl, _) { ssl.sysread(1, 7) },
    "sysread into a frozen string" => ->(ssl, peer) { peer.write("x") and ssl.sysread(1, "frozen".freeze) },
    "read of less than nothing" => ->(ssl, peer) { peer.close and ssl.read(-1) },
    "readpartial of less than nothing" => ->(ssl, _) { ssl.readpartial(-1) },
    "gets of less than nothing" => ->(ssl, peer) { peer.write("abc\n") and ssl.gets("\n", -1) },
    "read_nonblock of no number" => ->(ssl, _) { ssl.read_nonblock("1") },
    "syswrite of no string" => ->(ssl, _) { ssl.syswrite(7) },
    "syswrite of nil" => ->(ssl, _) { ssl.syswrite(nil) },
    "syswrite of nothing" => ->(ssl, _) { ssl.syswrite("") },
    "write of nothing" => ->(ssl, _) { ssl.write("") },
    "write of a number" => ->(ssl, _) { ssl.write(7) },
    "write of nil" => ->(ssl, _) { ssl.write(nil) },
    "write_nonblock of no string" => ->(ssl, _) { ssl.write_nonblock(7) },
    "wrong host name" => ->(ssl, _) { ssl.post_connection_check("elsewhere") },
    "a session after the handshake" => ->(ssl, _) { ssl.session = 1 },
    "truncated before a record" => ->(ssl, peer) { peer.to_io.close and ssl.sysread(1) },
    "truncated, gets" => ->(ssl, peer) { peer.write("half a li") and peer.to_io.close and ssl.gets },
    "truncated, eof?" => ->(ssl, peer) { peer.to_io.close and ssl.eof? },
    "truncated, read_nonblock" => ->(ssl, peer) { peer.to_io.close and nonblock(ssl) { ssl.read_nonblock(1) } },
    "truncated in mid-record" =>
      ->(ssl, peer) { peer.to_io.write("\x17\x03\x03\x00\x40half") and peer.to_io.close and ssl.sysread(1) },
    "a record that was tampered with" =>
      ->(ssl, peer) { peer.to_io.write("\x17\x03\x03\x00\x20" + "x" * 32) and ssl.sysread(1) },
    "and read again" =>
      ->(ssl, peer) { peer.to_io.write("\x17\x03\x03\x00\x20" + "x" * 32) and [attempt { ssl.sysread(1) }, attempt { ssl.sysread(1) }] },
    "and written to" =>
      ->(ssl, peer) { peer.to_io.write("\x17\x03\x03\x00\x20" + "x" * 32) and [attempt { ssl.sysread(1) }, attempt { ssl.syswrite("x") }] },
    "reset, then read" => ->(ssl, peer) { reset(peer.to_io) and ssl.sysread(1) },
    "reset, then read_nonblock" => ->(ssl, peer) { reset(peer.to_io) and nonblock(ssl) { ssl.read_nonblock(1) } },
    "reset, then read twice" => ->(ssl, peer) { reset(peer.to_io) and attempt { ssl.sysread(1) } and ssl.sysread(1) },
    "reset, then close" => ->(ssl, peer) { reset(peer.to_io) and ssl.close },
    "closed by the peer, then read" => ->(ssl, peer) { peer.close and [ssl.read, ssl.read(1), ssl.gets, ssl.eof?] },
    "closed by the peer, sysread" => ->(ssl, peer) { peer.close and ssl.sysread(1) },
    "closed by the peer, read_nonblock" => ->(ssl, peer) { peer.close and nonblock(ssl) { ssl.read_nonblock(1) } },
    "closed by the peer, without exception" =>
      ->(ssl, peer) { peer.close and ssl.wait_for_end and ssl.read_nonblock(1, exception: false) },
    "closed by the peer, readline" => ->(ssl, peer) { peer.close and ssl.readline },
    "closed, then sysread" => ->(ssl, _) { [ssl.close, ssl.sysread(1)] },
    "closed, then read" => ->(ssl, _) { [ssl.close, ssl.read(1)] },
    "closed, then gets" => ->(ssl, _) { [ssl.close, ssl.gets] },
    "closed, then eof?" => ->(ssl, _) { [ssl.close, ssl.eof?] },
    "closed, then read_nonblock" => ->(ssl, _) { [ssl.close, ssl.read_nonblock(1)] },
    "closed, then syswrite" => ->(ssl, _) { [ssl.close, ssl.syswrite("x")] },
    "closed, then write" => ->(ssl, _) { [ssl.close, ssl.write("x")] },
    "closed, then write_nonblock" => ->(ssl, _) { [ssl.close, ssl.write_nonblock("x")] },
    "closed, then puts" => ->(ssl, _) { [ssl.close, ssl.puts("x")] },
    "closed, then flush" => ->(ssl, _) { [ssl.close, ssl.flush.equal?(ssl)] },
    "closed twice" => ->(ssl, _) { [ssl.close, ssl.close, ssl.closed?] },
    "closed, then sysclose" => ->(ssl, _) { [ssl.close, ssl.sysclose] },
    "closed, then connect" => ->(ssl, _) { [ssl.close, ssl.connect.equal?(ssl)] },
    "closed, then asked" => ->(ssl, _) { [ssl.close, ssl.pending, ssl.cipher[0], ssl.peer_cert.class, ssl.state] },
    "without sync_close" => ->(ssl, _) { [ssl.sync_close = false, ssl.close, ssl.closed?, ssl.to_io.close] },
    "its IO closed, then sysread" => ->(ssl, _) { [ssl.to_io.close, ssl.sysread(1)] },
    "its IO closed, then syswrite" => ->(ssl, _) { [ssl.to_io.close, ssl.syswrite("x")] },
    "its IO closed, then close" => ->(ssl, _) { [ssl.to_io.close, ssl.close] },
    "its write side shut down, then syswrite" => ->(ssl, _) { [ssl.to_io.close_write, ssl.syswrite("x")] }
  }.freeze

  # On purpose not as stock.
  DIFFERENT = {
    # Stock forgets the reset and calls it a truncation.
    "reset, then read twice" => [Errno::ECONNRESET, "Connection reset by peer"]
  }.freeze

  # What the gem's versions 3.2 and 3.3 ask the kernel with a number that may be another file's by
  # then, others and ours answer themselves.
  CLOSED = [IOError, "closed stream"].freeze

  # Called by the cases above.
  class << self
    def reset(io)
      io.setsockopt(Socket::SOL_SOCKET, Socket::SO_LINGER, [1, 0].pack("ii"))
      io.close
      true
    end

    # Until it does not ask to wait; what the peer did may be on its way.
    def nonblock(ssl)
      yield
    rescue IO::WaitReadable
      ssl.to_io.wait_readable(1)
      retry
    end

    def attempt
      [:returned, yield]
    rescue NoMethodError
      [NoMethodError] # its message shows the source
    rescue StandardError => e
      [e.class, e.message.gsub(/\d+\.\d+\.\d+\.\d+:\d+/, "ADDRESS").sub(/peeraddr=\S+/, "peeraddr=ADDRESS")
                .sub(/ - SSL_(read|write)\z/, "") # which gem 4.0 adds
                .sub(/: \(null\).*/, "")] # what the thread's queue of errors still had of another call
    end
  end

  def test_bad_input_when_making_one
    compare(MAKING) do |maker, tried|
      near, far = tcp_pair
      make = ->(io, *context) { maker.new(io, *(context.empty? ? [client_context] : context)) }
      tried.call(make, near).then { |answer| answer.class }
    ensure
      [near, far].each(&:close)
    end
  end

  def test_bad_input_before_the_handshake
    compare(UNSTARTED) do |maker, tried|
      near, far = tcp_pair
      tried.call(maker.new(near, client_context).tap { |ssl| ssl.sync_close = true })
    ensure
      [near, far].each(&:close)
    end
  end

  def test_bad_input_in_the_handshake
    compare(HANDSHAKES) do |maker, tried|
      near, far = tcp_pair
      tried.call(maker.new(near, client_context).tap { |ssl| ssl.sync_close = true }, far)
    ensure
      [near, far].each(&:close)
    end
  end

  def test_bad_input_after_the_handshake
    compare(STARTED) do |maker, tried, together|
      near, far = tcp_pair
      client, peer = maker.new(near, client_context), maker.new(far, server_context)
      client.hostname = "localhost"
      client.sync_close = peer.sync_close = true
      public_send(together, -> { client.connect }, -> { peer.accept })
      def client.wait_for_end = to_io.wait_readable(1)
      tried.call(client, peer)
    ensure
      [near, far].each(&:close)
    end
  end

  # Both kinds go through the whole table; what differs is shown side by side.
  def compare(cases, &attempt)
    stock = outcomes(cases, stock_maker, :threads, &attempt)
    ours = around { outcomes(cases, UM::TLS::Socket, :concurrently, &attempt) }
    stock.transform_values! { |outcome| outcome[0] == Errno::EBADF ? CLOSED : outcome }
    different = cases.keys.reject { |name| DIFFERENT.fetch(name, stock[name]) == ours[name] }
    report = different.map { |name| "#{name}:\n  stock: #{stock[name].inspect}\n  ours:  #{ours[name].inspect}" }
    assert_empty different, report.join("\n")
  end

  def outcomes(cases, maker, together)
    cases.transform_values { |tried| BadInputTests.attempt { yield maker, tried, together } }
  end

  # Stock also where UM::TLS.install has been called.
  def stock_maker
    Class.new do
      def new(...)
        installed = UM::TLS.installed?
        UM::TLS.uninstall
        OpenSSL::SSL::SSLSocket.new(...)
      ensure
        UM::TLS.install if installed
      end
    end.new
  end
end
