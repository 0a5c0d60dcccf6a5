# frozen_string_literal: true

# Runs the Ruby blocks of a page, one after the other in one program, and compares what an expression
# gives with the comment behind it, `#=> value`:
#
#   ruby ext/ruby/check_examples.rb PAGE
page = File.read(ARGV.fetch(0))
code = page.gsub(/^```ruby\n(.*?)^```$/m) { "\0#{$1}\0" }.split("\0").each_with_index.map do |part, i|
  i.odd? ? part : "\n" * part.count("\n") # keeps the page's line numbers, roughly
end.join
$checks = 0
def expect(value, wanted, line)
  abort "#{ARGV[0]}: expected #{wanted.inspect}, not #{value.inspect}, from: #{line}" unless value == wanted
  $checks += 1
end
code = code.gsub(/^(\S.*?) #=> (.*)$/) { "expect((#{$1}), (#{$2}), #{$1.dump})" }
eval(code, TOPLEVEL_BINDING.dup, ARGV[0])
abort "#{ARGV[0]}: no expression to check" if $checks.zero?
puts "#{$checks} expressions as the page says"
