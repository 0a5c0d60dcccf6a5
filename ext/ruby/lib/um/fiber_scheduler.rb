# frozen_string_literal: true

require "timeout"

class UM
  # A Fiber::Scheduler on a machine: what blocks in Fiber.schedule'd fibers goes through the ring,
  # TLS included.
  #
  #   Fiber.set_scheduler(UM::FiberScheduler.new)
  #   Fiber.schedule { Net::HTTP.get(uri) }
  class FiberScheduler
    # What may be given to #io_wait; the same bits as poll(2)'s.
    READABLE = IO::READABLE
    # As READABLE.
    WRITABLE = IO::WRITABLE

    P_PID = 1
    P_ALL = 0
    WEXITED = 4
    WNOWAIT = 0x0100_0000
    private_constant :P_PID, :P_ALL, :WEXITED, :WNOWAIT

    # On a machine of its own, or on the thread's +machine+.
    def initialize(machine = UM.new)
      @machine = machine
    end

    # The machine; after a fork the child's own.
    def machine
      @machine = UM.new unless @machine.ours?
      @machine
    end

    # Runs until every fiber has ended.
    def run
      machine.drain
    end

    # At the end of the thread, or when another scheduler is set.
    def close
      return if @closing
      @closing = true
      return unless @machine.ours?
      run
      @closed = true
      @machine.shut_down
    end
    # What Ruby calls when the thread ends: as #close.
    alias scheduler_close close

    # Whether #close has ended it.
    def closed?
      !!@closed
    end

    # Starts a fiber and lets it run until it first waits.
    def fiber(&block)
      raise "the scheduler is closed" if @closed
      fiber = machine.spin { run_reported(block) }
      machine.snooze
      fiber
    end

    # ---- waiting ----

    # Suspends the fiber until #unblock; false when the time is up first.
    def block(_blocker, timeout = nil)
      machine.park(timeout)
    end

    # From any thread.
    def unblock(_blocker, fiber)
      @machine.wake(fiber) if @machine.ours?
    end

    # Kernel#sleep.
    def kernel_sleep(duration = nil)
      duration ? machine.sleep(duration) : machine.park(nil)
      true
    end

    # Timeout.timeout: ends what this fiber waits for.
    def timeout_after(duration, klass = Timeout::Error, message = "execution expired", &block)
      # Since Ruby 3.4 Timeout gives an exception that it knows again.
      machine.timeout(duration, klass.is_a?(Class) ? klass.new(message) : klass, &block)
    end

    # Ruby 4.0 calls it where a long computation could give way.
    def yield
      machine.snooze
    end

    # Ruby 4.0: raises in a fiber, whatever it waits for.
    def fiber_interrupt(fiber, exception)
      error = exception.is_a?(Class) ? exception.new : exception
      machine.schedule(fiber, error)
    end

    # ---- descriptors ----

    # The events that are there, or false when the time is up.
    def io_wait(io, events, timeout = nil)
      return READABLE if events & READABLE != 0 && ahead?(io)
      found = machine.poll_for(io, events, timeout) or return false
      ready = found & (READABLE | WRITABLE | IO::PRIORITY)
      # An error or a hang-up: the transfer that follows tells which.
      ready.zero? ? events : ready & events
    end

    # As IO.select; what Ruby or a TLS connection has received counts as readable.
    def io_select(readables, writables = nil, exceptables = nil, timeout = nil)
      machine.select(readables, writables, exceptables, timeout)
    end

    # Closes in the ring.
    # Fibers that wait on it raise IOError.
    def io_close(fd)
      machine.closing(fd)
      machine.close(fd)
      true
    rescue SystemCallError
      false
    end

    # At least +length+ bytes, and what else is there.
    def io_read(io, buffer, length, offset = 0)
      at_least(length, buffer.size - offset) do |done|
        machine.read(io, buffer, buffer.size - offset - done, offset + done)
      end
    end

    if RUBY_VERSION >= "3.2"
      # At least +length+ bytes of the buffer from +offset+ on, and what else the kernel takes.
      def io_write(io, buffer, length, offset = 0)
        at_least(length, buffer.size - offset) { |done| machine.write(io, rest(buffer, offset + done)) }
      end

      # Reads at the place +from+ of the file; Ruby 3.1 calls it without an offset.
      def io_pread(io, buffer, from, length, offset)
        read_at(io, buffer, from, length, offset)
      end

      # Writes at the place +from+ of the file; Ruby 3.1 calls it without an offset.
      def io_pwrite(io, buffer, from, length, offset)
        at_least(length, buffer.size - offset) do |done|
          machine.write(io, rest(buffer, offset + done), nil, from + done)
        end
      end
    else # which writes once, no more than it is asked to; a slice of a string's buffer crashes its GC
      def io_write(io, buffer, length) # :nodoc:
        at_least(0, buffer.size) { machine.write(io, buffer, (length if length.positive?)) }
      end

      def io_pread(io, buffer, length, from) # :nodoc:
        read_at(io, buffer, from, length, 0)
      end

      def io_pwrite(io, buffer, length, from) # :nodoc:
        at_least(0, buffer.size) { machine.write(io, buffer, (length if length.positive?), from) }
      end
    end

    # ---- what only threads can do ----

    # The addresses of a name, looked up by a worker thread; nil when there are none.
    def address_resolve(hostname)
      machine.resolve(hostname)
    rescue SocketError
      nil
    end

    # Ruby 3.4: work that holds no lock of Ruby's.
    def blocking_operation_wait(work)
      machine.blocking { work.call }
    end

    # The end of the process is awaited in the ring, its status then taken at once.
    def process_wait(pid, flags)
      if flags & Process::WNOHANG == 0 && pid != 0 && pid >= -1
        machine.waitid(pid == -1 ? P_ALL : P_PID, [pid, 0].max, WEXITED | WNOWAIT)
      end
      Fiber.new(blocking: true) { Process::Status.wait(pid, flags) }.resume
    end

    # Ruby 3.3's IO#pwrite calls the hook after it has released the VM's lock: Ruby code in it
    # corrupts the VM (it hangs, or crashes). This one calls the same hook with the lock held.
    module LockedPwrite # :nodoc: all
      def pwrite(object, from)
        scheduler = ::Fiber.current_scheduler
        return super unless scheduler.is_a?(FiberScheduler)
        data = object.to_s
        result = scheduler.io_pwrite(self, IO::Buffer.for(data), from, data.bytesize, 0)
        return result unless result.negative?
        raise IOError, "not opened for writing" if result == -Errno::EBADF::Errno
        raise SystemCallError.new(nil, -result)
      end
    end

    # Ruby before 4.0 has io_close and never calls it: fibers that wait on what is closed would
    # wait for ever.
    module WakingClose # :nodoc: all
      def close
        scheduler = ::Fiber.current_scheduler
        scheduler.machine.closing(self) if scheduler.is_a?(FiberScheduler) && !closed?
        super
      end
    end

    # Ruby 3.1 has no hook for it: the thread would stand still.
    module HookedSelect # :nodoc: all
      def select(readables, writables = nil, exceptables = nil, timeout = nil)
        scheduler = ::Fiber.current_scheduler
        return super unless scheduler.is_a?(FiberScheduler)
        scheduler.io_select(readables, writables, exceptables, timeout)
      end
    end

    private_constant :LockedPwrite, :WakingClose, :HookedSelect
    ::IO.prepend(LockedPwrite) if RUBY_VERSION >= "3.3"
    ::IO.prepend(WakingClose) if RUBY_VERSION < "4.0"
    ::IO.singleton_class.prepend(HookedSelect) if RUBY_VERSION < "3.2"

    private

    def ahead?(io)
      io.is_a?(TLS::Methods) && io.__send__(:um_ahead?)
    end

    def run_reported(block)
      block.call
    rescue Terminate
      nil
    rescue SystemExit, SignalException
      raise
    rescue Exception => e
      warn "#{Fiber.current.inspect} terminated with exception:", e.full_message(highlight: false)
      raise
    end

    def read_at(io, buffer, from, length, offset)
      at_least(length, buffer.size - offset) do |done|
        machine.read(io, buffer, buffer.size - offset - done, offset + done, from + done)
      end
    end

    # How many bytes, or why none. The block is told how many there are.
    def at_least(length, room)
      total = 0
      loop do
        count = yield total
        total += count
        break if count.zero? || total >= length || total >= room
      end
      total
    rescue SystemCallError => e
      total.positive? ? total : -e.errno
    end

    def rest(buffer, offset)
      offset.zero? ? buffer : buffer.slice(offset, buffer.size - offset)
    end
  end
end
