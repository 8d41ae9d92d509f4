// The schema and its reader.
#include "framework/configuration.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <string_view>
#include <variant>

#include <fmt/format.h>

#include "framework/configuration_values.h"
#include "framework/error.h"
#include "framework/files.h"
#include "framework/text.h"
#include "framework/yaml.h"

namespace fulmen {

namespace {

using Integers = std::vector<std::int64_t>;
using Words = std::vector<std::string>;
using Field = std::variant<std::int64_t*, double*, bool*, std::string*, std::vector<double>*,
                           std::optional<std::int64_t>*, std::optional<Integers>*, Words*>;

constexpr const char* automatic = "auto";

std::string parent_of(const std::string& name) {
  const std::size_t dot = name.rfind('.');
  return dot == std::string::npos ? "" : name.substr(0, dot);
}

std::string leaf_of(const std::string& name) { return name.substr(name.rfind('.') + 1); }

using fulmen::to_yaml;  // of single values

template <class T>
std::string to_yaml(const std::vector<T>& values) {
  std::vector<std::string> parts;
  for (const T& value : values) parts.push_back(to_yaml(value));
  return fmt::format("[{}]", join(parts, ", "));
}

template <class T>
std::string to_yaml(const std::optional<T>& value) {
  return value ? to_yaml(*value) : automatic;
}

template <class Value, class Read>
Problem read_list(const YAML::Node& node, std::vector<Value>& values, const Read& read) {
  std::vector<Value> list;
  for (const YAML::Node& element : node) {
    Value value{};
    if (Problem problem = read(element, value); !problem.what.empty()) return problem;
    list.push_back(value);
  }
  values = std::move(list);
  return {};
}

struct Override {
  std::string key;  // "" when the text is not key=value
  std::string value;
};

Override split_override(const std::string& setting) {
  const std::size_t equals = setting.find('=');
  if (equals == std::string::npos) return {};
  return {setting.substr(0, equals), setting.substr(equals + 1)};
}

// The scalar at a dotted path below a node.
std::optional<std::string> scalar_at(const YAML::Node& node, const std::string& path) {
  if (path.empty()) return node.IsScalar() ? std::optional(node.Scalar()) : std::nullopt;
  if (!node.IsMap()) return std::nullopt;
  const std::size_t dot = path.find('.');
  const YAML::Node child = node[path.substr(0, dot)];
  if (!child.IsDefined()) return std::nullopt;
  return scalar_at(child, dot == std::string::npos ? "" : path.substr(dot + 1));
}

// Nested YAML from dotted names, sections in the order of their first key.
void nest(const std::vector<std::pair<std::string, std::string>>& entries, const std::string& indent,
          std::string& text) {
  std::set<std::string> written;
  for (const auto& [name, value] : entries) {
    const std::size_t dot = name.find('.');
    const std::string head = name.substr(0, dot);
    if (!written.insert(head).second) continue;
    if (dot == std::string::npos) {
      text += fmt::format("{}{}: {}\n", indent, head, value);
      continue;
    }
    std::vector<std::pair<std::string, std::string>> inside;
    for (const auto& [other, other_value] : entries) {
      if (other.starts_with(head + ".")) inside.emplace_back(other.substr(head.size() + 1), other_value);
    }
    text += fmt::format("{}{}:\n", indent, head);
    nest(inside, indent + "  ", text);
  }
}

std::string table_cell(std::string text) {
  for (std::size_t i = text.find('|'); i != std::string::npos; i = text.find('|', i + 2)) text.insert(i, 1, '\\');
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

}  // namespace

// The field that a key writes to, and the checks of its value.
struct Schema::Binding {
  Field field;
  Range<std::int64_t> integers = {};
  Range<double> numbers = {};
  std::size_t length = 0;
  std::vector<Choice> choices = {};
  bool path = false;
  std::function<std::string()> unbuilt = {};              // after reading: "" or why the value is not built yet
  std::vector<std::function<std::string()>> checks = {};  // after reading everything
  std::string where = {};                                 // where the user set it

  std::string value() const {
    return std::visit([](const auto* held) { return to_yaml(*held); }, field);
  }

