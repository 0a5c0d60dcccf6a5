# frozen_string_literal: true

require "fileutils"
require "socket"
require "tmpdir"

# Real servers from the distribution, each a private one on loopback, with its files in a folder
# of its own. What is not installed raises Missing, which tests turn into a skip.
class RealServer
  Missing = Class.new(StandardError)
  PATIENCE = 20

  attr_reader :port, :folder

  # The path of a program, also of those that are in an administrator's path only.
  def self.program(name, package)
    path = (ENV["PATH"].split(":") + %w[/usr/sbin /sbin]).map { |folder| File.join(folder, name) }
    path.find { |file| File.executable?(file) } or raise Missing, "no #{name}: install #{package}"
  end

  def initialize
    @folder = Dir.mktmpdir("um-tls")
    3.times do |attempt| # another process may be faster to take the port
      @port = free_port
      log = File.join(@folder, "log")
      @pid = Process.spawn(*command, in: IO::NULL, out: log, err: log)
      return if listening?
      stop_process
      raise "#{self.class} did not start: #{File.read(log)}" if attempt == 2
    end
  rescue Exception
    FileUtils.rm_rf(@folder)
    raise
  end

  def close
    stop_process
    FileUtils.rm_rf(@folder)
  end

  private

  def certificate = Certificates.path("server.pem")

  def key = Certificates.path("server.key")

  # Not one of those that the kernel gives to clients: these come and go all the time.
  def free_port
    port = rand(20_000...30_000)
    TCPServer.open("127.0.0.1", port, &:close)
    port
  rescue Errno::EADDRINUSE
    retry
  end

  def listening?
    (PATIENCE * 50).times do
      return false if Process.wait(@pid, Process::WNOHANG)
      return true if listens?
      sleep 0.02
    end
    false
  end

  # It, and nobody else.
  def listens?
    listeners = File.readlines("/proc/net/tcp").map(&:split).select { |line| line[3] == "0A" }
    mine = listeners.select { |line| line[1].end_with?(format(":%04X", @port)) }.map { |line| "socket:[#{line[9]}]" }
    Dir["/proc/#{@pid}/fd/*"].any? { |fd| mine.include?(File.readlink(fd)) }
  rescue SystemCallError
    false
  end

  def stop_process
    Process.kill(:TERM, @pid)
    Process.wait(@pid)
  rescue Errno::ESRCH, Errno::ECHILD
    nil
  end
end

# Answers GET with the files in #folder.
class Nginx < RealServer
  private

  def command
    File.write(File.join(folder, "nginx.conf"), <<~CONF)
      daemon off;
      #{"user root;" if Process.uid.zero?}
      pid #{folder}/pid;
      error_log stderr;
      events {}
      http {
        access_log off;
        client_body_temp_path #{folder}/body;
        proxy_temp_path #{folder}/proxy;
        fastcgi_temp_path #{folder}/fastcgi;
        uwsgi_temp_path #{folder}/uwsgi;
        scgi_temp_path #{folder}/scgi;
        server {
          listen 127.0.0.1:#{port} ssl;
          ssl_certificate #{certificate};
          ssl_certificate_key #{key};
          root #{folder}/files;
        }
      }
    CONF
    FileUtils.mkdir_p(File.join(folder, "files"))
    [RealServer.program("nginx", "nginx"), "-p", folder, "-e", "stderr", "-c", File.join(folder, "nginx.conf")]
  end
end

class RedisServer < RealServer
  private

  def command
    [RealServer.program("redis-server", "redis-server"), "--bind", "127.0.0.1", "--port", "0", "--tls-port", port.to_s,
     "--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", Certificates.path("ca.pem"),
     "--tls-auth-clients", "no", "--save", "", "--dir", folder]
  end
end

# Insists on STARTTLS, and puts what comes into a Maildir.
class SMTPServer < RealServer
  # Each mail as it was sent; without what the server put in about whom it came from.
  def mails
    Dir[File.join(folder, "mail", "new", "*")].map do |file|
      File.binread(file).sub(/^X-Peer: .*\n/, "")
    end
  end

  private

  def command
    # The distribution's own Python: another one first in the path has not its packages.
    python = %w[/usr/bin/python3 python3].find do |name|
      system(name, "-c", "import aiosmtpd", %i[out err] => IO::NULL)
    end
    raise Missing, "no SMTP server: install python3-aiosmtpd" unless python
    [python, "-m", "aiosmtpd", "-n", "-l", "127.0.0.1:#{port}", "--tlscert", certificate, "--tlskey", key,
     "-c", "aiosmtpd.handlers.Mailbox", File.join(folder, "mail")]
  end
end
