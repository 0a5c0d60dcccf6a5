# frozen_string_literal: true

# One contender of ./run bench ruby: server.rb CONTENDER MODE CERT KEY
#
# Serves on a free port of loopback, which it says in a line on standard output. The methods that
# serve a connection are the same for all; only the socket's class and what runs them differ.
require "openssl"
require "socket"

module Serve
  # Sends back what comes.
  def self.echo(ssl)
    buffer = +""
    ssl.write(buffer) while ssl.readpartial(65_536, buffer)
  end

  # Answers requests read line by line with a body; one write for the whole response.
  def self.http(ssl, size)
    response = "HTTP/1.1 200 OK\r\nContent-Length: #{size}\r\n\r\n#{"x" * size}"
    while ssl.gets
      while (line = ssl.gets) && line != "\r\n"; end
      ssl.write(response)
    end
  end

  def self.connection(io, context, mode, wrap)
    io.setsockopt(Socket::IPPROTO_TCP, Socket::TCP_NODELAY, 1)
    ssl = wrap.call(io, context)
    ssl.sync_close = true
    ssl.accept
    mode == "echo" ? echo(ssl) : http(ssl, Integer(mode.delete_prefix("http:")))
  rescue EOFError, OpenSSL::SSL::SSLError, SystemCallError
    nil
  ensure
    (ssl || io).close
  end
end

contender, mode, certificate, key = ARGV
context = OpenSSL::SSL::SSLContext.new
context.min_version = OpenSSL::SSL::TLS1_3_VERSION
context.add_certificate(OpenSSL::X509::Certificate.new(File.read(certificate)), OpenSSL::PKey.read(File.read(key)))
context.session_cache_mode = OpenSSL::SSL::SSLContext::SESSION_CACHE_OFF
context.freeze

stock = ->(io, ctx) { OpenSSL::SSL::SSLSocket.new(io, ctx) }
ours = nil
if contender.start_with?("um-")
  require "um/tls"
  ours = ->(io, ctx) { UM::TLS.wrap(io, ctx) }
end

# The default congestion control of some machines (BBR) paces; accepted sockets inherit this one.
listener = TCPServer.new("127.0.0.1", 0)
TCP_CONGESTION = 13
begin
  listener.setsockopt(Socket::IPPROTO_TCP, TCP_CONGESTION, "cubic")
rescue SystemCallError => e
  warn "no cubic congestion control: #{e.message}"
end
listener.listen(1024)
$stdout.puts "listening on 127.0.0.1:#{listener.local_address.ip_port}"
$stdout.flush
trap(:TERM) { exit!(0) }

case contender
when "stock-threads", "um-threads"
  wrap = ours || stock
  loop { Thread.new(listener.accept) { |io| Serve.connection(io, context, mode, wrap) } }
when "stock-async"
  require "async"
  Async do |task|
    loop do
      io = listener.accept
      task.async { Serve.connection(io, context, mode, stock) }
    end
  end
when "um-scheduler"
  Fiber.set_scheduler(UM::FiberScheduler.new)
  Fiber.schedule do
    loop do
      io = listener.accept
      Fiber.schedule { Serve.connection(io, context, mode, ours) }
    end
  end
  Fiber.scheduler.run
when "um-machine"
  machine = UM.new
  machine.accept_each(listener) do |fd|
    machine.spin { Serve.connection(TCPSocket.for_fd(fd), context, mode, ours) }
  end
else
  abort "server.rb: no contender '#{contender}'"
end
