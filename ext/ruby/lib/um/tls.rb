# frozen_string_literal: true

require "openssl"
require "socket"
require "um_tls.so"
require "um/version"
require "um/machine"
require "um/fiber_scheduler"
require "um/tls/socket"
require "um/tls/server"

class UM
  # TLS for sockets of every kind of Ruby program: an OpenSSL::SSL::SSLSocket whose bytes are
  # moved by libbio_uring.
  #
  #   ssl = UM::TLS.wrap(TCPSocket.new("example.com", 443), ctx, hostname: "example.com")
  #   ssl.connect
  #   ssl.write("GET / HTTP/1.0\r\n\r\n")
  #   puts ssl.read
  #   ssl.close
  module TLS
    private_constant :Connection, :WatchedIO

    class << self
      # A Socket on +io+, not yet connected or accepted.
      #
      # hostname:: sent as SNI, and what the context's +verify_hostname+ compares with
      # alpn::     protocols to offer, as in SSLContext#alpn_protocols=; the context given is
      #            then copied if it is in use already
      # deadline:: seconds each call may take before it raises UM::TimeoutError
      # readahead:: true: receive more than the record that is read next. Faster; IO.select and
      #            wait_readable know of it for the connection, but not for its IO. Without the
      #            option it is done where the reactor does the waiting.
      # sync_close:: as SSLSocket#sync_close=
      def wrap(io, context = nil, hostname: nil, alpn: nil, deadline: nil, readahead: nil,
               sync_close: nil)
        context = with_alpn(context || OpenSSL::SSL::SSLContext.new, alpn) if alpn || context.nil?
        socket = Socket.new(io, context, readahead: readahead, deadline: deadline)
        socket.hostname = hostname if hostname
        socket.sync_close = sync_close unless sync_close.nil?
        socket
      end

      # Gives an SSLSocket that exists and has not started our way of moving bytes. Returns it.
      def attach(ssl, readahead: nil, deadline: nil)
        unless ssl.is_a?(OpenSSL::SSL::SSLSocket)
          raise TypeError, "wrong argument type #{ssl.class} (expected OpenSSL::SSL::SSLSocket)"
        end
        ssl.extend(Methods) unless ssl.is_a?(Methods)
        ssl.__send__(:um_attach, readahead, deadline)
      end

      # From now on every new OpenSSL::SSL::SSLSocket is attached, whoever makes it: Net::HTTP,
      # Net::SMTP, open-uri, WEBrick... In every thread and Ractor.
      def install
        SSLSocket.prepend(Methods) unless SSLSocket <= Methods
        self.installed = true
      end

      # New sockets are stock ones again. Those that exist stay as they are.
      def uninstall
        self.installed = false
      end

      private

      def with_alpn(context, alpn)
        return context unless alpn
        context = context.dup if context.frozen?
        context.alpn_protocols = Array(alpn)
        context
      end
    end

    SSLSocket = OpenSSL::SSL::SSLSocket
    private_constant :SSLSocket
  end
end
