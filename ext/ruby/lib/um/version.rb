# frozen_string_literal: true

class UM
  # Of the gem.
  VERSION = "0.1.0"
end
