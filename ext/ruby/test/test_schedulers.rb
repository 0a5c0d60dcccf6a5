# frozen_string_literal: true

require_relative "socket_tests"
require_relative "select_scheduler"
require "net/http"
require "open3"
require "tempfile"
require "tmpdir"

# Our sockets in Fiber.schedule'd fibers; which scheduler it is, #scheduler says.
module InScheduledFibers
  include SocketTests

  def around
    result = nil
    thread = Thread.new do
      Thread.current.report_on_exception = false
      Fiber.set_scheduler(scheduler)
      Fiber.schedule { result = outcome { yield } }
    end
    thread.join
    unwrap(result)
  end

  def concurrently(*blocks)
    queue = Thread::Queue.new
    results = Array.new(blocks.size)
    blocks.each_with_index do |block, i|
      Fiber.schedule do
        results[i] = outcome(&block)
        queue << i
      end
    end
    blocks.size.times { queue.pop }
    results.map { |result| unwrap(result) }
  end

  def outcome
    [true, yield]
  rescue Exception => e
    [false, e]
  end

  def unwrap(result) = result[0] ? result[1] : raise(result[1])
end

class TestForeignScheduler < TLSTest
  include InScheduledFibers

  def scheduler = @scheduler = SelectScheduler.new

  def test_it_waits_through_io_wait
    around do
      client, peer = pair
      concurrently(-> { client.gets }, -> { sleep(0.01) && peer.puts("x") })
      [client, peer].each(&:close)
    end
    assert_operator @scheduler.calls[:io_wait], :>, 0
  end
end

