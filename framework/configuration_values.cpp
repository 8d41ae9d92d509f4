// Single values of a configuration.
#include "framework/configuration_values.h"

#include <charconv>
#include <cmath>
#include <limits>

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include "framework/text.h"
#include "framework/yaml.h"

namespace fulmen {

std::string to_yaml(std::int64_t value) { return std::to_string(value); }

std::string to_yaml(bool value) { return value ? "true" : "false"; }

std::string to_yaml(double value) {
  if (std::isnan(value)) return ".nan";
  if (std::isinf(value)) return value > 0 ? ".inf" : "-.inf";
  return fmt::format("{}", value);
}

namespace {

template <class T>
std::string describe(const Range<T>& range) {
  const bool below = range.least == std::numeric_limits<T>::lowest();
  const bool above = range.most == std::numeric_limits<T>::max();
  std::string least = "at least " + to_yaml(range.least);
  if constexpr (std::is_same_v<T, double>) {
    if (range.least == std::numeric_limits<double>::min() || range.least == std::numeric_limits<double>::denorm_min()) {
      if (!above) return "above 0, at most " + to_yaml(range.most);
      least = "above 0";
    }
  }
  if (below && above) return "";
  if (above) return least;
  if (below) return "at most " + to_yaml(range.most);
  return to_yaml(range.least) + " to " + to_yaml(range.most);
}

template <class T>
Problem check_range(const T& value, const Range<T>& range) {
  if (value >= range.least && value <= range.most) return {};
  const std::string allowed = describe(range);
  return {to_yaml(value) + " is out of range", "allowed: " + (allowed.empty() ? "finite numbers" : allowed)};
}

std::string_view without_plus(std::string_view text) { return text.starts_with('+') ? text.substr(1) : text; }

template <class T>
bool parse_whole(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

bool parse_number(std::string_view text, double& value) {
  if (text == ".inf" || text == "+.inf" || text == "-.inf") {
    value = text.starts_with('-') ? -INFINITY : INFINITY;
    return true;
  }
  return parse_whole(without_plus(text), value);
}

std::vector<std::string> names_of(const std::vector<Choice>& choices, bool only_built) {
  std::vector<std::string> names;
  for (const Choice& choice : choices) {
    if (!choice.name.empty() && (!only_built || choice.missing.empty())) names.push_back(choice.name);
  }
  return names;
}

}  // namespace

std::string to_text(const Range<std::int64_t>& range) { return describe(range); }

std::string to_text(const Range<double>& range) { return describe(range); }

Problem outside(std::int64_t value, const Range<std::int64_t>& range) { return check_range(value, range); }

Problem not_a(const std::string& wanted, const YAML::Node& node, const std::string& remedy) {
  return {fmt::format("expects {}, got {}", wanted, shown(node)), remedy};
}

bool parse_integer(std::string_view text, std::int64_t& value) {
  if (parse_whole(without_plus(text), value)) return true;
  double number = 0.0;
  if (text.find_first_of("eE") == std::string_view::npos || !parse_number(text, number)) return false;
  if (number != std::floor(number) || std::abs(number) >= 0x1p63) return false;
  value = static_cast<std::int64_t>(number);
  return true;
}

Problem read_integer(const YAML::Node& node, const Range<std::int64_t>& range, std::int64_t& value) {
  if (!node.IsScalar() || !parse_integer(node.Scalar(), value)) {
    return not_a("an integer", node, "write it as 20000 or 20e3");
  }
  return check_range(value, range);
}

Problem read_number(const YAML::Node& node, const Range<double>& range, double& value) {
  if (!node.IsScalar() || !parse_number(node.Scalar(), value)) {
    return not_a("a number", node, "write it as 0.1 or 3e-4");
  }
  return check_range(value, range);
}

Problem read_choice(const std::string& word, const std::vector<Choice>& choices) {
  const std::string known = "one of " + join(names_of(choices, true), ", ");
  for (const Choice& choice : choices) {
    if (choice.name != word) continue;
    if (choice.missing.empty()) return {};
    return {fmt::format("'{}' is not built yet: {}", word, choice.missing), "choose " + known};
  }
  const std::string nearest = nearest_name(word, names_of(choices, false));
  return {fmt::format("'{}' is not a known word", word),
          (nearest.empty() ? "" : fmt::format("did you mean {}? ", nearest)) + "Write " + known};
}

}  // namespace fulmen
