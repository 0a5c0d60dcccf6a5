# frozen_string_literal: true

require "tempfile"
begin
  require "fiddle"
rescue LoadError # a gem that need not be installed, from Ruby 3.5 on
end

# What glibc's malloc has handed out, for tests of leaks: the size of the process says less.
module Allocator
  class << self
    def known? = !function("malloc_info", 2).nil?

    # Gives free pages back, so that the size of the process means something.
    def trim
      function("malloc_trim", 1)&.call(0)
    end

    # KiB; 0 where it is not known.
    def in_use
      return 0 unless known?
      totals = report.rpartition("</heap>").last # of all arenas
      free = totals.scan(/<total type="(?:fast|rest)" count="\d+" size="(\d+)"/).sum { |size,| size.to_i }
      mapped = totals[/<total type="mmap" count="\d+" size="(\d+)"/, 1].to_i
      (totals[/<system type="current" size="(\d+)"/, 1].to_i - free + mapped) / 1024
    end

    private

    def function(name, arguments)
      return unless defined?(Fiddle)
      Fiddle::Function.new(Fiddle.dlopen(nil)[name], [Fiddle::TYPE_VOIDP] * arguments, Fiddle::TYPE_VOIDP)
    rescue Fiddle::DLError
      nil
    end

    def report
      Tempfile.create("malloc_info") do |file|
        stream = function("fopen", 2).call(file.path, "w")
        function("malloc_info", 2).call(0, stream)
        function("fclose", 1).call(stream)
        File.read(file.path)
      end
    end
  end
end
