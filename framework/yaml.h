// YAML documents through yaml-cpp, with errors that name their place. A heavy header: include it in .cpp files only.
#pragma once

#include <set>
#include <string>

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include "framework/error.h"

namespace fulmen {

// Parses text that holds at most one document; nothing at all is a null node. Throws UserError with line and column:
// for malformed text (`remedy` is the advice then), and for what is beyond framework/document_limits.h.
inline constexpr const char* yaml_remedy =
    "check the indentation (spaces, no tabs), colons, quotes and brackets around there";
YAML::Node load_document(const std::string& text, const std::string& source, const char* remedy = yaml_remedy);
// "<source>:<line>", or the source alone when the place is not known.
std::string at(const std::string& source, const YAML::Mark& mark);
// A node's description, for messages: "a list", "'abc'".
std::string shown(const YAML::Node& node);
// Text as a YAML scalar, in quotes when it needs them.
std::string to_yaml(const std::string& text);
// "train" and "steps" to "train.steps".
std::string child_of(const std::string& section, const std::string& key);

// Calls f(key text, key, value) for each entry of a map, in order. Throws UserError for keys that are no words or come
// twice.
template <class F>
void for_each_entry(const YAML::Node& map, const std::string& source, F&& f) {
  std::set<std::string> seen;
  for (const auto& entry : map) {
    const std::string where = at(source, entry.first.Mark());
    if (!entry.first.IsScalar()) throw UserError(where, "a key is " + shown(entry.first), "write a word before ':'");
    const std::string& key = entry.first.Scalar();
    if (!seen.insert(key).second) {
      throw UserError(where, fmt::format("the key '{}' is given twice in one section", key), "remove one of the two");
    }
    f(key, entry.first, entry.second);
  }
}

}  // namespace fulmen
