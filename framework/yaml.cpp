// Loading YAML, and what the configuration shares with other readers of it.
#include "framework/yaml.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <string_view>
#include <vector>

#include "framework/configuration.h"
#include "framework/text.h"

namespace fulmen {

namespace {

bool is_plain_text(const std::string& text) {
  static const std::set<std::string> nulls{"", "~", "null", "Null", "NULL"};
  if (nulls.contains(text) || text.front() == '-') return false;
  return std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || std::string_view("_./+-").find(static_cast<char>(c)) != std::string_view::npos;
  });
}

void flatten(const YAML::Node& node, const std::string& name, const std::string& source,
             std::map<std::string, std::string>& values) {
  const auto scalar = [&](const YAML::Node& leaf) {
    if (leaf.IsScalar()) return leaf.Tag() == "!" ? to_yaml(leaf.Scalar()) : leaf.Scalar();
    if (leaf.IsNull()) return std::string("~");
    throw UserError(at(source, leaf.Mark()), fmt::format("{}: {} inside a list", name, shown(leaf)));
  };
  if (node.IsMap()) {
    for_each_entry(node, source, [&](const std::string& key, const YAML::Node&, const YAML::Node& value) {
      flatten(value, child_of(name, key), source, values);
    });
  } else if (node.IsSequence()) {
    std::vector<std::string> parts;
    for (const YAML::Node& element : node) parts.push_back(scalar(element));
    values[name] = fmt::format("[{}]", join(parts, ", "));
  } else {
    values[name] = scalar(node);
  }
}

}  // namespace

std::string to_yaml(const std::string& text) {
  if (is_plain_text(text)) return text;
  YAML::Emitter emitter;
  emitter << YAML::DoubleQuoted << text;
  return emitter.c_str();
}

std::string child_of(const std::string& section, const std::string& key) {
  return section.empty() ? key : section + "." + key;
}

std::string shown(const YAML::Node& node) {
  switch (node.Type()) {
    case YAML::NodeType::Map: return "a section";
    case YAML::NodeType::Sequence: return "a list";
    case YAML::NodeType::Scalar: return "'" + node.Scalar() + "'";
    default: return "nothing";
  }
}

std::string at(const std::string& source, const YAML::Mark& mark) {
  return mark.is_null() ? source : fmt::format("{}:{}", source, mark.line + 1);
}

YAML::Node load_document(const std::string& text, const std::string& source) {
  std::vector<YAML::Node> documents;
  try {
    documents = YAML::LoadAll(text);
  } catch (const YAML::Exception& error) {
    const std::string where =
        error.mark.is_null() ? source : fmt::format("{}:{}:{}", source, error.mark.line + 1, error.mark.column + 1);
    throw UserError(where, "malformed YAML: " + error.msg,
                    "check the indentation (spaces, no tabs), colons, quotes and brackets around there");
  }
  if (documents.size() > 1) throw UserError(source, "holds more than one YAML document", "remove the lines '---'");
  return documents.empty() ? YAML::Node() : documents.front();
}

std::map<std::string, std::string> flatten_yaml(const std::string& text, const std::string& source) {
  const YAML::Node root = load_document(text, source);
  std::map<std::string, std::string> values;
  if (root.IsNull()) return values;
  if (!root.IsMap()) throw UserError(source, fmt::format("expects sections of keys, got {}", shown(root)));
  flatten(root, "", source, values);
  return values;
}

}  // namespace fulmen
