# frozen_string_literal: true

# Measures the Ruby gem's sockets beside stock ones; `./run bench ruby --help` says how.
require "etc"
require "fileutils"
require "json"
require "openssl"
require "optparse"
require "time"
require "tmpdir"

module RubyBench
  # A server that cannot be measured; the rest of the run goes on.
  class Failed < StandardError
  end

  Workload = Struct.new(:name, :what, :mode, :load)

  def self.echo(size, connections)
    label = size >= 1024 ? "#{size / 1024}K" : "#{size}B"
    Workload.new("echo-#{label}-#{connections}c", "readpartial and write: #{size} bytes sent back, #{connections} connection#{"s" if connections > 1}",
                 "echo", ["--size", size.to_s, "--connections", connections.to_s])
  end

  def self.http(name, what, size, connections)
    Workload.new(name, what, "http:#{size}", ["--http", "--size", size.to_s, "--connections", connections.to_s])
  end

  WORKLOADS = [
    Workload.new("hs-full-tls13", "connect, full TLS 1.3 handshake, one echo, close; 16 at a time",
                 "echo", ["--handshakes", "--connections", "16"]),
    echo(64, 1), echo(64, 64), echo(64, 512),
    echo(1024, 1), echo(1024, 64), echo(1024, 512),
    echo(16_384, 48),
    echo(65_536, 16),
    http("gets-64c", "three lines read with gets, 64 bytes written, 64 connections", 64, 64),
    http("bulk-send-1M-16c", "write of 1 MiB for each request, 16 connections", 1 << 20, 16),
    http("write-4M-1c", "write of 4 MiB for each request, 1 connection", 4 << 20, 1),
  ].freeze

  CONTENDERS = {
    "um-machine" => "our sockets in fibers of a UM machine",
    "um-scheduler" => "our sockets in Fiber.schedule'd fibers under UM::FiberScheduler",
    "stock-threads" => "stock SSLSocket, a thread for each connection",
    "stock-async" => "stock SSLSocket under the async gem",
    "um-threads" => "our sockets, a thread for each connection (not by default)",
  }.freeze
  DEFAULT = (CONTENDERS.keys - ["um-threads"]).freeze

  NOT_MEASURED = [
    "other fiber schedulers than async's, and other Rubies than the one that runs this",
    "receiving in bulk alone (the echoes of 16 and 64 KiB receive as much as they send)",
    "clients in Ruby: the load is the C program bench-load, so figures are the server's",
    "TLS 1.2, RSA keys, resumed handshakes, memory, system calls per operation",
    "real networks: everything goes over loopback",
  ].freeze

  FIGURES = %w[cpu_us rate p50_us p99_us load_cpu_us].freeze

  # A server process, pinned to its CPU.
  class Server
    PATIENCE = 20

    attr_reader :pid, :address

    def initialize(bench, contender, workload)
      @log = File.join(bench.folder, "#{contender}.log")
      @out, child_out = IO.pipe
      @pid = Process.spawn(bench.environment, *bench.pinned(bench.server_cpu), bench.ruby, "-I", bench.extension,
                           "-I", bench.library, File.join(__dir__, "server.rb"), contender, workload.mode,
                           bench.certificate, bench.key, in: IO::NULL, out: child_out, err: @log)
      child_out.close
      line = @out.wait_readable(PATIENCE) && @out.gets
      @address = line.to_s[/\Alistening on (\S+)/, 1]
      return if @address
      stop
      raise Failed, "the server did not start#{last_words}"
    end

    # Of all its threads, so far.
    def cpu_seconds
      fields = File.read("/proc/#{@pid}/stat").split(") ").last.split
      (fields[11].to_f + fields[12].to_f) / Etc.sysconf(Etc::SC_CLK_TCK)
    end

    # What it said on standard error, if anything.
    def last_words
      line = File.readlines(@log).last if File.exist?(@log)
      line ? ": #{line.chomp}" : ""
    end

    def stop
      Process.kill(:TERM, @pid)
      Process.wait(@pid)
    rescue Errno::ESRCH, Errno::ECHILD
      nil
    ensure
      @out.close
    end
  end

  # A run: what it measures with, and what it found.
  class Run
    attr_reader :folder, :ruby, :environment, :extension, :library, :certificate, :key, :server_cpu, :load_cpu

    def initialize(options, folder)
      @options = options
      @folder = folder
      @ruby = ENV.fetch("RUBY", "ruby")
      # Whatever the caller has set for his own Ruby or allocator would be measured with it.
      @environment = ENV.keys.grep(/\A(MALLOC_|GLIBC_TUNABLES|LD_PRELOAD|RUBYOPT|RUBYLIB|RUBY_)/).to_h { |name| [name, nil] }
      @root = File.expand_path("../..", __dir__)
      @extension = File.join(options[:build], "ext", "ruby")
      @library = File.join(@root, "ext", "ruby", "lib")
      @load = File.join(options[:build], "bench", "bench-load")
      @notes = []
      @left_out = []
      @load_average = File.read("/proc/loadavg").to_f
      @started = Time.now.utc.iso8601
      check
      choose_cpus
      make_certificate
      @contenders = options[:contenders].select { |name| available?(name) }
      abort "bench ruby: no contender to measure" if @contenders.empty?
    end

    def pinned(cpu) = @taskset ? ["taskset", "-c", cpu.to_s] : []

    def measure(workload)
      say "#{workload.name}: #{workload.what}"
      rounds = @contenders.to_h { |name| [name, []] }
      servers = {}
      busy, own, started = busy_seconds, 0.0, monotonic
      @options[:rounds].times do |number|
        rounds.keys.each { |name| measure_round(workload, name, rounds, servers) }
        figures = rounds.map { |name, values| "#{name} #{format("%.2f", values.last["cpu_us"])}" }
        say "  round #{number + 1}/#{@options[:rounds]}:  #{figures.join("   ")}"
      end
      servers.each_value { |server| own += server.cpu_seconds }
      own += rounds.values.flatten.sum { |value| value["load_cpu_us"] * value["operations"] / 1e6 }
      others = (busy_seconds - busy - own) / (monotonic - started) / [@server_cpu, @load_cpu].uniq.size
      summarise(workload, rounds).merge("others_cpu" => [others, 0.0].max.round(3))
    ensure
      servers&.each_value(&:stop)
    end

    def leave_out(what)
      say "left out: #{what}"
      @left_out << what
    end

    # 0, or 1 when something was left out.
    def report(results)
      machine = describe_machine
      puts "", machine_line(machine), ""
      results.each { |result| puts table(result), "" }
      @notes.each { |note| puts "note: #{note}" }
      @left_out.each { |what| puts "left out: #{what}" }
      puts "not measured: #{NOT_MEASURED.join("; ")}"
      write_json(machine, results) if @options[:json]
      @left_out.empty? ? 0 : 1
    end

    private

    def say(*words) = warn(*words)

    def note(what)
      return if @notes.include?(what)
      say "note: #{what}"
      @notes << what
    end

    def check
      abort "bench ruby: #{@load} is not built: './run build' first" unless File.executable?(@load)
    end

    # ---- the machine ----

    def choose_cpus
      cpus = File.read("/proc/self/status")[/^Cpus_allowed_list:\s*(.*)/, 1].split(",").flat_map do |part|
        first, last = part.split("-").map(&:to_i)
        (first..(last || first)).to_a
      end
      @load_cpu, @server_cpu = cpus.size > 1 ? cpus.first(2) : [cpus[0], cpus[0]]
      note "one CPU only: server and load share it, figures are not comparable with others" if cpus.size == 1
      @taskset = system("taskset", "-c", cpus[0].to_s, "true", %i[out err] => IO::NULL)
      note "no taskset (util-linux): nothing is pinned to a CPU" unless @taskset
    end

    # ECDSA P-256, as most servers have.
    def make_certificate
      key = OpenSSL::PKey::EC.generate("prime256v1")
      cert = OpenSSL::X509::Certificate.new
      cert.version = 2
      cert.serial = 1
      cert.subject = cert.issuer = OpenSSL::X509::Name.parse("/CN=localhost")
      cert.public_key = key
      cert.not_before = Time.now - 3600
      cert.not_after = Time.now + 30 * 86_400
      cert.sign(key, "SHA256")
      @certificate = write("cert.pem", cert.to_pem)
      @key = write("key.pem", key.to_pem)
    end

    def write(name, content) = File.join(@folder, name).tap { |path| File.write(path, content) }

    def available?(name)
      unless CONTENDERS.key?(name)
        leave_out "contender '#{name}': unknown; there are #{CONTENDERS.keys.join(", ")}"
        return false
      end
      library, missing = { "stock-async" => ["async", "no async gem: install ruby-async"] }[name] ||
                         (["um/tls", "the extension is not built: './run build' says why"] if name.start_with?("um-"))
      return true unless library
      found = system(@environment, @ruby, "-I", @extension, "-I", @library, "-r", library, "-e", "",
                     %i[out err] => IO::NULL)
      leave_out "contender '#{name}': #{missing}" unless found
      found
    end

    def monotonic = Process.clock_gettime(Process::CLOCK_MONOTONIC)

    # Time our two CPUs did anything at all.
    def busy_seconds
      File.readlines("/proc/stat").sum do |line|
        name, user, nice, system, _, _, irq, softirq, steal = line.split
        next 0 unless ["cpu#{@server_cpu}", "cpu#{@load_cpu}"].include?(name)
        [user, nice, system, irq, softirq, steal].sum(&:to_f) / Etc.sysconf(Etc::SC_CLK_TCK)
      end
    end

    # ---- measuring ----

    def measure_round(workload, name, rounds, servers)
      servers[name] ||= Server.new(self, name, workload)
      rounds[name] << run_load(servers[name], workload)
    rescue Failed => e
      leave_out "#{workload.name}, #{name}: #{e.message}#{servers[name]&.last_words}"
      rounds.delete(name)
    end

    def run_load(server, workload)
      errors = File.join(@folder, "load.log")
      out = IO.popen([*pinned(@load_cpu), @load, "--connect", server.address, "--cubic", "--server-pid", server.pid.to_s,
                      "--seconds", @options[:seconds].to_s, *workload.load, err: errors], &:read)
      raise Failed, File.readlines(errors).last.to_s.chomp unless $?.success?
      out.split.to_h { |pair| pair.split("=") }.transform_values(&:to_f)
    end

    # ---- what it comes to ----

    def median(values)
      sorted = values.sort
      (sorted[(sorted.size - 1) / 2] + sorted[sorted.size / 2]) / 2.0
    end

    def summarise(workload, rounds)
      contenders = rounds.reject { |_, values| values.empty? }.to_h do |name, values|
        [name, FIGURES.to_h { |figure| [figure, median(values.map { |value| value[figure] }).round(3)] }
                      .merge("rounds" => values.map { |value| value["cpu_us"] })]
      end
      comparisons = compare(contenders)
      first = comparisons.keys.first
      { "name" => workload.name, "what" => workload.what, "figure" => "cpu_us", "contenders" => contenders,
        "subject" => first, "ratio" => part(comparisons[first], "ratio"), "spread" => part(comparisons[first], "spread"),
        "range" => part(comparisons[first], "range"), "unclear" => (comparisons[first] || {}).select { |_, c| c["unclear"] }.keys,
        "comparisons" => comparisons, "floor_us" => nil }
    end

    def part(comparison, key) = (comparison || {}).transform_values { |values| values[key] }

    # Ours, each, to every stock contender.
    def compare(contenders)
      ours, stock = contenders.keys.partition { |name| name.start_with?("um-") }
      ours.to_h do |subject|
        [subject, stock.to_h { |other| [other, ratio(contenders[subject]["rounds"], contenders[other]["rounds"])] }]
      end
    end

    # Within each round, so that what slows the machine for a while slows both.
    def ratio(ours, theirs)
      ratios = ours.zip(theirs).filter_map { |a, b| a / b if b }
      middle = median(ratios)
      spread = ratios.max - ratios.min
      { "ratio" => middle.round(3), "spread" => spread.round(3), "range" => ratios.minmax.map { |r| r.round(3) },
        "unclear" => ratios.size < 3 || spread > (1 - middle).abs }
    end

    def table(result)
      lines = ["#{result["name"]}: #{result["what"]}",
               format("  %-16s%11s%10s%10s%10s%10s", "", "CPU us/op", "op/s", "p50 us", "p99 us", "CPU used")]
      result["contenders"].each do |name, c|
        lines << format("  %-16s%11.2f%10.0f%10.1f%10.1f%9.0f%%", name, c["cpu_us"], c["rate"], c["p50_us"], c["p99_us"],
                        c["cpu_us"] * c["rate"] / 1e4)
      end
      result["comparisons"].each do |subject, others|
        others.each { |other, c| lines << comparison_line(subject, other, c) }
      end
      # Starting servers and connecting count among the others, too.
      lines << format("  the machine was not quiet: others used %d%% of both CPUs", result["others_cpu"] * 100) if result["others_cpu"] > 0.15
      lines
    end

    def comparison_line(subject, other, comparison)
      low, high = comparison["range"]
      line = format("  %s / %s = %.3f  (rounds %.3f to %.3f)", subject, other, comparison["ratio"], low, high)
      return line unless comparison["unclear"]
      "#{line}  UNCLEAR: #{low < high && @options[:rounds] > 2 ? "the spread is larger than the difference" : "too few rounds to know the spread"}"
    end

    def describe_machine
      about = 'require "openssl"; puts RUBY_DESCRIPTION, OpenSSL::VERSION, OpenSSL::OPENSSL_LIBRARY_VERSION; ' \
              'begin; require "async"; puts Async::VERSION; rescue LoadError; puts "none"; end'
      ruby, gem, library, async = IO.popen(@environment, [@ruby, "-e", about], err: IO::NULL, &:readlines).map(&:chomp)
      { "cpu" => cpu_model, "cpus" => Etc.nprocessors, "server_cpu" => @server_cpu, "load_cpu" => @load_cpu,
        "pinned" => @taskset, "kernel" => Etc.uname[:release], "ruby" => ruby, "openssl_gem" => gem, "openssl" => library,
        "async" => async, "load_average_before" => @load_average.round(2) }
    end

    def cpu_model
      File.read("/proc/cpuinfo")[/^(?:model name|cpu model|Hardware)\s*:\s*(.*)/i, 1] || Etc.uname[:machine]
    end

    def machine_line(machine)
      "#{machine["cpu"]}, #{machine["cpus"]} CPUs, Linux #{machine["kernel"]}; #{machine["ruby"]}; " \
        "openssl gem #{machine["openssl_gem"]} on #{machine["openssl"]}, async #{machine["async"]}; " \
        "server on CPU #{@server_cpu}, load on CPU #{@load_cpu}; cubic congestion control; " \
        "#{@options[:rounds]} interleaved rounds of #{format("%g", @options[:seconds])} s; medians; " \
        "load average before: #{machine["load_average_before"]}"
    end

    def write_json(machine, results)
      document = {
        "started" => @started, "machine" => machine,
        "method" => {
          "rounds" => @options[:rounds], "seconds" => @options[:seconds], "quick" => @options[:quick], "interleaved" => true,
          "congestion_control" => "cubic on both ends", "cipher" => "TLS_AES_128_GCM_SHA256",
          "certificate" => "ECDSA P-256, self-signed",
          "cpu_time" => "process CPU clock (scheduler, nanoseconds), user and system, all threads",
          "ratio" => "median over rounds of ours / stock within the round: of the subject in ratio, of each of ours in comparisons",
          "spread" => "largest minus smallest of those"
        },
        "workloads" => results, "notes" => @notes, "left_out" => @left_out, "not_measured" => NOT_MEASURED
      }
      @options[:json].puts(JSON.pretty_generate(document))
      @options[:json].close
    end
  end

  def self.list(pairs) = pairs.map { |name, what| format("  %-24s%s", name, what) }.join("\n")

  def self.parse(arguments)
    options = { contenders: DEFAULT, quick: false }
    parser = OptionParser.new do |o|
      o.banner = <<~TEXT
        usage: run bench ruby [WORKLOAD...] [options]

        Measures a TLS server in Ruby: our sockets beside stock ones, in turns, on this machine.
        The server, a process of its own for each contender, is pinned to one CPU, and the load, a C
        program, to another. All get the same methods, certificate, cipher and congestion control.
        Rounds are interleaved (A B C A B C ...), and a ratio is taken within each round. The figure
        is the server's CPU time for each operation, user and system, all threads.

      TEXT
      o.on("--quick", "one short round of everything, in less than three minutes: no spread") { options[:quick] = true }
      o.on("--rounds N", Integer, "instead of 5") { |n| options[:rounds] = n }
      o.on("--seconds S", Float, "measured in each round, instead of 1.5") { |s| options[:seconds] = s }
      o.on("--json FILE", "write everything, rounds too, to FILE") { |file| options[:json] = File.open(file, "w") }
      o.on("--contenders A,B,...", Array, "which, and in which order") { |names| options[:contenders] = names }
      o.on("--build DIR", "build directory") { |dir| options[:build] = dir }
      o.separator("\nworkloads (default: all):\n#{list(WORKLOADS.map { |w| [w.name, w.what] })}")
      o.separator("\ncontenders:\n#{list(CONTENDERS)}")
    end
    names = parser.parse(arguments)
    options[:rounds] ||= options[:quick] ? 1 : 5
    options[:seconds] ||= options[:quick] ? 0.5 : 1.5
    raise OptionParser::InvalidArgument, "--rounds and --seconds must be positive" unless options[:rounds].positive? && options[:seconds].positive?
    raise OptionParser::MissingArgument, "--build" unless options[:build]
    [names, options]
  rescue OptionParser::ParseError, SystemCallError => e
    abort "bench ruby: #{e.message}; './run bench ruby --help' lists the options"
  end

  def self.main(arguments)
    names, options = parse(arguments)
    trap(:TERM) { exit 143 }
    Dir.mktmpdir("bio_uring-bench-") do |folder|
      run = Run.new(options, folder)
      known = WORKLOADS.to_h { |workload| [workload.name, workload] }
      results = (names.empty? ? known.keys : names).filter_map do |name|
        next run.measure(known[name]) if known.key?(name)
        run.leave_out("workload '#{name}': unknown; './run bench ruby --help' lists them")
        nil
      end
      run.report(results)
    end
  rescue Interrupt
    warn "bench ruby: interrupted"
    130
  end
end

exit RubyBench.main(ARGV)