  void expand_home_at(const std::string& place) const {
    std::string& held = *std::get<std::string*>(field);
    held = expand_home(held, place);
  }

  Problem read(const YAML::Node& node) const {
    if (node.IsNull()) return {"has no value", "write a value, or remove the key"};
    return std::visit([&](auto* held) { return read_into(node, *held); }, field);
  }

  Problem read_into(const YAML::Node& node, std::int64_t& held) const { return read_integer(node, integers, held); }
  Problem read_into(const YAML::Node& node, double& held) const { return read_number(node, numbers, held); }

  Problem read_into(const YAML::Node& node, bool& held) const {
    if (!node.IsScalar() || (node.Scalar() != "true" && node.Scalar() != "false")) {
      return not_a("true or false", node, "write true or false");
    }
    held = node.Scalar() == "true";
    return {};
  }

  Problem read_into(const YAML::Node& node, std::string& held) const {
    if (!node.IsScalar()) return not_a("text", node, "write one word, or text in quotes");
    held = node.Scalar();
    return choices.empty() ? Problem{} : read_choice(held, choices);
  }

  Problem read_into(const YAML::Node& node, std::vector<double>& held) const {
    const std::string wanted = fmt::format("a list of {} numbers", length);
    if (!node.IsSequence()) return not_a(wanted, node, "write it as [0.9, 0.95]");
    if (node.size() != length) return {fmt::format("expects {}, got {}", wanted, node.size()), {}};
    return read_list(node, held, [&](const YAML::Node& e, double& value) { return read_number(e, numbers, value); });
  }

  Problem read_into(const YAML::Node& node, std::optional<std::int64_t>& held) const {
    held.reset();
    if (node.IsScalar() && node.Scalar() == automatic) return {};
    std::int64_t value = 0;
    if (!node.IsScalar() || !parse_integer(node.Scalar(), value)) {
      return not_a("auto or an integer", node, "write auto, or an integer");
    }
    held = value;
    return outside(value, integers);
  }

  Problem read_into(const YAML::Node& node, std::optional<Integers>& held) const {
    held.reset();
    if (node.IsScalar() && node.Scalar() == automatic) return {};
    if (!node.IsSequence()) return not_a("auto or a list of integers", node, "write auto, or a list such as [1, 2]");
    return read_list(node, held.emplace(),
                     [&](const YAML::Node& e, std::int64_t& value) { return read_integer(e, integers, value); });
  }

