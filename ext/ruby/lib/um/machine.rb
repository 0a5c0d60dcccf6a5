# frozen_string_literal: true

require "etc"

# A machine: a reactor on io_uring whose tasks are fibers. One for each thread that wants one,
# used by that thread only (UM#wake, UM::Queue and UM::Mutex apart).
#
#   machine = UM.new
#   fiber = machine.spin { machine.sleep(0.1); 42 }
#   machine.join(fiber) #=> 42
#
# The names are those of the uringmachine gem. Descriptors are Integers or IOs; buffers Strings
# or IO::Buffers. Errors of the kernel are raised as Errno::*, others as UM::Error.
#
# Methods written in C: initialize, read, write, recv, send, sendv, open, close, shutdown, poll,
# closing, select, accept, accept_each, splice, waitid, sleep, snooze, yield, timeout, schedule, push, pop,
# shift, unshift, synchronize, metrics.
class UM
  # Ends the fiber it is raised in, quietly.
  class Terminate < Exception
  end

  private_constant :Task

  # What fibers of a machine can do besides what fibers can. Included in every Fiber, as spin
  # accepts a class.
  module FiberMethods
    # What the block returned, or the exception that ended it.
    attr_reader :result

    # Whether the block has returned or raised.
    def done?
      !!@done
    end

    # Items for this fiber, from whoever knows it.
    def mailbox
      @mailbox ||= UM::Queue.new
    end

    # The fiber is pushed there when it is done; at once if it is already.
    def add_done_listener(queue)
      done? ? queue.push(self) : (@done_listeners ||= []) << queue
    end

    private

    def um_run(machine, block, value)
      @result = block.lambda? && block.arity.zero? ? block.call : block.call(value)
    rescue Terminate
      @result = nil
    rescue SystemExit, SignalException => e
      @result = e
      machine.__send__(:raise_in_main, e)
    rescue Exception => e
      @result = e
    ensure
      @done = true
      @done_listeners&.each { |queue| queue.push(self) }
      machine.__send__(:ended, self)
    end
  end

  # The class of the fibers that spin makes: Fiber#raise goes through the machine, which first
  # takes back what the fiber has given to the kernel.
  class Fiber < ::Fiber
    include FiberMethods

    # The UM it belongs to.
    attr_accessor :machine

    # As ::Fiber#raise, after what the fiber waits for was taken back.
    def raise(*arguments, **options)
      return super if equal?(::Fiber.current) || !machine
      error = begin
        Kernel.raise(*arguments, **options)
      rescue Exception => e
        e
      end
      machine.schedule(self, error)
      self
    end

    # Ends the fiber by UM::Terminate, so that what it waits for is taken back.
    def kill
      return super if equal?(::Fiber.current) && defined?(super)
      self.raise(Terminate)
    end
  end

  # Starts a fiber that runs the block. It begins when the caller next waits.
  def spin(value = nil, klass = UM::Fiber, &block)
    raise ArgumentError, "no block given" unless block
    machine = self
    fiber = klass.new(blocking: false) { |given| fiber.__send__(:um_run, machine, block, given) }
    fiber.extend(FiberMethods) unless fiber.is_a?(FiberMethods)
    fiber.machine = self if fiber.is_a?(UM::Fiber)
    start(fiber, value)
  end

  # Waits for fibers, or for blocks that it first starts as fibers: what they returned, alone or
  # as an array. A fiber that an exception ended gives that exception.
  def join(*fibers)
    list = fibers.size == 1 && fibers[0].is_a?(Enumerable) ? fibers[0].to_a : fibers
    results = await_all(list).map(&:result)
    fibers.size == 1 && !fibers[0].is_a?(Enumerable) ? results[0] : results
  end

  # Waits like #join; returns how many it waited for.
  def await(*fibers)
    fibers = fibers[0].to_a if fibers.size == 1 && fibers[0].is_a?(Enumerable)
    await_all(fibers).size
  end

  # Ends fibers with UM::Terminate, and does not wait for it.
  def terminate(*fibers)
    fibers = fibers[0] if fibers.size == 1 && fibers[0].is_a?(Enumerable)
    fibers.each { |fiber| schedule(fiber, Terminate.new) unless fiber.done? }
    nil
  end

  # Runs the block every +interval+ seconds, until it breaks or raises.
  def periodically(interval)
    at = Process.clock_gettime(Process::CLOCK_MONOTONIC)
    loop do
      at += interval
      left = at - Process.clock_gettime(Process::CLOCK_MONOTONIC)
      left.positive? ? sleep(left) : snooze
      yield
    end
  end

  # writev(fd, *buffers, file_offset = nil) -> bytes
  #
  # One operation for all of them: gathered by the kernel for a socket; joined first for other
  # files, and where there are more than the kernel takes.
  def writev(io, *buffers)
    offset = buffers.pop if buffers.last.nil? || buffers.last.is_a?(Integer)
    return sendv(io, *buffers) if !offset && buffers.size <= 1024
    write_joined(io, buffers, offset)
  rescue Errno::ENOTSOCK
    write_joined(io, buffers, nil)
  end

  # Writes in the background, in order after nothing in particular; errors are lost.
  def write_async(io, buffer, length = nil, offset = nil)
    spin { write(io, buffer, length, offset) }
    buffer
  end

  # Closes in the background; errors are lost.
  def close_async(io)
    spin { close(io) }
    self
  end

  # Shuts down in the background; errors are lost.
  def shutdown_async(io, how)
    spin { shutdown(io, how) }
    self
  end

  # Reads until the end, a new buffer for each block call.
  def read_each(io, size = 65_536)
    loop do
      buffer = +""
      break if read(io, buffer, size).zero?
      yield buffer
    end
  end

  # Receives until the end, a new buffer for each block call.
  def recv_each(io, flags, size = 65_536)
    loop do
      buffer = +""
      break if recv(io, buffer, size, flags).zero?
      yield buffer
    end
  end

  # Pushes the descriptor of each connection, for ever.
  def accept_into_queue(io, queue)
    accept_each(io) { |fd| push(queue, fd) }
  end

  # The descriptor of a new socket.
  def socket(domain, type, protocol = 0, _flags = 0)
    socket = ::Socket.new(domain, type, protocol)
    socket.autoclose = false
    socket.fileno
  end

  # A name is resolved by a thread, while other fibers run.
  def connect(io, host, port)
    connect_to(io, sockaddr(io, host, port))
  end

  # Gives a socket its local address.
  def bind(io, host, port)
    with_socket(io) { |socket| socket.bind(::Socket.sockaddr_in(port, host)) }
  end

  # From now on the socket takes connections.
  def listen(io, backlog)
    with_socket(io) { |socket| socket.listen(backlog) }
  end

  # The value of an integer option.
  def getsockopt(io, level, option)
    with_socket(io) { |socket| socket.getsockopt(level, option).int }
  end

  # Sets an integer option; returns 0.
  def setsockopt(io, level, option, value)
    with_socket(io) do |socket|
      socket.setsockopt(level, option, value)
      0
    end
  end

  # Waits, in a worker thread, until a file is on its disk.
  def fsync(io)
    blocking { with_io(io, &:fsync) }
  end

  # The addresses of a name; a worker thread looks them up.
  def resolve(host)
    blocking { Addrinfo.getaddrinfo(host, nil, nil, :STREAM).map(&:ip_address).uniq }
  end

  # Runs the block in a worker thread while other fibers run, and returns its result.
  def blocking(&block)
    Workers.run(self, block)
  end

  # Descriptors of a pipe.
  def self.pipe
    IO.pipe.map do |io|
      io.autoclose = false
      io.fileno
    end
  end

  # The machine of this thread.
  def self.current
    machine = Thread.current.thread_variable_get(:um_machine)
    return machine if machine&.ours?
    Thread.current.thread_variable_set(:um_machine, new)
    Thread.current.thread_variable_get(:um_machine)
  end

  private

  def write_joined(io, buffers, offset)
    strings = buffers.map { |buffer| buffer.is_a?(IO::Buffer) ? buffer.get_string : buffer.b }
    write(io, strings.join, nil, offset)
  end

  def await_all(fibers)
    fibers = fibers.map { |fiber| fiber.is_a?(Proc) ? spin(&fiber) : fiber }
    pending = fibers.reject(&:done?)
    return fibers if pending.empty?
    queue = UM::Queue.new
    pending.each { |fiber| fiber.add_done_listener(queue) }
    pending.size.times { shift(queue) }
    fibers
  end

  # An address of the family that the socket has.
  def sockaddr(io, host, port)
    return ::Socket.sockaddr_un(host) if port.nil?
    return ::Socket.sockaddr_in(port, host) if host.match?(/\A[\d.]+\z|:/)
    family = with_socket(io) { |socket| socket.local_address.afamily }
    blocking { Addrinfo.getaddrinfo(host, port, family, :STREAM).first.to_sockaddr }
  end

  def with_socket(io)
    return yield(io) unless io.is_a?(Integer)
    socket = ::Socket.for_fd(io)
    socket.autoclose = false
    yield socket
  end

  def with_io(io)
    return yield(io) unless io.is_a?(Integer)
    file = IO.for_fd(io, autoclose: false)
    yield file
  end

  # Threads for what only blocks: as many as there are cores, for all machines together (of a
  # Ractor: their objects are not shared).
  class Workers # :nodoc:
    def self.run(machine, block)
      (Ractor.current[:um_workers] ||= new).run(machine, block)
    end

    def initialize
      @mutex = Thread::Mutex.new
      begin_anew
    end

    def run(machine, block)
      answer = UM::Queue.new
      submit { answer.push(outcome(block)) }
      ok, value = machine.shift(answer)
      ok ? value : raise(value)
    end

    private

    # A forked child has none of the threads.
    def begin_anew
      @pid = Process.pid
      @queue = Thread::Queue.new
      @threads = []
    end

    def outcome(block)
      [true, block.call]
    rescue Exception => e
      [false, e]
    end

    def submit(&job)
      @mutex.synchronize { start }
      @queue << job
    end

    def start
      begin_anew if @pid != Process.pid
      return if @threads.size >= Etc.nprocessors || (@threads.any? && @queue.num_waiting.positive?)
      @threads << Thread.new(@queue) { |queue| queue.pop.call while true }
    end
  end
  private_constant :Workers
  Ractor.current[:um_workers] = Workers.new # before two threads want one
end