class TestOwnScheduler < TLSTest
  include InScheduledFibers

  def scheduler = @scheduler = UM::FiberScheduler.new

  def test_it_waits_in_the_ring
    metrics = nil
    around do
      client, peer = pair
      concurrently(-> { client.gets }, -> { sleep(0.01) && peer.puts("x") })
      metrics = @scheduler.machine.metrics
      [client, peer].each(&:close)
    end
    assert_operator metrics[:submissions], :>, 2
  end

  # Stock sockets go through its io_wait.
  def test_stock_sockets
    around do
      near, far = tcp_pair
      client, peer = stock(near, client_context, hostname: "localhost"), stock(far, server_context)
      concurrently(-> { client.connect }, -> { peer.accept })
      data = Random.bytes(1 << 20)
      assert_equal data, concurrently(-> { client.write(data) }, -> { peer.read(data.bytesize) }).last
      [client, peer].each(&:close)
    end
  end

  def test_sleep_block_and_timeout
    around do
      undisturbed do
        each = nil
        all = seconds { each = concurrently(*Array.new(10) { -> { seconds { sleep 0.05 } } }) }
        assert_operator each.min, :>=, 0.05
        all < 0.09
      end
      assert_raises(Timeout::Error) { Timeout.timeout(0.01) { sleep 1 } }
      queue = Thread::Queue.new
      Thread.new { sleep(0.01) and queue << :from_thread }
      assert_equal :from_thread, queue.pop
      mutex = Thread::Mutex.new
      order = []
      concurrently(-> { mutex.synchronize { sleep(0.01) and order << 1 } }, -> { mutex.synchronize { order << 2 } })
      assert_equal [1, 2], order
      assert_equal 7, Thread.new { sleep(0.01) and 7 }.value
    end
  end

  def test_pipes_files_and_sockets
    around do
      reader, writer = IO.pipe
      assert_equal "hello\n", concurrently(-> { reader.gets }, -> { sleep(0.01) && writer.puts("hello") }).first
      [reader, writer].each(&:close)
      Tempfile.create do |file|
        file.write("x" * 100_000)
        file.flush
        file.rewind
        assert_equal 100_000, file.read.bytesize
        assert_equal "xxx", file.pread(3, 10)
      end
      near, far = tcp_pair
      assert_equal "abc", concurrently(-> { near.readpartial(10) }, -> { sleep(0.01) && far.write("abc") }).first
      [near, far].each(&:close)
    end
  end

  # As many bytes as are asked for, though they come and go in pieces; Ruby 3.1 writes once.
  def test_io_buffers
    around do
      near, far = tcp_pair
      data = Random.bytes(3 << 20)
      into = IO::Buffer.new(data.bytesize)
      source = IO::Buffer.for(data)
      write = -> { RUBY_VERSION < "3.2" ? near.write(data) : source.write(near, *whole(data)) }
      wrote, read = concurrently(write, -> { into.read(far, *whole(data)) })
      assert_equal [data.bytesize] * 2, [wrote, read]
      assert into.get_string == data
      Tempfile.create do |file|
        # Ruby 3.1 has pwrite's hook write elsewhere.
        RUBY_VERSION < "3.2" ? file.pwrite("abcde", 2) : assert_equal(5, IO::Buffer.for("abcde").pwrite(file, 2, 5))
        assert_equal 4, into.pread(file, *(RUBY_VERSION < "3.2" ? [4, 3] : [3, 4]))
        assert_equal "bcde", into.get_string(0, 4)
        assert_equal stock_write(source), source.write(file.tap(&:rewind), 4)
      end
      [near, far].each(&:close)
    end
  end

  # How much of a longer buffer is written: Ruby 3.1 wants as much as is asked for, others at least that.
  def stock_write(buffer)
    Thread.new { Tempfile.create { |file| buffer.write(file, 4) } }.value
  end

  # What Ruby has received already, no more than what is in the descriptor.
  def test_select
    around do
      reader, writer = IO.pipe
      writer << "one\ntwo\n"
      assert_equal "one\n", reader.gets
      assert_equal [[reader], [writer], []], IO.select([reader], [writer], nil, 5)
      assert_equal "two\n", reader.gets
      assert_nil IO.select([reader], nil, nil, 0.001)
      ready = concurrently(-> { IO.select([reader]) }, -> { sleep(0.001) && writer << "three" }).first
      assert_equal [[reader], [], []], ready
      assert_raises(TypeError) { IO.select([Object.new]) }
      [reader, writer].each(&:close)
      assert_raises(IOError) { IO.select([reader]) }
    end
  end

  def whole(data) = RUBY_VERSION < "3.2" ? [data.bytesize] : [data.bytesize, 0]

  def test_processes
    around do
      Dir.mktmpdir do |folder| # each ends well when all four have begun
        meet = 'touch $0/$1; for i in $(seq 1000); do [ $(ls $0 | wc -l) = 4 ] && exit 0; sleep 0.02; done; exit 1'
        met = concurrently(*Array.new(4) { |i| -> { system("sh", "-c", meet, folder, i.to_s) } })
        assert_equal [true] * 4, met
      end
      assert_equal "out\n", `echo out`
      assert $?.success?
      pid = spawn("exit 4")
      assert_equal 4, Process.wait2(pid)[1].exitstatus
      assert_raises(Errno::ECHILD) { Process.wait(pid) }
    end
  end

  def test_names_are_resolved
    around do
      assert_includes Addrinfo.getaddrinfo("localhost", 80, nil, :STREAM).map(&:ip_address), "127.0.0.1"
      assert_raises(SocketError) { TCPSocket.new("no.such.host.invalid", 80) }
    end
  end

  # Ruby passes as many arguments as it was given.
  def test_select_with_fewer_arguments
    around do
      near, far = tcp_pair
      near.write("x")
      assert_equal [[far], [], []], IO.select([far])
      assert_equal [[far], [near], []], IO.select([far], [near])
      [near, far].each(&:close)
    end
  end

  # Whatever waits on it: a read, a wait, an accept.
  def test_close_wakes_who_waits
    around do
      near, peer = tcp_pair
      far, other = tcp_pair # their peers stay open: no hang-up wakes anybody
      listener = TCPServer.new("127.0.0.1", 0)
      reader, writer = IO.pipe
      results = Thread::Queue.new
      [-> { near.read(1) }, -> { far.wait_readable }, -> { listener.accept }, -> { reader.read(1) }].each do |wait|
        Fiber.schedule { results << outcome(&wait)[1] }
      end
      [near, far, listener, reader].each do |io|
        sleep 0.001
        io.close
        assert_kind_of IOError, Timeout.timeout(5) { results.pop }
        assert_predicate io, :closed?
      end
      [writer, peer, other].each(&:close)
    end
  end

  def test_fork_in_a_scheduled_fiber
    around do
      pid = fork { sleep(0.01) && exit!(6) }
      assert_equal 6, Process.wait2(pid)[1].exitstatus
    end
  end

  def test_timeouts_leave_sockets_usable
    around do
      client, peer = pair
      assert_raises(Timeout::Error) { Timeout.timeout(0.02) { client.gets } }
      peer.write("half")
      assert_raises(Timeout::Error) { Timeout.timeout(0.02) { client.gets } }
      peer.write(" and half\n")
      assert_equal "half and half\n", client.gets
      [client, peer].each(&:close)
    end
  end

  def test_raise_and_close_into_parked_readers
    around do
      client, peer = pair
      reader = Fiber.schedule { client.read(1) rescue $! }
      sleep 0.01
      reader.raise(ArgumentError, "enough")
      sleep 0.01
      peer.write("x")
      assert_equal "x", client.read(1)
      failure = nil
      Fiber.schedule { failure = (client.read(1) rescue $!) }
      sleep 0.01
      client.close
      sleep 0.01
      assert_kind_of IOError, failure
      peer.close
    end
  end

  # A connection may be used from another thread's ring, and from a plain thread, at the next call.
  def test_a_connection_moves_between_threads
    near, far = tcp_pair
    client, peer = wrap(near, client_context, hostname: "localhost"), wrap(far, server_context)
    threads(-> { client.connect }, -> { peer.accept })
    3.times do
      around { client.write("ring") && assert_equal("ring", peer.read(4)) }
      client.write("thread")
      assert_equal "thread", peer.read(6)
    end
    [client, peer].each(&:close)
  end

  def test_a_failing_fiber_is_told_about
    code = 'Fiber.set_scheduler(UM::FiberScheduler.new); Fiber.schedule { raise "lost" }'
    load_path = $LOAD_PATH.flat_map { |folder| ["-I", folder.to_s] }
    _, error, = Open3.capture3(RbConfig.ruby, *load_path, "-rum/tls", "-e", code)
    assert_match(/lost/, error)
  end