  Problem read_into(const YAML::Node& node, Words& held) const {
    if (!node.IsSequence()) return not_a("a list of words", node, "write it as [first, second]");
    return read_list(node, held, [&](const YAML::Node& e, std::string& value) { return read_into(e, value); });
  }
};

void Schema::add_binding(Key key, std::shared_ptr<Binding> binding) {
  for (const Key& other : keys_) {
    FULMEN_CHECK(
        other.name != key.name && !other.name.starts_with(key.name + ".") && !key.name.starts_with(other.name + "."),
        "configuration keys {} and {} clash", other.name, key.name);
  }
  key.default_value = binding->value();
  keys_.push_back(std::move(key));
  bindings_.push_back(std::move(binding));
}

void Schema::add(const std::string& name, std::int64_t& field, Range<std::int64_t> range,
                 const std::string& documentation) {
  add_binding({name, "integer", to_text(range), {}, documentation},
              std::make_shared<Binding>(Binding{.field = &field, .integers = range}));
}

void Schema::add(const std::string& name, double& field, Range<double> range, const std::string& documentation) {
  add_binding({name, "number", to_text(range), {}, documentation},
              std::make_shared<Binding>(Binding{.field = &field, .numbers = range}));
}

void Schema::add(const std::string& name, bool& field, const std::string& documentation) {
  add_binding({name, "true or false", {}, {}, documentation}, std::make_shared<Binding>(Binding{.field = &field}));
}

void Schema::add(const std::string& name, std::string& field, const std::string& documentation) {
  add_binding({name, "text", {}, {}, documentation}, std::make_shared<Binding>(Binding{.field = &field}));
}

void Schema::add_path(const std::string& name, std::string& field, const std::string& documentation) {
  add_binding({name, "path", {}, {}, documentation}, std::make_shared<Binding>(Binding{.field = &field, .path = true}));
}

void Schema::add(const std::string& name, std::string& field, std::vector<Choice> choices,
                 const std::string& documentation) {
  std::vector<std::string> words;
  for (const Choice& choice : choices) {
    if (choice.name.empty()) continue;  // nothing chosen
    words.push_back(choice.missing.empty() ? choice.name
                                           : fmt::format("{} (not built yet: {})", choice.name, choice.missing));
  }
  add_binding({name, "one of " + join(words, ", "), {}, {}, documentation},
              std::make_shared<Binding>(Binding{.field = &field, .choices = std::move(choices)}));
}

void Schema::add(const std::string& name, std::vector<double>& field, std::size_t length, Range<double> range,
                 const std::string& documentation) {
  add_binding({name, fmt::format("list of {} numbers", length), to_text(range), {}, documentation},
              std::make_shared<Binding>(Binding{.field = &field, .numbers = range, .length = length}));
}

void Schema::add(const std::string& name, std::optional<std::int64_t>& field, Range<std::int64_t> range,
                 const std::string& documentation) {
  add_binding({name, "auto or integer", to_text(range), {}, documentation},
              std::make_shared<Binding>(Binding{.field = &field, .integers = range}));
}

void Schema::add(const std::string& name, std::optional<std::vector<std::int64_t>>& field, Range<std::int64_t> range,
                 const std::string& documentation) {
  add_binding({name, "auto or list of integers", to_text(range), {}, documentation},
              std::make_shared<Binding>(Binding{.field = &field, .integers = range}));
}

void Schema::add(const std::string& name, std::vector<std::string>& field, std::vector<Choice> choices,
                 const std::string& documentation) {
  std::vector<std::string> words;
  for (const Choice& choice : choices) words.push_back(choice.name);
  add_binding({name, "list of " + join(words, ", "), {}, {}, documentation},
              std::make_shared<Binding>(Binding{.field = &field, .choices = std::move(choices)}));
}

std::size_t Schema::position(const std::string& name) const {
  const auto found = std::find_if(keys_.begin(), keys_.end(), [&](const Key& key) { return key.name == name; });
  FULMEN_CHECK(found != keys_.end(), "no configuration key is called {}", name);
  return static_cast<std::size_t>(found - keys_.begin());
}

void Schema::require(const std::string& name) {
  Key& key = keys_[position(name)];
  key.required = true;
  key.default_value.clear();
}

void Schema::built_up_to(const std::string& name, std::int64_t most, const std::string& reason) {
  const std::size_t k = position(name);
  const Field field = bindings_[k]->field;
  FULMEN_CHECK(std::holds_alternative<std::int64_t*>(field), "{} is not an integer key", name);
  bindings_[k]->unbuilt = [value = std::get<std::int64_t*>(field), most, reason] {
    return *value > most ? reason : std::string();
  };
  std::string& allowed = keys_[k].allowed;
  allowed += fmt::format("{}above {} not built yet: {}", allowed.empty() ? "" : "; ", most, reason);
}

void Schema::built_only_false(const std::string& name, const std::string& reason) {
  const std::size_t k = position(name);
  const Field field = bindings_[k]->field;
  FULMEN_CHECK(std::holds_alternative<bool*>(field), "{} is not a key of true or false", name);
  bindings_[k]->unbuilt = [value = std::get<bool*>(field), reason] { return *value ? reason : std::string(); };
  keys_[k].allowed = "true not built yet: " + reason;
}

void Schema::refuse(const std::string& name, const std::string& reason) { refused_[name] = reason; }

void Schema::check(const std::string& name, std::function<std::string()> problem) {
  bindings_[position(name)]->checks.push_back(std::move(problem));
}

bool Schema::given(const std::string& name) const { return keys_[position(name)].given; }

// Reads one piece of YAML into the schema: the file, or the value of one override.
class Schema::Reader {
 public:
  // Errors name `source`, and the line in it if there are `lines`.
  Reader(Schema& schema, const std::string& source, bool lines) : schema_(schema), source_(source), lines_(lines) {}

