# frozen_string_literal: true

# For Ruby's own test/fiber: its Scheduler classes, in terms of UM::FiberScheduler. Loaded first
# (ruby -r), in place of test/fiber/scheduler.rb, whose folder UM_FIBER_TESTS names.
require "um/tls"

$LOADED_FEATURES << File.realpath("scheduler.rb", ENV.fetch("UM_FIBER_TESTS"))

class Scheduler < UM::FiberScheduler
  $um_schedulers = 0

  def initialize
    super
    $um_schedulers += 1
  end

  def self.report = File.write(ENV["UM_COUNTS"], "#{$um_schedulers}\n", mode: "a")
end

pid = $$
at_exit { Scheduler.report if $$ == pid && ENV["UM_COUNTS"] }

# Ours has these hooks already.
class IOBufferScheduler < Scheduler
end

class BrokenUnblockScheduler < Scheduler
  def unblock(blocker, fiber)
    super
    raise "Broken unblock!"
  end
end

class SleepingUnblockScheduler < Scheduler
  def unblock(blocker, fiber)
    super
    sleep(0.1)
  end
end

class SleepingBlockingScheduler < Scheduler
  def kernel_sleep(duration = nil)
    Fiber.new(blocking: true) { sleep 0.0001 }.resume
    block(:sleep, duration)
    true
  end
end