end

# Which hooks Ruby calls, and that ours answer.
class TestHooks < TLSTest
  class Counting < UM::FiberScheduler
    def calls = @calls ||= Hash.new(0)

    hooks = %i[block unblock kernel_sleep timeout_after process_wait io_wait io_select io_read io_write io_pread
               io_pwrite io_close address_resolve blocking_operation_wait fiber_interrupt fiber scheduler_close]
    hooks.each do |hook|
      define_method(hook) do |*arguments, &block|
        calls[hook] += 1
        super(*arguments, &block)
      end
    end
  end

  def expected
    hooks = %i[fiber block unblock kernel_sleep timeout_after process_wait io_wait io_read io_write
               address_resolve scheduler_close]
    hooks << :io_select << :io_pread << :io_pwrite if RUBY_VERSION >= "3.3"
    hooks
  end

  def exercise
    sleep 0.001
    begin
      Timeout.timeout(0.001) { sleep 1 }
    rescue Timeout::Error
      nil
    end
    queue = Thread::Queue.new
    Thread.new { sleep(0.001) and queue << 1 }
    queue.pop
    reader, writer = IO.pipe
    Fiber.schedule { writer.write("pipe") and writer.close }
    @read = reader.read
    reader.close
    @status = system("exit 3")
    near, far = tcp_pair
    Fiber.schedule { sleep(0.001) and far.write("socket") }
    near.wait_readable
    @received = near.recv(100)
    IO.select([near], [near], [], 1)
    Addrinfo.getaddrinfo("localhost", 1, nil, :STREAM)
    files
    [near, far].each(&:close)
  end

  def files
    Tempfile.create do |file|
      file.pwrite("abcdef", 3)
      @at = file.pread(3, 4)
    end
  end

  def test_every_hook_is_called
    scheduler = Counting.new
    error = nil
    Thread.new do
      Fiber.set_scheduler(scheduler)
      Fiber.schedule { exercise rescue error = $! }
    end.join
    assert_nil error
    assert_equal ["pipe", false, "socket", "bcd"], [@read, @status, @received, @at]
    assert_empty expected - scheduler.calls.keys, scheduler.calls.inspect
  end

  # Those that this Ruby does not call, as the next one does.
  def test_hooks_called_directly
    machine = UM.new
    scheduler = UM::FiberScheduler.new(machine)
    order = []
    other = scheduler.fiber { scheduler.kernel_sleep(20) rescue order << $!.message }
    2.times { machine.spin { 2.times { |i| order << i && scheduler.yield } } }
    3.times { machine.snooze }
    scheduler.fiber_interrupt(other, RuntimeError.new("interrupted"))
    work = Object.new
    def work.call = Thread.current
    worker = scheduler.blocking_operation_wait(work)
    refute_same Thread.current, worker
    assert_equal [0, 0, 1, 1, "interrupted"], order
    reader, writer = UM.pipe
    waiting = scheduler.fiber { scheduler.io_wait(IO.for_fd(reader, autoclose: false), IO::READABLE) rescue order << $!.class }
    assert scheduler.io_close(reader)
    refute scheduler.io_close(reader)
    scheduler.run
    assert_predicate waiting, :done?
    assert_equal IOError, order.last
    machine.close(writer)
    assert_equal [nil, ["127.0.0.1"]], [scheduler.address_resolve("no.such.host.invalid"), scheduler.address_resolve("127.0.0.1")]
  ensure
    scheduler.close
  end

  # A TLS socket waits in the ring: not one io_wait.
  def test_tls_calls_no_hook
    scheduler = Counting.new
    near, far = tcp_pair
    got = nil
    Thread.new do
      Fiber.set_scheduler(scheduler)
      server = UM::TLS.wrap(far, server_context)
      Fiber.schedule { server.accept and server.write(server.gets) }
      Fiber.schedule do
        client = UM::TLS.wrap(near, client_context, hostname: "localhost")
        client.connect
        client.puts("through the ring")
        got = client.gets
      end
    end.join
    assert_equal "through the ring\n", got
    assert_equal %i[fiber scheduler_close], scheduler.calls.keys.sort
    [near, far].each(&:close)
  end
end
