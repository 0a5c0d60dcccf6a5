# frozen_string_literal: true

require_relative "socket_tests"

class TestThreads < TLSTest
  include SocketTests

  # What is not yet read stays where IO.select sees it, as with the stock socket.
  def test_select_sees_every_record
    client, peer = pair
    3.times { |i| peer.syswrite("record #{i}") }
    3.times do |i|
      assert IO.select([client], nil, nil, 5), "record #{i}"
      assert_equal "record #{i}", client.sysread(100)
      assert_equal 0, client.pending
    end
    refute IO.select([client], nil, nil, 0)
    [client, peer].each(&:close)
  end

  def test_timeout_leaves_the_socket_usable
    client, peer = pair
    assert_raises(Timeout::Error) { Timeout.timeout(0.05) { client.gets } }
    peer.write("half")
    assert_raises(Timeout::Error) { Timeout.timeout(0.05) { client.gets } }
    peer.write(" and half\n")
    assert_equal "half and half\n", client.gets
    [client, peer].each(&:close)
  end

  # What an interrupted write has taken is sent, once; the rest follows with the next write.
  def test_interrupted_write_is_resumed_without_a_doubled_byte
    client, peer = pair
    data = Random.bytes(24 << 20)
    assert_raises(Timeout::Error) { Timeout.timeout(0.2) { client.write(data) } }
    assert_operator client.consumed, :<, data.bytesize
    reader = Thread.new { peer.read(data.bytesize + 4) }
    client.write("more")
    assert_equal data + "more", reader.value
    [client, peer].each(&:close)
  end

  def test_close_from_another_thread
    client, peer = pair
    reader = Thread.new { client.read(1) }
    reader.report_on_exception = false
    sleep 0.01 until reader.status == "sleep"
    client.close
    error = assert_raises(IOError) { reader.value }
    assert_match(/closed/, error.message)
    peer.close
  end

  def test_thread_kill_and_raise
    client, peer = pair
    killed = Thread.new { client.read(1) }
    sleep 0.01 until killed.status == "sleep"
    killed.kill.join
    raised = Thread.new { client.read(1) }
    raised.report_on_exception = false
    sleep 0.01 until raised.status == "sleep"
    raised.raise("out of here")
    assert_raises(RuntimeError) { raised.value }
    peer.write("x")
    assert_equal "x", client.read(1)
    [client, peer].each(&:close)
  end

  def test_two_readers_share_the_records
    client, peer = pair
    readers = Array.new(4) { Thread.new { Array.new(25) { client.sysread(4) } } }
    100.times { |i| peer.syswrite(format("%04d", i)) }
    assert_equal (0...100).map { |i| format("%04d", i) }, readers.flat_map(&:value).sort
    [client, peer].each(&:close)
  end

  def test_bad_arguments
    near, far = tcp_pair
    assert_raises(TypeError) { UM::TLS.wrap("no socket", client_context) }
    assert_raises(TypeError) { UM::TLS.wrap(near, :no_context) }
    assert_raises(TypeError) { UM::TLS.attach(near) }
    assert_raises(ArgumentError, OpenSSL::SSL::SSLError) { UM::TLS.wrap(near, client_context, hostname: "a\0b") }
    far.close
    assert_raises(IOError) { UM::TLS.wrap(far, client_context) }
    error = assert_raises(OpenSSL::SSL::SSLError) { UM::TLS.wrap(near, client_context).sysread(1) }
    assert_equal "SSL session is not started yet", error.message
    near.close
  end

  def test_server
    tcp = TCPServer.new("127.0.0.1", 0)
    server = UM::TLS::Server.new(tcp, server_context)
    thread = Thread.new { server.accept.then { |ssl| ssl.write(ssl.gets); ssl.close } }
    client = UM::TLS::Socket.open("127.0.0.1", tcp.local_address.ip_port, context: client_context)
    client.hostname = "localhost"
    client.connect
    client.puts("echo")
    assert_equal "echo\n", client.gets
    thread.join
    assert_kind_of OpenSSL::SSL::SSLServer, server
  ensure
    [client, server].each { |closing| closing&.close }
  end
end

# Every SSLSocket of the process is ours: the peers called stock as well.
class TestInstalled < TLSTest
  include SocketTests

  def setup = UM::TLS.install
  def teardown = UM::TLS.uninstall

  def wrap(io, context, **options)
    return super unless options.empty? || options.keys == [:hostname]
    stock(io, context, **options)
  end

  def test_install_and_uninstall
    near, far = tcp_pair
    assert OpenSSL::SSL::SSLSocket.new(near, client_context).__send__(:um_attached?)
    UM::TLS.uninstall
    refute OpenSSL::SSL::SSLSocket.new(near, client_context).__send__(:um_attached?)
    [near, far].each(&:close)
  end
end
