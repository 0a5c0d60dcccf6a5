# frozen_string_literal: true

require_relative "helper"
Dir[File.join(__dir__, "test_*.rb")].sort.each { |file| require file }
