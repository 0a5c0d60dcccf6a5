# frozen_string_literal: true

# Whether each public name of the gem has documentation and a signature, and no signature is about
# a name that is not there. What is public, Ruby says that has the gem loaded:
#
#   ruby ext/ruby/check_docs.rb RI_FOLDER     (what `rdoc --ri` made)
#
# Ends with "N passed, N failed, 0 skipped"; each name is one check for each of the two.
require "um/tls"
require "rdoc"
require "rbs"

# Name => true, as RDoc and RBS write them: A::B, A#b, A.b.
def public_names(mod, found = {})
  found[mod.name] = true
  mod.public_instance_methods(false).each { |name| found["#{mod.name}##{name}"] = true }
  found["#{mod.name}#initialize"] = true if mod.private_instance_methods(false).include?(:initialize)
  (mod.singleton_class.public_instance_methods(false) - [:allocate, :yaml_tag]).each do |name|
    found["#{mod.name}.#{name}"] = true
  end
  mod.constants(false).each do |name|
    value = mod.const_get(name)
    if value.is_a?(Module) && value.name == "#{mod.name}::#{name}" then public_names(value, found)
    else found["#{mod.name}::#{name}"] = true
    end
  end
  found
end

# Only what has a comment.
def documented_names(folder)
  store = RDoc::Store.new(folder)
  store.load_all
  store.all_classes_and_modules.each_with_object({}) do |mod, found|
    found[mod.full_name] = true unless mod.comment.empty? && mod.comment_location.to_a.empty?
    (mod.method_list + mod.attributes).each do |method|
      next if method.comment.nil? || method.comment.empty?
      new = method.singleton && method.name == "new"
      name = new ? "#initialize" : (method.singleton ? "." : "#") + method.name
      found[mod.full_name + name] = true
      found["#{mod.full_name}##{method.name}="] = true if method.respond_to?(:rw) && method.rw.include?("W")
    end
    mod.constants.each { |constant| found["#{mod.full_name}::#{constant.name}"] = true unless constant.comment.empty? }
  end
end

def environment
  loader = RBS::EnvironmentLoader.new
  %w[openssl socket].each { |library| loader.add(library: library) }
  loader.add(path: Pathname(File.join(__dir__, "sig")))
  RBS::Environment.from_loader(loader).resolve_type_names
end

def ours?(name) = name.to_s.match?(/\A::UM(::|\z)/)

def plain(name) = name.to_s.delete_prefix("::")

def signed_names(env)
  found = {}
  classes = env.class_decls.select { |name, _| ours?(name) }
  classes.each do |name, entry|
    found[plain(name)] = true
    entry.decls.flat_map { |decl| decl.respond_to?(:decl) ? decl.decl.members : decl.members }.each do |member|
      names_of(member).each { |part| found[plain(name) + part] = true }
    end
  end
  (env.respond_to?(:constant_decls) ? env.constant_decls : {}).each_key { |name| found[plain(name)] = true if ours?(name) }
  found
end

def names_of(member)
  case member
  when RBS::AST::Members::MethodDefinition
    ["#{member.kind == :singleton ? "." : "#"}#{member.name}"]
  when RBS::AST::Members::Alias then ["##{member.new_name}"]
  when RBS::AST::Members::AttrReader then ["##{member.name}"]
  when RBS::AST::Members::AttrAccessor then ["##{member.name}", "##{member.name}="]
  else []
  end
end

names = public_names(UM)
documented = documented_names(ARGV.fetch(0))
signed = signed_names(environment)
# On Ruby 3.2 and later it is IO::TimeoutError by another name.
aliases = { "UM::TimeoutError" => true }

problems = names.keys.reject { |name| documented[name] }.map { |name| "#{name} has no documentation" } +
           names.keys.reject { |name| signed[name] }.map { |name| "#{name} has no signature in sig/" } +
           (signed.keys - names.keys - aliases.keys).map { |name| "#{name} has a signature and does not exist" }
checks = names.size * 2 + signed.size
puts problems.sort
puts "#{checks - problems.size} passed, #{problems.size} failed, 0 skipped"
exit problems.empty?
