# frozen_string_literal: true

# Somebody else's fiber scheduler, small: IO.select on one thread. Counts its hooks.
class SelectScheduler
  attr_reader :calls

  def initialize
    @calls = Hash.new(0)
    @ready = []
    @readers = {}
    @writers = {}
    @sleepers = {}
    @blocked = {}
    @lock = Thread::Mutex.new
    @urgent = IO.pipe
  end

  def close
    run
    @urgent.each(&:close)
  end

  def run
    until idle?
      readable, writable, = IO.select(@readers.keys + [@urgent[0]], @writers.keys, [], wait)
      @urgent[0].read_nonblock(1024, exception: false) if readable&.delete(@urgent[0])
      wake(readable, writable)
    end
  end

  def io_wait(io, events, timeout = nil)
    @calls[:io_wait] += 1
    fiber = Fiber.current
    @readers[io] = fiber if events & IO::READABLE != 0
    @writers[io] = fiber if events & IO::WRITABLE != 0
    @sleepers[fiber] = now + timeout if timeout
    Fiber.yield
  ensure
    @readers.delete(io) if @readers[io] == fiber
    @writers.delete(io) if @writers[io] == fiber
    @sleepers.delete(fiber)
  end

  def kernel_sleep(duration = nil)
    @calls[:kernel_sleep] += 1
    block(:sleep, duration)
    true
  end

  def block(_blocker, timeout = nil)
    @calls[:block] += 1
    fiber = Fiber.current
    @sleepers[fiber] = now + timeout if timeout
    @blocked[fiber] = true
    Fiber.yield
  ensure
    @blocked.delete(fiber)
    @sleepers.delete(fiber)
  end

  def unblock(_blocker, fiber)
    @lock.synchronize { @ready << fiber }
    @urgent[1].write_nonblock(".", exception: false)
  end

  def fiber(&block)
    Fiber.new(blocking: false, &block).tap(&:resume)
  end

  private

  def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

  def idle? = [@ready, @readers, @writers, @sleepers, @blocked].all?(&:empty?)

  def wait
    return 0 unless @ready.empty?
    earliest = @sleepers.values.min
    earliest && [earliest - now, 0].max
  end

  def wake(readable, writable)
    events = Hash.new(0)
    readable&.each { |io| (fiber = @readers.delete(io)) && events[fiber] |= IO::READABLE }
    writable&.each { |io| (fiber = @writers.delete(io)) && events[fiber] |= IO::WRITABLE }
    ready = @lock.synchronize { @ready.tap { @ready = [] } }
    late = @sleepers.select { |_, at| at <= now }.keys
    events.each { |fiber, found| fiber.resume(found) if fiber.alive? }
    (ready | late).each { |fiber| fiber.resume(false) if fiber.alive? && !events.key?(fiber) }
  end
end
