# frozen_string_literal: true

class UM
  module TLS
    # The stock methods that do one SSL_* step each, by names that stay when the others are
    # overridden. With our BIO underneath such a step only computes.
    OpenSSL::SSL::SSLSocket.class_eval do
      %i[connect_nonblock accept_nonblock sysread_nonblock syswrite_nonblock].each do |name|
        alias_method :"um_stock_#{name}", name
        private :"um_stock_#{name}"
      end
    end

    # What an attached SSLSocket does its own way. Everything is stock for one that is not.
    #
    # Methods written in C: sysread, syswrite, sysread_nonblock, syswrite_nonblock, stop.
    module Methods
      # As stock; attached while UM::TLS.install holds.
      def initialize(io, *context)
        super
        um_attach(nil, nil) if TLS.installed? && !is_a?(Socket)
      end

      # As stock: the handshake as the client.
      def connect
        um_attached? ? um_handshake(:um_stock_connect_nonblock) : super
      end

      # As stock: the handshake as the server.
      def accept
        um_attached? ? um_handshake(:um_stock_accept_nonblock) : super
      end

      # As stock: as far as it goes without waiting.
      def connect_nonblock(exception: true)
        return super unless um_attached?
        um_handshake_nonblock(:um_stock_connect_nonblock, exception)
      end

      # As stock: as far as it goes without waiting.
      def accept_nonblock(exception: true)
        return super unless um_attached?
        um_handshake_nonblock(:um_stock_accept_nonblock, exception)
      end

      # Bytes of the last syswrite or write that were taken: of one that was interrupted, by a
      # timeout or an exception, the rest may be written again.
      def consumed
        um_consumed
      end

      # As stock; besides, true for bytes that were received ahead and not yet decrypted: when it
      # is not 0, reading makes progress without the socket being readable.
      def pending
        return super unless um_attached?
        decrypted = super
        decrypted.zero? ? um_buffered : decrypted
      end

      # Waits until reading makes progress; nil when it does not in +timeout+ seconds.
      def wait_readable(timeout = nil)
        return to_io.wait_readable(timeout) && self unless um_attached?
        um_ahead? ? self : um_wait(IO::READABLE, timeout)
      end

      # Waits until writing makes progress; nil when it does not in +timeout+ seconds.
      def wait_writable(timeout = nil)
        um_attached? ? um_wait(IO::WRITABLE, timeout) : to_io.wait_writable(timeout) && self
      end

      # Says goodbye to the peer, and with #sync_close closes the IO as well.
      def sysclose
        return super unless um_attached?
        return if closed?
        stop
        um_close_io if sync_close
      end

      # As #sysclose, after sending what was written.
      def close
        return super unless um_attached?
        um_flush_for_close unless closed?
        sysclose
      end

      private

      def um_handshake(step)
        deadline = um_deadline
        while um_step(step).is_a?(Symbol)
          um_fill(deadline)
        end
        um_flush(deadline)
        self
      rescue Exception
        um_try_flush unless closed? # an alert
        raise
      end

      def um_handshake_nonblock(step, exception)
        while (wanted = um_step(step)).is_a?(Symbol)
          return um_would_block(:wait_writable, exception) unless um_try_flush
          return um_would_block(wanted, exception) unless um_try_fill
        end
        um_try_flush ? self : um_would_block(:wait_writable, exception)
      rescue OpenSSL::SSL::SSLErrorWaitReadable, OpenSSL::SSL::SSLErrorWaitWritable
        raise
      rescue Exception
        um_try_flush unless closed?
        raise
      end

      def um_would_block(wanted, exception)
        return wanted unless exception
        if wanted == :wait_readable
          raise OpenSSL::SSL::SSLErrorWaitReadable, "read would block"
        else
          raise OpenSSL::SSL::SSLErrorWaitWritable, "write would block"
        end
      end

      # Writes without a copy what it can write at once. Whatever interrupts it, @wbuffer holds
      # what was not taken, no more and no less.
      def do_write(string)
        return super unless um_attached?
        um_writing do
          @wbuffer = "".b unless defined?(@wbuffer) && @wbuffer
          @sync ||= false
          if @sync && @wbuffer.empty?
            um_write_through(string)
          else
            @wbuffer << string.b
            um_write_through(@wbuffer) if @sync || @wbuffer.bytesize > OpenSSL::Buffering::BLOCK_SIZE
          end
        end
      end

      def um_write_through(string)
        return if string.empty?
        taken = syswrite(string)
        @wbuffer = "".b if string.equal?(@wbuffer)
      ensure
        @wbuffer = string.byteslice(um_consumed..).b unless taken || string.empty?
      end

      # Not behind a write of somebody else, who may be waiting for a peer that does not read.
      def um_flush_for_close
        flush unless um_writing_elsewhere?
      rescue StandardError
        nil
      end

      def um_close_io
        um_release
        io.close
      end
    end

    # What a connection has received, and maybe decrypted, is in no descriptor that IO.select could
    # look at. Without a connection among +readables+ it is Ruby's own.
    module Select # :nodoc: all
      def select(readables, writables = nil, exceptables = nil, timeout = nil)
        return super unless readables.is_a?(Array)
        ahead = readables.select { |io| Methods === io && io.__send__(:um_ahead?) }
        return super if ahead.empty?
        ready = super(readables, writables, exceptables, 0) || [[], [], []]
        [ready[0] | ahead, ready[1], ready[2]]
      end
    end
    private_constant :Select
    IO.singleton_class.prepend(Select)

    # An OpenSSL::SSL::SSLSocket that waits the way its surroundings do; see UM::TLS.wrap.
    class Socket < OpenSSL::SSL::SSLSocket
      include Methods

      # See UM::TLS.wrap.
      def initialize(io, context = OpenSSL::SSL::SSLContext.new, readahead: nil, deadline: nil)
        super(io, context)
        um_attach(readahead, deadline)
      end

      # A TCP connection, wrapped and not yet connected in TLS.
      def self.open(host, port, local_host = nil, local_port = nil, context: nil)
        new(TCPSocket.open(host, port, local_host, local_port), *context)
      end
    end
  end
end
