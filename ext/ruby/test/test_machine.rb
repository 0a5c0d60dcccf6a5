# frozen_string_literal: true

require_relative "socket_tests"
require "open3"

# The machine itself.
class TestMachine < TLSTest
  def setup = @machine = UM.new

  def teardown = @machine.shut_down

  def test_spin_and_join
    fiber = @machine.spin(3) { |value| @machine.sleep(0.01) and value * 2 }
    assert_equal 6, @machine.join(fiber)
    assert_equal [1, 2], @machine.join(-> { 1 }, -> { @machine.snooze and 2 })
    error = @machine.join(@machine.spin { raise "no" })
    assert_equal "no", error.message
    assert_equal 2, @machine.await(@machine.spin { 1 }, @machine.spin { 2 })
  end

  def test_writev_is_one_operation
    near, far = tcp_pair
    reader, writer = UM.pipe
    @machine.sleep(0.001) # arms its wake-up
    middle = IO::Buffer.for("def")
    # What is no socket refuses the first.
    [[near, far, 1], [writer, reader, 2]].each do |to, from, operations|
      before = @machine.metrics[:submissions]
      assert_equal 9, @machine.writev(to, "abc", middle, "ghi")
      assert_equal operations, @machine.metrics[:submissions] - before
      buffer = +""
      assert_equal 9, @machine.read(from, buffer, 100)
      assert_equal "abcdefghi", buffer
    end
    assert_equal 2000, @machine.writev(near, *["x"] * 2000)
    [near, far].each(&:close)
    [reader, writer].each { |fd| @machine.close(fd) }
  end

  # Ruby 3.4 can be told not to move a thread between native ones; 3.3 cannot.
  def test_mn_threads
    load_path = $LOAD_PATH.flat_map { |folder| ["-I", folder.to_s] }
    script = <<~'RUBY'
      sums = Array.new(20) do
        Thread.new do
          machine = UM.new
          sums = Array.new(2) { machine.spin { Array.new(30) { machine.sleep(0.0003) && (1..3000).sum }.sum } }
          machine.join(sums).tap { machine.shut_down }
        end
      end
      puts sums.map(&:value).uniq.inspect
    RUBY
    out, = Open3.capture2e({ "RUBY_MN_THREADS" => "1" }, RbConfig.ruby, *load_path, "-rum/tls", "-e", script)
    if RUBY_VERSION.start_with?("3.3")
      assert_match(/RUBY_MN_THREADS=1 .*UM::Error/, out)
    else
      assert_equal "[[135045000, 135045000]]\n", out
    end
  end

  # The loop of a machine is a fiber, too.
  def test_no_memory_for_the_loop
    load_path = $LOAD_PATH.flat_map { |folder| ["-I", folder.to_s] }
    script = <<~'RUBY'
      machine = UM.new
      most, = Process.getrlimit(:AS)
      Process.setrlimit(:AS, File.read("/proc/self/status")[/VmSize:\s+(\d+)/, 1].to_i * 1024 + (64 << 20), most)
      fibers = []
      begin
        loop { fibers << Fiber.new { Fiber.yield }.tap(&:resume) }
      rescue FiberError
        machine.sleep(0.001) rescue puts $!.class
      end
      Process.setrlimit(:AS, most)
      puts machine.sleep(0.001)
    RUBY
    out, = Open3.capture2e(RbConfig.ruby, *load_path, "-rum/tls", "-e", script)
    assert_equal "FiberError\n0.001\n", out
  end

  def test_bad_input
    reader, writer = UM.pipe
    [reader, nil, "x"].each { |list| assert_raises(TypeError) { @machine.select(list || {}, [], []) } }
    assert_raises(ArgumentError) { @machine.read(reader, +"", -1) }
    assert_raises(ArgumentError) { @machine.recv(reader, +"", -1, 0) }
    assert_raises(ArgumentError) { @machine.read(reader, +"", 1, 1) }
    assert_raises(ArgumentError) { @machine.write(writer, "x", 2) }
    assert_raises(ArgumentError) { @machine.splice(reader, writer, -1) }
    assert_raises(FrozenError) { @machine.read(reader, "frozen", 1) }
    assert_raises(TypeError) { @machine.write(writer, 1) }
    assert_raises(TypeError) { @machine.write("writer", "x") }
    [reader, writer].each { |fd| @machine.close(fd) }
  end

  # Which order is the right one is known when they have gone to sleep together.
  def test_sleepers_wake_in_order
    undisturbed do
      order, began = [], []
      times = [0.03, 0.01, 0.02]
      sleepers = times.map do |time|
        @machine.spin do
          began << Process.clock_gettime(Process::CLOCK_MONOTONIC)
          seconds { @machine.sleep(time) && order << time }
        end
      end
      all = seconds { @machine.join(sleepers).zip(times) { |took, time| assert_operator took, :>=, time } }
      next if began.max - began.min >= 0.01
      assert_equal times.sort, order
      all < 0.05 # one after the other it would be 0.06
    end
  end

  # The main thread, alone in a process: there Ruby would start a second thread for each wait that
  # signals cannot end themselves.
  def test_signals_end_a_wait_of_the_main_thread_without_another_thread
    script = <<~'RUBY'
      machine = UM.new
      threads = -> { Dir.children("/proc/self/task").size }
      puts threads.call
      machine.sleep(0.001)
      puts threads.call
      trapped = nil
      trap(:USR1) { trapped = true }
      signal = ->(name) { spawn("sleep 0.05; kill -#{name} #{Process.pid}") }
      child = signal.call(:USR1)
      machine.sleep(0.02) until trapped
      puts "trapped"
      begin
        other = signal.call(:TERM) # which may come before a slow spawn returns
        machine.sleep(30)
      rescue SignalException
        puts "interrupted"
      end
      [child, *other].each { |pid| Process.wait(pid) }
    RUBY
    out, status = Open3.capture2e(RbConfig.ruby, *$LOAD_PATH.flat_map { |path| ["-I", path] }, "-rum/tls", "-e", script)
    assert_predicate status, :success?, "#{status}: #{out}"
    before, after, *said = out.lines(chomp: true)
    assert_equal %w[trapped interrupted], said
    assert_equal before, after
  end

  def test_read_and_write
    reader, writer = UM.pipe
    fiber = @machine.spin do
      buffer = +"old"
      [@machine.read(reader, buffer, 100), buffer]
    end
    assert_equal 5, @machine.write(writer, "hello")
    assert_equal [5, "hello"], @machine.join(fiber)
    buffer = IO::Buffer.new(16)
    @machine.write(writer, IO::Buffer.for("12345678"), 4)
    assert_equal 4, @machine.read(reader, buffer, 8, 2)
    assert_equal "\0\0001234\0", buffer.get_string(0, 7)
    assert_equal 6, @machine.writev(writer, "abc", "def")
    string = +"123"
    assert_equal 6, @machine.read(reader, string, 10, -1)
    assert_equal "123abcdef", string
    @machine.close(writer)
    assert_equal 0, @machine.read(reader, string, 10)
    @machine.close(reader)
    assert_raises(Errno::EBADF) { @machine.read(reader, string, 10) }
  end

  def test_files
    path = File.join(Dir.tmpdir, "um-#{$$}-#{rand(1 << 32)}")
    fd = @machine.open(path, File::CREAT | File::RDWR)
    assert_equal 11, @machine.write(fd, "hello world", nil, 0)
    buffer = +""
    assert_equal 5, @machine.read(fd, buffer, 5, 0, 6)
    assert_equal "world", buffer
    @machine.close(fd)
    assert_raises(Errno::ENOENT) { @machine.open("/nonexistent/path", File::RDONLY) }
  ensure
    File.unlink(path) if File.exist?(path)
  end

  def test_sockets
    server = @machine.socket(Socket::AF_INET, Socket::SOCK_STREAM)
    @machine.setsockopt(server, Socket::SOL_SOCKET, Socket::SO_REUSEADDR, true)
    @machine.bind(server, "127.0.0.1", 0)
    @machine.listen(server, 10)
    port = Socket.for_fd(server).tap { |s| s.autoclose = false }.local_address.ip_port
    connections = UM::Queue.new
    acceptor = @machine.spin { @machine.accept_into_queue(server, connections) }
    client = @machine.socket(Socket::AF_INET, Socket::SOCK_STREAM)
    @machine.connect(client, "localhost", port)
    connection = @machine.shift(connections)
    assert_equal 9, @machine.sendv(client, "abc", "def", "ghi")
    buffer = +""
    assert_equal 9, @machine.recv(connection, buffer, 100, 0)
    assert_equal "abcdefghi", buffer
    assert_equal [[connection], [], []].size, @machine.select([connection], [client], []).size
    assert_equal [[], [client], []], @machine.select([connection], [client], [])
    assert_nil @machine.select([connection], [], [], 0.01)
    @machine.shutdown(client, Socket::SHUT_WR)
    assert_equal 0, @machine.recv(connection, buffer, 100, 0)
    @machine.terminate(acceptor)
    @machine.await(acceptor)
    [client, connection, server].each { |fd| @machine.close(fd) }
  end

  def test_timeout_takes_back_the_operation
    reader, writer = UM.pipe
    buffer = +""
    assert_raises(UM::TimeoutError) do
      @machine.timeout(0.02, UM::TimeoutError) { @machine.read(reader, buffer, 10) }
    end
    @machine.write(writer, "later")
    assert_equal 5, @machine.read(reader, buffer, 10)
    outer = assert_raises(RuntimeError) do
      @machine.timeout(0.01, RuntimeError.new("outer")) do
        @machine.timeout(5, RuntimeError.new("inner")) { @machine.sleep(5) }
      end
    end
    assert_equal "outer", outer.message
    [reader, writer].each { |fd| @machine.close(fd) }
  end

  def test_exceptions_into_parked_fibers
    reader, writer = UM.pipe
    fiber = @machine.spin do
      @machine.read(reader, +"", 10)
    rescue ArgumentError => e
      buffer = +""
      @machine.read(reader, buffer, 10)
      [e.message, buffer]
    end
    @machine.snooze
    fiber.raise(ArgumentError, "raised")
    @machine.snooze
    @machine.write(writer, "bytes")
    assert_equal %w[raised bytes], @machine.join(fiber)
    sleeper = @machine.spin { @machine.sleep(10) }
    @machine.snooze
    @machine.terminate(sleeper)
    assert_nil @machine.join(sleeper)
    [reader, writer].each { |fd| @machine.close(fd) }
  end

  def test_thread_raise_reaches_the_main_fiber
    other = @machine.spin { @machine.sleep(0.05) and :undisturbed }
    main = Thread.current
    Thread.new { sleep(0.01) and main.raise(IndexError, "hey") }
    assert_raises(IndexError) { @machine.sleep(5) }
    assert_equal :undisturbed, @machine.join(other)
  end

  def test_schedule_and_yield
    fiber = @machine.spin { [@machine.yield, @machine.yield] }
    @machine.snooze
    @machine.schedule(fiber, 1)
    @machine.snooze
    @machine.schedule(fiber, 2)
    assert_equal [1, 2], @machine.join(fiber)
  end

  def test_queues
    queue = UM::Queue.new(2)
    order = []
    producer = @machine.spin { 5.times { |i| @machine.push(queue, i) and order << i } }
    @machine.snooze
    assert_equal [0, 1], order
    assert_equal [0, 1, 2, 3, 4], Array.new(5) { @machine.shift(queue) }
    @machine.join(producer)
    queue.push(1).push(2)
    assert_equal 2, @machine.pop(queue)
    queue.unshift(0)
    assert_equal 0, queue.shift
  end

  def test_queue_between_threads
    there, back = UM::Queue.new(4), UM::Queue.new
    threads = Array.new(3) { Thread.new { while (item = there.shift) do back.push(item * 2) end } }
    feeder = @machine.spin { 300.times { |i| @machine.push(there, i) } }
    got = @machine.join(@machine.spin { Array.new(300) { @machine.shift(back) } })
    @machine.join(feeder)
    3.times { there.push(nil) }
    threads.each(&:join)
    assert_equal (0...300).map { |i| i * 2 }, got.sort
  end

  def test_mutex
    mutex = UM::Mutex.new
    inside = 0
    workers = Array.new(5) do
      @machine.spin do
        @machine.synchronize(mutex) do
          inside += 1
          @machine.sleep(0.001)
          raise "two inside" if inside != 1
          inside -= 1
        end
      end
    end
    assert_equal [nil], @machine.join(workers).map { |x| x.is_a?(Exception) ? x : nil }.uniq
    refute mutex.locked?
  end

  def test_inner_fibers_may_wait
    list = Enumerator.new { |y| 3.times { |i| @machine.sleep(0.001) and y << i } }
    assert_equal [0, 1, 2], @machine.join(@machine.spin { Array.new(3) { list.next } })
    list.rewind
    assert_equal [0, 1, 2], Array.new(3) { list.next }
  end

  def test_waitid_and_blocking
    pid = fork { exit!(3) }
    assert_equal [pid, 3, 1], @machine.waitid(1, pid, 4)
    assert_equal 5, @machine.blocking { sleep(0.01) && 5 }
    assert_raises(ArgumentError) { @machine.blocking { raise ArgumentError } }
    assert_equal ["127.0.0.1"], @machine.resolve("127.0.0.1")
  end

  def test_the_child_of_a_fork_is_refused_and_may_begin_anew
    @machine.sleep(0.001)
    status = @machine.join(@machine.spin do
      pid = fork do
        refused = begin
          @machine.sleep(1)
        rescue UM::Error
          :refused
        end
        machine = UM.new
        exit!(refused == :refused && machine.join(machine.spin { machine.sleep(0.001) and 1 }) == 1 ? 0 : 1)
      end
      Process.wait2(pid)[1]
    end)
    assert_equal 0, status.exitstatus
  end

  def test_another_thread_is_refused
    @machine.snooze
    error = Thread.new { @machine.sleep(1) rescue $! }.value
    assert_kind_of UM::Error, error
  end

  def test_many_fibers_and_the_garbage_collector
    reader, writer = UM.pipe
    fibers = Array.new(200) do |i|
      @machine.spin do
        buffer = +""
        @machine.read(reader, buffer, 1)
        buffer.ord + i - i
      end
    end
    @machine.snooze
    fibers.map!(&:object_id).clear if fibers.empty?
    GC.start
    GC.compact if GC.respond_to?(:compact)
    200.times { |i| @machine.write(writer, "x") }
    assert_equal ["x".ord] * 200, @machine.join(fibers)
    [reader, writer].each { |fd| @machine.close(fd) }
  end

  def test_metrics_and_options
    header = File.read(File.expand_path("../../../include/bio_uring/reactor.h", __dir__))
    names = header[/struct um_metrics \{.*?\}/m].scan(/uint64_t (\w+);/).flatten.map(&:to_sym)
    assert_equal names, @machine.metrics.keys
    assert_operator @machine.metrics[:ticks], :>=, 0
    assert_raises(UM::Error) { UM.new(size: 3) }
    UM.new(size: 64, sqpoll: true).tap { |machine| assert_equal 0.001, machine.sleep(0.001) }.shut_down
  end

  # Ruby uses native threads again: what a thread left behind must not be found by the next.
  def test_a_machine_may_be_left_behind_by_its_thread
    5.times do
      Thread.new do
        machine = UM.new
        machine.spin { machine.sleep(100) }
        machine.snooze
      end.join
      GC.start
      near, far = tcp_pair
      assert_equal 0.001, Thread.new { UM.new.sleep(0.001) }.value
      [near, far].each(&:close)
    end
  end

  def descriptors = Dir.children("/proc/self/fd").size

  # A machine that is made frees those of threads that have ended.
  def test_threads_that_end_leave_no_ring
    parked = -> { UM.new.tap { |machine| machine.spin { machine.sleep(100) } }.snooze }
    scheduled = lambda do
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule { sleep(0.0001) }
    end
    killed = -> { scheduled.call && Thread.exit }
    uses = [-> { UM.new.sleep(0.0001) }, -> { UM.current.snooze }, parked, scheduled, killed]
    UM.new.shut_down
    before = descriptors
    200.times { |i| Thread.new(&uses[i % uses.size]).join }
    20.times { Thread.new { sleep(0.01) } }
    UM.new.shut_down
    after = descriptors
    assert_operator after, :<, before + 40 # two each; those whose native thread waits for more work
    begun = Thread::Queue.new # as many rings that are in use are seen
    threads = Array.new(20) { Thread.new { begun.push(UM.new.snooze) && Thread.stop } }
    20.times { begun.pop }
    assert_operator descriptors, :>=, after + 20
  ensure
    threads&.each(&:kill)&.each(&:join)
  end

  # What its fibers waited for, or had, is others' again.
  def test_others_go_on_when_a_thread_leaves_fibers_behind
    near, far = tcp_pair
    client = UM::TLS.wrap(near, client_context, hostname: "localhost")
    server = UM::TLS.wrap(far, server_context)
    [-> { client.connect }, -> { server.accept }].map { |block| Thread.new(&block) }.each(&:join)
    queue = UM::Queue.new
    Thread.new do
      machine = UM.new
      [-> { client.gets }, -> { client.gets }, -> { client.write("x" * (32 << 20)) }, -> { client.write("y") },
       -> { queue.shift }].each { |wait| machine.spin(&wait) }
      machine.sleep(0.05)
    end.join
    Thread.new { UM.new.snooze }.join
    GC.start
    queue.push(1)
    assert_equal 1, queue.shift
    server.write("for the next\n")
    assert_equal "for the next\n", Timeout.timeout(10) { client.gets }
    reader = Thread.new { server.readpartial(100_000) until server.eof? }
    Timeout.timeout(10) { client.write("z") }
    client.close
    client.to_io.close
    reader.join
    server.to_io.close
  end

  # A kill strikes whichever fiber runs; it ends the thread, whose machine works until then.
  def test_killed_threads
    reader, writer = UM.pipe
    hits = {
      "waiting" => ->(machine) { machine.sleep(20) },
      "joining" => ->(machine) { machine.join(machine.spin { machine.sleep(20) }) },
      "while a fiber computes" => ->(machine) { machine.spin { loop { 1 + 1 } } && machine.sleep(20) },
      "computing" => ->(_) { loop { 1 + 1 } },
      "reading" => ->(machine) { machine.read(reader, +"", 10) }
    }
    begun = Thread::Queue.new
    hits.each do |name, wait|
      ensured = after = false
      thread = Thread.new do
        machine = UM.new
        begin
          machine.sleep(0.001)
          begun.push(true)
          wait.call(machine)
          after = true
        ensure
          ensured = machine.join(machine.spin { machine.sleep(0.001) && :ensured })
        end
      end
      begun.pop
      sleep 0.02
      thread.kill
      assert thread.join(10), name
      assert_equal [:ensured, false], [ensured, after], name
    end
    [reader, writer].each { |fd| @machine.close(fd) }
  end

  def test_exit_of_a_thread_in_a_fiber
    after = false
    thread = Thread.new do
      machine = UM.new
      machine.spin { Thread.exit }
      machine.sleep(20)
      after = true
    end
    assert thread.join(10)
    refute after
    assert_equal 0.001, Thread.new { UM.new.sleep(0.001) }.value
  end

  def test_a_timeout_in_an_enumerator_that_is_dropped
    machine = @machine
    10.times do
      list = Enumerator.new { |all| machine.timeout(100, RuntimeError) { all << 1 } }
      assert_equal 1, list.next
    end
    GC.start
    assert_equal 0.001, machine.sleep(0.001)
    assert_raises(UM::TimeoutError) { machine.timeout(0.001, UM::TimeoutError) { machine.sleep(10) } }
  end

  def test_exit_in_a_fiber_ends_the_program
    load_path = $LOAD_PATH.flat_map { |folder| ["-I", folder.to_s] }
    system(RbConfig.ruby, *load_path, "-rum/tls", "-e", <<~RUBY)
      m = UM.new
      r, w = UM.pipe
      m.spin { m.read(r, +"", 10) }
      m.spin { m.sleep(0.01); exit(9) }
      m.sleep(10)
    RUBY
    assert_equal 9, $?.exitstatus
  end

  def test_unfinished_fibers_keep_it_open
    fiber = @machine.spin { @machine.sleep(10) }
    @machine.snooze
    assert_raises(UM::Error) { @machine.shut_down }
    @machine.terminate(fiber)
    @machine.await(fiber)
  end
end

# Our sockets in fibers of a machine.
class TestOnMachine < TLSTest
  include SocketTests

  def setup = @machine = UM.new

  def teardown = @machine.shut_down

  # In an array, because a fiber's result is also the exception that ended it.
  def around
    result = @machine.join(@machine.spin { [yield] })
    result.is_a?(Exception) ? raise(result) : result[0]
  end

  def concurrently(*blocks)
    results = @machine.join(blocks.map { |block| -> { [block.call] } })
    results.map { |result| result.is_a?(Exception) ? raise(result) : result[0] }
  end

  def kinds = %i[ours]
end
