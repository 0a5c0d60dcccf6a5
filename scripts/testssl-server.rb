# frozen_string_literal: true

# A Ruby HTTPS server for testssl.sh: scripts/testssl-server.rb CHAIN KEY
# Nothing about TLS is configured here but the certificate and the library's defaults.
require "socket"
require "um/tls"

chain, key = ARGV
certificates = OpenSSL::X509::Certificate.load_file(chain)
context = UM::TLS.defaults(OpenSSL::SSL::SSLContext.new)
context.add_certificate(certificates.shift, OpenSSL::PKey.read(File.read(key)), certificates)
listener = TCPServer.new("127.0.0.1", 0)
server = UM::TLS::Server.new(listener, context)
server.start_immediately = false
trap("TERM") { exit!(0) }
puts "listening on localhost:#{listener.addr[1]}"
$stdout.flush

def answer(ssl)
  ssl.accept
  head = +""
  while (line = ssl.gets)
    head << line
    break if line == "\r\n"
  end
  body = "<p>testssl</p>\n"
  ssl.write("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: #{body.bytesize}\r\n" \
            "X-Content-Type-Options: nosniff\r\nStrict-Transport-Security: max-age=31536000\r\nConnection: close\r\n\r\n#{body}") unless head.empty?
rescue OpenSSL::SSL::SSLError, SystemCallError, IOError
  nil # the examiner breaks off most handshakes
ensure
  ssl.close
end

loop do
  ssl = server.accept
  Thread.new { answer(ssl) }
end