  void read_section(const YAML::Node& section, const std::string& name) {
    for_each_entry(section, source_, [&](const std::string& word, const YAML::Node& key, const YAML::Node& value) {
      read(child_of(name, word), place(key), value);
    });
  }

  void read(const std::string& name, const std::string& where, const YAML::Node& value) {
    if (is_key(name)) return set(name, where, value);
    if (!is_section(name)) refuse_unknown(name, where);
    if (value.IsMap()) return read_section(value, name);
    if (value.IsNull()) return;
    throw UserError(where, fmt::format("{} is a section of keys, got {}", name, shown(value)),
                    fmt::format("write its keys below it, such as {}", example_in(name)));
  }

 private:
  std::string place(const YAML::Node& node) const { return lines_ ? at(source_, node.Mark()) : source_; }

  bool is_key(const std::string& name) const {
    return std::any_of(schema_.keys_.begin(), schema_.keys_.end(), [&](const Key& key) { return key.name == name; });
  }

  bool is_section(const std::string& name) const {
    return std::any_of(schema_.keys_.begin(), schema_.keys_.end(),
                       [&](const Key& key) { return key.name.starts_with(name + "."); });
  }

  std::string example_in(const std::string& section) const {
    for (const Key& key : schema_.keys_) {
      if (key.name.starts_with(section + ".")) return key.name;
    }
    return {};
  }

  void set(const std::string& name, const std::string& where, const YAML::Node& value) {
    if (!set_.insert(name).second) throw UserError(where, name + " is given twice", "remove one of the two");
    const std::size_t k = schema_.position(name);
    Binding& binding = *schema_.bindings_[k];
    schema_.keys_[k].given = true;
    binding.where = where;
    Problem problem = binding.read(value);
    const std::string unbuilt = problem.what.empty() && binding.unbuilt ? binding.unbuilt() : "";
    if (!unbuilt.empty()) {
      problem = {fmt::format("{} is not built yet: {}", binding.value(), unbuilt),
                 fmt::format("remove the key, or write {}", schema_.keys_[k].default_value)};
    }
    if (!problem.what.empty()) throw UserError(where, name + ": " + problem.what, problem.remedy);
    if (binding.path) binding.expand_home_at(fmt::format("{}: {}", where, name));
  }

