# frozen_string_literal: true

require_relative "lib/um/version"

Gem::Specification.new do |spec|
  spec.name = "um-tls"
  spec.version = UM::VERSION
  spec.summary = "OpenSSL::SSL::SSLSocket, a fiber scheduler and fibers on io_uring"
  spec.description = "Makes TLS sockets wait in io_uring (or wherever their surroundings wait) " \
                     "without changing the programs that use them, on libbio_uring."
  spec.authors = ["The libbio_uring project"]
  spec.license = "MIT"
  spec.required_ruby_version = ">= 3.1"
  spec.platform = Gem::Platform::RUBY
  spec.files = Dir.chdir(__dir__) do
    Dir["lib/**/*.rb", "ext/um_tls/*.{c,h,rb}", "sig/**/*.rbs", "README.md", "CHANGELOG.md", "LICENSE"]
  end
  spec.extensions = ["ext/um_tls/extconf.rb"]
  spec.require_paths = ["lib"]
  spec.extra_rdoc_files = ["README.md", "CHANGELOG.md"]
  spec.rdoc_options = ["--main", "README.md"]
  spec.metadata = { "rubygems_mfa_required" => "true" }
  # What it has of SSLSocket's inside may be another one in the next major version.
  spec.add_dependency "openssl", ">= 3.0", "< 5"
end
