# frozen_string_literal: true

require_relative "helper"
require_relative "select_scheduler"
require "net/http"
require "open-uri"

# Programs that know nothing of us, with every SSLSocket ours: same bytes as with stock ones.
class TestDropIn < TLSTest
  # An HTTPS server in a thread: echoes bodies, keeps connections, waits where the path says so.
  class Server
    attr_reader :port

    def initialize(context)
      @tcp = TCPServer.new("127.0.0.1", 0)
      @port = @tcp.local_address.ip_port
      @context = context
      @thread = Thread.new { loop { serve(@tcp.accept) } }
    end

    def close
      @thread.kill
      @tcp.close
    end

    private

    def serve(io)
      Thread.new do
        ssl = OpenSSL::SSL::SSLSocket.new(io, @context)
        ssl.sync_close = true
        ssl.accept
        nil while answer(ssl)
        ssl.close
      rescue SystemCallError, IOError, OpenSSL::SSL::SSLError
        io.close
      end
    end

    def answer(ssl)
      request = ssl.gets or return
      length = 0
      while (line = ssl.gets.chomp) != ""
        length = line[/\d+/].to_i if line.match?(/\Acontent-length/i)
      end
      body = length.zero? ? request.split[1] : ssl.read(length)
      sleep 0.1 if request.include?("/slow")
      ssl.write("HTTP/1.1 200 OK\r\nContent-Length: #{body.bytesize}\r\n\r\n", body)
    end
  end

  def setup
    @server = Server.new(server_context)
    UM::TLS.install
  end

  def teardown
    UM::TLS.uninstall
    @server.close
  end

  def http
    Net::HTTP.new("localhost", @server.port, nil).tap do |http|
      http.use_ssl = true
      http.ca_file = Certificates.path("ca.pem")
      http.max_retries = 0
    end
  end

  def both
    stock = begin
      UM::TLS.uninstall
      yield
    ensure
      UM::TLS.install
    end
    [stock, yield]
  end

  def test_net_http
    body = Random.bytes(700_000)
    stock, ours = both do
      http.start { |session| [session.get("/a").body, session.post("/b", body).body, session.get("/c").body] }
    end
    assert_equal ["/a", body, "/c"], ours
    assert_equal stock, ours
  end

  def test_it_is_ours
    http.start do |session|
      assert session.instance_variable_get(:@socket).io.__send__(:um_attached?)
    end
  end

  def test_read_timeout
    session = http
    session.read_timeout = 0.02
    session.start
    assert_raises(Net::ReadTimeout) { session.get("/slow") }
    session.finish if session.started?
  end

  def test_open_uri
    options = { ssl_ca_cert: Certificates.path("ca.pem"), ssl_verify_mode: OpenSSL::SSL::VERIFY_PEER }
    assert_equal "/page", URI.open("https://localhost:#{@server.port}/page", options, &:read)
    assert_raises(OpenSSL::SSL::SSLError) { URI.open("https://localhost:#{@server.port}/page", &:read) }
  end

  def concurrent_requests(scheduler)
    answers = []
    took = seconds do
      Thread.new do
        Fiber.set_scheduler(scheduler)
        100.times { |i| Fiber.schedule { answers << http.start { |session| session.get("/slow/#{i}").body } } }
      end.join
    end
    assert_equal (0...100).map { |i| "/slow/#{i}" }.sort, answers.sort
    took
  end

  # The server answers each after 100 ms.
  def test_a_hundred_requests_at_once
    assert_operator concurrent_requests(UM::FiberScheduler.new), :<, 2
    assert_operator concurrent_requests(SelectScheduler.new), :<, 2
  end

  def test_a_connection_in_a_pool_is_used_from_several_threads
    session = http.start
    3.times do |i|
      assert_equal "/#{i}", Thread.new { session.get("/#{i}").body }.value
      Thread.new do
        Fiber.set_scheduler(UM::FiberScheduler.new)
        Fiber.schedule { assert_equal "/fiber#{i}", session.get("/fiber#{i}").body }
      end.join
    end
    session.finish
  end

  def test_smtp_with_starttls
    require "net/smtp"
    tcp = TCPServer.new("127.0.0.1", 0)
    mail = nil
    server = Thread.new { mail = take_mail(tcp.accept) }
    smtp = Net::SMTP.new("localhost", tcp.local_address.ip_port)
    context = client_context
    smtp.enable_starttls(context)
    smtp.start("localhost") { |session| session.send_message("Subject: x\r\n\r\nbody\r\n", "a@localhost", "b@localhost") }
    server.join
    assert_equal "Subject: x\r\n\r\nbody\r\n", mail
  ensure
    tcp&.close
  end

  def take_mail(io)
    io.write("220 localhost\r\n")
    io.gets
    io.write("250-localhost\r\n250 STARTTLS\r\n")
    io.gets
    io.write("220 go on\r\n")
    ssl = UM::TLS.wrap(io, server_context, sync_close: true)
    ssl.accept
    mail = +""
    while (line = ssl.gets)
      case line
      when /\ADATA/
        ssl.write("354 send it\r\n")
        mail << line while (line = ssl.gets) != ".\r\n"
        ssl.write("250 taken\r\n")
      when /\AQUIT/ then ssl.write("221 bye\r\n")
      else ssl.write("250 ok\r\n")
      end
    end
    ssl.close
    mail
  end

  def test_webrick
    begin
      require "webrick"
      require "webrick/https"
    rescue LoadError
      skip "no webrick"
    end
    chain = OpenSSL::X509::Certificate.load_file(Certificates.path("server.pem"))
    server = WEBrick::HTTPServer.new(
      Port: 0, BindAddress: "127.0.0.1", SSLEnable: true, SSLCertificate: chain[0],
      SSLExtraChainCert: chain[1..], SSLPrivateKey: OpenSSL::PKey.read(File.read(Certificates.path("server.key"))),
      Logger: WEBrick::Log.new(IO::NULL), AccessLog: [])
    server.mount_proc("/") { |request, response| response.body = request.body || request.path }
    thread = Thread.new { server.start }
    session = Net::HTTP.new("localhost", server.listeners[0].to_io.local_address.ip_port)
    session.use_ssl = true
    session.ca_file = Certificates.path("ca.pem")
    session.start do
      assert_equal "/x", session.get("/x").body
      assert_equal "y" * 100_000, session.post("/", "y" * 100_000).body
      assert_equal "/z", session.get("/z").body
    end
  ensure
    server&.shutdown
    thread&.join
  end
end
