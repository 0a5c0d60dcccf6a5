# frozen_string_literal: true

require_relative "helper"
require_relative "select_scheduler"
require_relative "servers"
require "net/http"
require "open-uri"
require "open3"

# Programs that know nothing of us, against real servers, with every SSLSocket ours: in a thread,
# in our ring, under the async gem; what comes out must be what comes out with stock sockets.
class TestDropIn < TLSTest
  # Every SSLSocket that is made, by whomever.
  module Witness
    class << self
      attr_accessor :made
    end

    def initialize(...)
      super
      Witness.made&.push(self)
    end
  end
  OpenSSL::SSL::SSLSocket.prepend(Witness)

  def teardown
    UM::TLS.uninstall
    @server&.close
  end

  # ---- where the programs run ----

  def in_stock = yield

  def in_thread = Thread.new { yield }.tap { |thread| thread.report_on_exception = false }.value

  def in_ring
    scheduler = UM::FiberScheduler.new
    scheduled(scheduler) do
      before = scheduler.machine.metrics[:completions]
      yield.tap { assert_operator scheduler.machine.metrics[:completions], :>, before }
    end
  end

  # That it waits in io_wait is test_schedulers.rb's to show: here the answer may be there first,
  # when the kernel lets the server run in our place.
  def in_foreign(&block) = scheduled(SelectScheduler.new, &block)

  def in_async(&block)
    result = nil
    in_thread { Async { result = outcome(&block) }.wait }
    unwrap(result)
  end

  def scheduled(scheduler, &block)
    result = nil
    in_thread do
      Fiber.set_scheduler(scheduler)
      Fiber.schedule { result = outcome(&block) }
    end
    unwrap(result)
  end

  def outcome
    [true, yield]
  rescue Exception => e
    [false, e]
  end

  def unwrap(result) = result[0] ? result[1] : raise(result[1])

  def async?
    require "async"
    true
  rescue LoadError
    false
  end

  # Runs the block with stock sockets and then with ours everywhere, and returns the stock result.
  # +sockets+: how many the program makes at least.
  def assert_same_everywhere(sockets: 1, places: %i[thread ring foreign async])
    UM::TLS.uninstall
    expected = witnessed(sockets, false) { in_thread { yield } }
    UM::TLS.install
    (async? ? places : places - [:async]).each do |place|
      result = witnessed(sockets, true) { send(:"in_#{place}") { yield } }
      assert_same_bytes expected, result, "not what it is with stock sockets, in: #{place}"
    end
    expected
  ensure
    UM::TLS.uninstall
  end

  # Megabytes of both need not be printed.
  def assert_same_bytes(expected, actual, message = "other bytes")
    assert binary(expected) == binary(actual), message
  end

  def binary(value)
    case value
    when String then value.b
    when Array then value.map { |item| binary(item) }
    else value
    end
  end

  def witnessed(sockets, ours)
    made = Witness.made = []
    result = yield
    Witness.made = nil
    assert_operator made.size, :>=, sockets
    made.each { |ssl| assert_equal ours, ours?(ssl) }
    result
  ensure
    Witness.made = nil
  end

  # The gem sets no other BIO once ours is there.
  def ours?(ssl) = ssl.is_a?(UM::TLS::Methods) && ssl.__send__(:um_attached?)

  def serve(kind)
    @server = kind.new
  rescue RealServer::Missing => e
    skip e.message
  end

  def http(port, **settings)
    Net::HTTP.new("localhost", port, nil).tap do |http|
      http.use_ssl = true
      http.ca_file = Certificates.path("ca.pem")
      http.max_retries = 0
      settings.each { |name, value| http.public_send(:"#{name}=", value) }
    end
  end

  # It is told from whoever else listens there.
  def test_a_server_whose_port_is_taken
    other = TCPServer.new("127.0.0.1", 0)
    taken = [other.local_address.ip_port]
    clumsy = Class.new(RedisServer) { define_method(:free_port) { taken.shift || super() } }
    serve(clumsy)
    assert_empty taken
    refute_equal other.local_address.ip_port, @server.port
  ensure
    other&.close
  end

  # ---- Net::HTTP and open-uri, against nginx ----

  def serve_files
    serve(Nginx)
    @files = { "/empty" => "", "/small" => "small\n", "/large" => Random.bytes(3_000_000) }
    @files.each { |path, content| File.binwrite(@server.folder + "/files" + path, content) }
  end

  def test_net_http
    serve_files
    got = assert_same_everywhere do
      http(@server.port).start do |session| # one connection for all
        @files.keys.cycle(2).map { |path| session.get(path).body } +
          [session.get("/missing").code, session.head("/large").content_length, streamed(session, "/large")]
      end
    end
    assert_same_bytes @files.values * 2 + ["404", 3_000_000, @files["/large"]], got
  end

  # As many pieces as the reader likes.
  def streamed(session, path)
    body = +""
    session.request_get(path) { |response| response.read_body { |part| body << part } }
    body
  end

  def test_net_http_with_a_certificate_that_is_not_trusted
    serve_files
    message = assert_same_everywhere do
      assert_raises(OpenSSL::SSL::SSLError) do
        http(@server.port, ca_file: Certificates.path("unknown-ca.pem")).get("/small")
      end.message
    end
    assert_match(/certificate verify failed/, message)
  end

  def test_open_uri
    serve_files
    options = { ssl_ca_cert: Certificates.path("ca.pem"), ssl_verify_mode: OpenSSL::SSL::VERIFY_PEER }
    got = assert_same_everywhere(sockets: 3) do
      @files.keys.map { |path| URI.open("https://localhost:#{@server.port}#{path}", options, &:read) }
    end
    assert_same_bytes @files.values, got
    UM::TLS.install
    assert_raises(OpenSSL::SSL::SSLError) { URI.open("https://localhost:#{@server.port}/small", &:read) }
  end

  # ---- Net::SMTP with STARTTLS ----

  def test_smtp_with_starttls
    require "net/smtp"
    serve(SMTPServer)
    body = Array.new(5_000) { |i| "#{"." if i % 7 == 0}line #{i}\r\n" }.join
    counts = Hash.new(0)
    mail = assert_same_everywhere do
      smtp = Net::SMTP.new("localhost", @server.port)
      smtp.enable_starttls(client_context)
      answer = smtp.start("localhost") do |session|
        session.send_message("Subject: x\r\n\r\n#{body}", "a@localhost", "b@localhost").status
      end
      [answer, newest_mail(counts)]
    end
    assert_equal "250", mail[0]
    assert_includes mail[1], "X-MailFrom: a@localhost\n"
    assert mail[1].end_with?("\n\n" + body.gsub("\r\n", "\n")), "another body than was sent"
  end

  def newest_mail(seen)
    mails = @server.mails.tally
    fresh = mails.find { |mail, count| count > seen[mail] }
    seen.replace(mails)
    fresh&.first
  end

  # The other end of it: a server in Ruby that goes on in TLS.
  def test_the_server_side_of_starttls
    tcp = TCPServer.new("127.0.0.1", 0)
    curl = RealServer.program("curl", "curl")
    mail = "Subject: x\r\n\r\n#{"body\r\n" * 20_000}"
    got = assert_same_everywhere do
      client = Thread.new do
        Open3.capture2e(curl, "-sS", "--ssl-reqd", "--cacert", Certificates.path("ca.pem"),
                        "--mail-from", "a@localhost", "--mail-rcpt", "b@localhost", "-T", "-",
                        "smtp://localhost:#{tcp.local_address.ip_port}/here", stdin_data: mail)
      end
      taken = take_mail(tcp.accept)
      output, status = client.value
      assert_predicate status, :success?, output
      taken
    end
    assert_same_bytes mail, got
  rescue RealServer::Missing => e
    skip e.message
  ensure
    tcp&.close
  end

  def take_mail(io)
    io.write("220 localhost\r\n")
    io.gets
    io.write("250-localhost\r\n250 STARTTLS\r\n")
    io.gets
    io.write("220 go on\r\n")
    ssl = OpenSSL::SSL::SSLSocket.new(io, server_context)
    ssl.sync_close = true
    ssl.accept
    mail = +""
    while (line = ssl.gets)
      case line
      when /\ADATA/
        ssl.write("354 send it\r\n")
        mail << line while (line = ssl.gets) != ".\r\n"
        ssl.write("250 taken\r\n")
      when /\AQUIT/
        ssl.write("221 bye\r\n")
        break
      else ssl.write("250 ok\r\n")
      end
    end
    ssl.close
    mail
  end

  # ---- redis ----

  def test_redis
    begin
      require "redis"
    rescue LoadError
      skip "no redis client: install ruby-redis"
    end
    serve(RedisServer)
    value = Random.bytes(1_500_000)
    got = assert_same_everywhere do
      redis = Redis.new(url: "rediss://localhost:#{@server.port}", ssl_params: { ca_file: Certificates.path("ca.pem") })
      redis.flushall
      [redis.set("key", value), redis.get("key"),
       redis.pipelined { |all| 500.times { |i| all.rpush("list", "item #{i}") } }, redis.lrange("list", 0, -1),
       redis.mget("key", "nothing"), redis_error(redis), redis.blpop("nothing", timeout: 0.1)].tap { redis.close }
    end
    assert_same_bytes value, got[1]
    assert_equal (1..500).to_a, got[2]
    assert_equal Array.new(500) { |i| "item #{i}" }, got[3]
  end

  def redis_error(redis)
    redis.incr("key")
  rescue Redis::CommandError => e
    e.message
  end

  def test_redis_messages_between_fibers
    require "redis"
    serve(RedisServer)
    UM::TLS.install
    options = { url: "rediss://localhost:#{@server.port}", ssl_params: { ca_file: Certificates.path("ca.pem") } }
    heard = []
    in_ring do
      redis = Redis.new(**options)
      redis.subscribe("news") do |on|
        on.subscribe { Fiber.schedule { publish(Redis.new(**options), 200) } }
        on.message do |_channel, message|
          heard << message
          redis.unsubscribe if heard.size == 200
        end
      end
      redis.close
    end
    assert_equal (0...200).map(&:to_s), heard
  rescue LoadError
    skip "no redis client: install ruby-redis"
  end

  def publish(redis, count)
    count.times { |i| redis.publish("news", i.to_s) }
    redis.close
  end

  # ---- WEBrick ----

  def test_webrick
    begin
      require "webrick"
      require "webrick/https"
    rescue LoadError
      skip "no webrick: install ruby-webrick"
    end
    curl = RealServer.program("curl", "curl")
    body = Random.bytes(400_000)
    # Its threads serve, so that the places to compare in are of no use to it.
    got = assert_same_everywhere(sockets: 3, places: %i[thread]) do
      with_webrick do |port|
        by_http = http(port).start do |session|
          [session.get("/x").body, session.post("/", body).body, session.get("/z").body]
        end
        by_curl, = Open3.capture2(curl, "-sS", "--cacert", Certificates.path("ca.pem"), "--data-binary", "@-",
                                  "https://localhost:#{port}/", stdin_data: body, binmode: true)
        by_http << by_curl
      end
    end
    assert_same_bytes ["/x", body, "/z", body], got
  rescue RealServer::Missing => e
    skip e.message
  end

  def with_webrick
    chain = OpenSSL::X509::Certificate.load_file(Certificates.path("server.pem"))
    server = WEBrick::HTTPServer.new(
      Port: 0, BindAddress: "127.0.0.1", SSLEnable: true, SSLCertificate: chain[0],
      SSLExtraChainCert: chain[1..], SSLPrivateKey: OpenSSL::PKey.read(File.read(Certificates.path("server.key"))),
      Logger: WEBrick::Log.new(IO::NULL), AccessLog: [])
    server.mount_proc("/") { |request, response| response.body = request.body || request.path }
    thread = Thread.new { server.start }
    yield server.listeners[0].to_io.local_address.ip_port
  ensure
    server&.shutdown
    thread&.join
  end

  # ---- drb ----

  # What drb calls.
  class Shared
    def double(data) = data * 2
  end

  def test_drb
    begin
      require "drb/ssl"
    rescue LoadError
      skip "no drb"
    end
    data = Random.bytes(200_000)
    got = assert_same_everywhere(sockets: 2, places: %i[thread]) { by_drb(data) }
    assert_same_bytes data * 2, got
  end

  def by_drb(data)
    config = { SSLCertificate: OpenSSL::X509::Certificate.new(File.read(Certificates.path("server.pem"))),
               SSLPrivateKey: OpenSSL::PKey.read(File.read(Certificates.path("server.key"))) }
    server = DRb::DRbServer.new("drbssl://127.0.0.1:0", Shared.new, config)
    remote = DRb::DRbConn.open(server.uri) do |connection|
      connection.send_message(DRb::DRbObject.new_with_uri(server.uri), :double, [data], nil)
    end
    remote[1]
  ensure
    server&.stop_service
  end

  # ---- a server of ours that can wait ----

  # An HTTPS server in threads. /slow is answered after 100 ms, /together/N when N requests are
  # there (and after 100 ms), anything else at once with its own path.
  class Patient
    attr_reader :port, :most

    def initialize(context)
      @tcp = TCPServer.new("127.0.0.1", 0)
      @tcp.listen(256)
      @port = @tcp.local_address.ip_port
      @context = context
      @mutex = Mutex.new
      @arrived = ConditionVariable.new
      @inside = @most = 0
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
      nil while ssl.gets.chomp != ""
      path = request.split[1]
      together(path[/\d+/].to_i) if path.start_with?("/together")
      sleep 0.1 if path.match?(%r{\A/(slow|together)})
      ssl.write("HTTP/1.1 200 OK\r\nContent-Length: #{path.bytesize}\r\n\r\n", path)
    end

    def together(count)
      @mutex.synchronize do
        @inside += 1
        @most = [@most, @inside].max
        @arrived.broadcast
        @arrived.wait(@mutex, 1) until @most >= count
        @inside -= 1
      end
    end
  end

  def be_patient = @server = Patient.new(server_context)

  def test_read_timeout
    be_patient
    errors = assert_same_everywhere do
      session = http(@server.port, read_timeout: 0.02)
      session.start
      [outcome { session.get("/slow") }[1].class, session.started?]
    end
    assert_equal Net::ReadTimeout, errors[0]
  end

  # Each answer comes only when all hundred requests have arrived: one after the other, or ninety-nine
  # at a time, would get none.
  def a_hundred_together
    answers = Array.new(100)
    began = Process.clock_gettime(Process::CLOCK_MONOTONIC)
    yield lambda { |i|
      answers[i] = http(@server.port, open_timeout: 50, read_timeout: 50).start do |session|
        session.get("/together/100/#{i}").body
      end
    }
    figure format("%.2f s", Process.clock_gettime(Process::CLOCK_MONOTONIC) - began)
    assert_equal Array.new(100) { |i| "/together/100/#{i}" }, answers
    assert_equal 100, @server.most
  end

  def test_a_hundred_requests_at_once
    UM::TLS.install
    [UM::FiberScheduler.new, SelectScheduler.new].each do |scheduler|
      be_patient
      a_hundred_together do |request|
        in_thread do
          Fiber.set_scheduler(scheduler)
          100.times { |i| Fiber.schedule { request.call(i) } }
        end
      end
      @server.close
    end
  end

  def test_a_hundred_requests_at_once_under_async
    skip "no async: install ruby-async" unless async?
    UM::TLS.install
    be_patient
    a_hundred_together do |request|
      in_thread { Async { |task| 100.times.map { |i| task.async { request.call(i) } }.each(&:wait) }.wait }
    end
  end

  def test_a_connection_in_a_pool_is_used_from_several_threads
    UM::TLS.install
    be_patient
    session = http(@server.port).start
    3.times do |i|
      assert_equal "/#{i}", Thread.new { session.get("/#{i}").body }.value
      assert_equal "/fiber#{i}", in_ring { session.get("/fiber#{i}").body }
    end
    session.finish
  end
end
