// Loading YAML, and what the configuration shares with other readers of it.
#include "framework/yaml.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <map>
#include <sstream>
#include <string_view>
#include <vector>

#include <yaml-cpp/eventhandler.h>

#include "framework/configuration.h"
#include "framework/document_limits.h"
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

// Follows the parser through a document before its nodes are made. It refuses nesting that no stack holds, more values
// than memory, and aliases that multiply or hold themselves.
class LimitCheck : public YAML::EventHandler {
 public:
  explicit LimitCheck(const std::string& source) : source_(source) {}

  // The library finds documents without an end in some texts, all of them empty.
  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1) {
      throw UserError(at(source_, mark), "holds more than one YAML document", "remove the lines '---'");
    }
  }
  void OnDocumentEnd() override { anchored_.clear(); }
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override { leaf(mark, anchor); }
  void OnScalar(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor, const std::string&) override {
    leaf(mark, anchor);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, anchor);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, anchor);
  }
  void OnMapEnd() override { close(); }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = anchored_.find(anchor);
    if (found == anchored_.end()) refuse(mark, "holds an alias of the value that it stands in");
    add(mark, found->second.values, found->second.height);
  }

 private:
  struct Extent {
    std::int64_t values = 1;  // with all that is inside
    int height = 0;           // levels of lists and maps
  };
  struct Open {
    YAML::anchor_t anchor;
    std::int64_t values_before;
    int height_inside = 0;
  };

  [[noreturn]] void refuse(const YAML::Mark& mark, const std::string& what) const {
    throw UserError(at(source_, mark), what, "check that it is the file that was meant");
  }

  void add(const YAML::Mark& mark, std::int64_t values, int height) {
    values_ += values;
    if (values_ > most_values) refuse(mark, fmt::format("holds more than {} values, aliases counted", most_values));
    if (static_cast<int>(open_.size()) + height > deepest_nesting) {
      refuse(mark, fmt::format("nests lists and sections more than {} deep", deepest_nesting));
    }
    if (!open_.empty()) open_.back().height_inside = std::max(open_.back().height_inside, height);
  }

  void leaf(const YAML::Mark& mark, YAML::anchor_t anchor) {
    add(mark, 1, 0);
    if (anchor != 0) anchored_[anchor] = {};
  }

  void open(const YAML::Mark& mark, YAML::anchor_t anchor) {
    add(mark, 1, 1);
    open_.push_back({anchor, values_ - 1});
  }

  void close() {
    const Open closed = open_.back();
    open_.pop_back();
    const Extent extent{values_ - closed.values_before, closed.height_inside + 1};
    if (closed.anchor != 0) anchored_[closed.anchor] = extent;
    if (!open_.empty()) open_.back().height_inside = std::max(open_.back().height_inside, extent.height);
  }

  const std::string& source_;
  std::vector<Open> open_;
  std::map<YAML::anchor_t, Extent> anchored_;  // values that are complete
  std::int64_t values_ = 0;
  int documents_ = 0;
};

void check_limits(const std::string& text, const std::string& source) {
  std::istringstream stream(text);
  YAML::Parser parser(stream);
  LimitCheck check(source);
  while (parser.HandleNextDocument(check)) {
  }
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

YAML::Node load_document(const std::string& text, const std::string& source, const char* remedy) {
  if (text.size() > longest_document) {
    throw UserError(source, fmt::format("has {} bytes of YAML, at most {} are read", text.size(), longest_document),
                    "check that it is the file that was meant");
  }
  try {
    check_limits(text, source);
    return YAML::Load(text);
  } catch (const YAML::Exception& error) {
    const std::string where =
        error.mark.is_null() ? source : fmt::format("{}:{}:{}", source, error.mark.line + 1, error.mark.column + 1);
    throw UserError(where, "malformed YAML: " + error.msg, remedy);
  }
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
