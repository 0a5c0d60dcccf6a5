# frozen_string_literal: true

class UM
  module TLS
    # OpenSSL::SSL::SSLServer whose connections are UM::TLS::Socket.
    class Server < OpenSSL::SSL::SSLServer
      # The options are those of UM::TLS.wrap, for each connection.
      def initialize(server, context, **options)
        super(server, context)
        @options = options
      end

      # The next connection, after its handshake unless +start_immediately+ is false.
      def accept
        io, = to_io.accept
        begin
          ssl = TLS.wrap(io, @ctx, sync_close: true, **@options)
          ssl.accept if start_immediately
          ssl
        rescue Exception
          ssl ? ssl.close : io.close
          raise
        end
      end
    end
  end
end