  // The names of the keys and sections directly in `section`.
  std::vector<std::string> names_in(const std::string& section) const {
    std::vector<std::string> names;
    for (const Key& key : schema_.keys_) {
      if (!section.empty() && !key.name.starts_with(section + ".")) continue;
      const std::string inside = section.empty() ? key.name : key.name.substr(section.size() + 1);
      const std::string name = inside.substr(0, inside.find('.'));
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
    return names;
  }

  // A neighbour of the unknown key is likeliest meant, then the same word elsewhere, then the nearest spelling.
  std::string nearest_key(const std::string& name) const {
    const std::string section = parent_of(name), leaf = leaf_of(name);
    const std::string neighbour = nearest_name(leaf, names_in(section));
    if (!neighbour.empty()) return child_of(section, neighbour);
    std::vector<std::string> all;
    for (const Key& key : schema_.keys_) {
      if (leaf_of(key.name) == leaf) return key.name;
      all.push_back(key.name);
    }
    return nearest_name(name, all);
  }

  [[noreturn]] void refuse_unknown(const std::string& name, const std::string& where) const {
    for (const auto& [refused, reason] : schema_.refused_)
      if (refused == name || refused.starts_with(name + "."))
        throw UserError(where, fmt::format("{} {}", name, reason));
    const std::string nearest = nearest_key(name);
    const std::string section = parent_of(name);
    throw UserError(where, fmt::format("unknown key {}", name),
                    nearest.empty() ? "known there: " + join(names_in(is_section(section) ? section : ""), ", ")
                                    : fmt::format("did you mean {}?", nearest));
  }

  Schema& schema_;
  std::string source_;
  bool lines_;
  std::set<std::string> set_;
};

void Schema::begin_reading(const std::string& source) {
  for (Key& key : keys_) key.given = false;
  for (const auto& binding : bindings_) binding->where = source;
}

void Schema::finish_reading(const std::string& source) const {
  for (const Key& key : keys_) {
    if (!key.required || key.given) continue;
    throw UserError(
        source, fmt::format("{} is missing", key.name),
        fmt::format("give it ({}{}{}): {}", key.type, key.allowed.empty() ? "" : ", ", key.allowed, key.documentation));
  }
  for (std::size_t k = 0; k < keys_.size(); ++k) {
    for (const auto& check : bindings_[k]->checks) {
      const std::string problem = check();
      if (!problem.empty()) throw UserError(bindings_[k]->where, keys_[k].name + ": " + problem);
    }
  }
}

void Schema::parse(const std::string& text, const std::string& source, const std::vector<std::string>& overrides) {
  begin_reading(source);
  const YAML::Node root = load_document(text, source);
  if (!root.IsNull() && !root.IsMap()) {
    throw UserError(source, fmt::format("expects sections of keys, got {}", shown(root)),
                    "write 'section:' and its keys, indented, below it");
  }
  if (root.IsMap()) Reader(*this, source, true).read_section(root, "");
  for (const std::string& setting : overrides) {
    const std::string flag = "--set " + setting;
    const Override given = split_override(setting);
    if (given.key.empty()) throw UserError(flag, "expects key=value", "write it as --set train.steps=100");
    Reader(*this, flag, false).read(given.key, flag, load_document(given.value, flag));
  }
  finish_reading(source);
}

void Schema::parse(const std::map<std::string, std::string>& values) {
  begin_reading("");
  Reader reader(*this, "", false);
  for (const auto& [name, value] : values) reader.read(name, "", load_document(value, name));
  finish_reading("");
}

std::string Schema::resolved() const {
  std::vector<std::pair<std::string, std::string>> entries;
  for (std::size_t k = 0; k < keys_.size(); ++k) entries.emplace_back(keys_[k].name, bindings_[k]->value());
  std::string text;
  nest(entries, "", text);
  return text;
}

std::map<std::string, std::string> Schema::flat() const {
  std::map<std::string, std::string> values;
  for (std::size_t k = 0; k < keys_.size(); ++k) values[keys_[k].name] = bindings_[k]->value();
  return values;
}

namespace {

std::string section_of(const Schema::Key& key) {
  return key.name.find('.') == std::string::npos ? std::string() : key.name.substr(0, key.name.find('.'));
}

std::string table_of(const std::vector<Schema::Key>& keys) {
  std::string text = "| key | type | default | allowed | meaning |\n|---|---|---|---|---|\n";
  for (const Schema::Key& key : keys) {
    const std::string preset = key.required ? "must be given" : fmt::format("`{}`", table_cell(key.default_value));
    text += fmt::format("| `{}` | {} | {} | {} | {} |\n", key.name, table_cell(key.type), preset,
                        table_cell(key.allowed), table_cell(key.documentation));
  }
  return text;
}

}  // namespace

std::string Schema::table() const { return table_of(keys_); }

std::string Schema::markdown() const {
  std::vector<std::pair<std::string, std::vector<Key>>> sections;
  for (const Key& key : keys_) {
    const std::string name = section_of(key);
    auto found = std::ranges::find(sections, name, &std::pair<std::string, std::vector<Key>>::first);
    if (found == sections.end()) found = sections.insert(found, {name, {}});
    found->second.push_back(key);
  }
  std::string text;
  for (const auto& [name, keys] : sections)
    text += fmt::format("{}## {}\n\n{}", text.empty() ? "" : "\n",
                        name.empty() ? "Outside sections" : fmt::format("`{}`", name), table_of(keys));
  return text;
}

std::string given_word(const std::string& name, const std::string& text, const std::string& source,
                       const std::vector<std::string>& overrides) {
  std::string word = scalar_at(load_document(text, source), name).value_or("");
  for (const std::string& setting : overrides) {
    const Override given = split_override(setting);
    if (given.key != name && !name.starts_with(given.key + ".")) continue;
    const std::string inside = given.key == name ? "" : name.substr(given.key.size() + 1);
    word = scalar_at(load_document(given.value, "--set " + setting), inside).value_or(word);
  }
  return word;
}

}  // namespace fulmen
