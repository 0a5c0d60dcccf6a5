# frozen_string_literal: true

class UM
  VERSION = "0.1.0"
end
