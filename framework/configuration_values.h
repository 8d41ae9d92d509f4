// Single values of a configuration: their text, their ranges, and how they are read.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "framework/configuration.h"

namespace YAML {
class Node;
}

namespace fulmen {

// The problem with a value, and the remedy. There is none when `what` is empty.
struct Problem {
  std::string what;
  std::string remedy;
};

// As YAML. Numbers: the shortest form that reads back as the same number.
std::string to_yaml(std::int64_t value);
std::string to_yaml(bool value);
std::string to_yaml(double value);

// "1 to 8", "at least 1", or "" where anything is allowed.
std::string to_text(const Range<std::int64_t>& range);
std::string to_text(const Range<double>& range);
Problem outside(std::int64_t value, const Range<std::int64_t>& range);
Problem not_a(const std::string& wanted, const YAML::Node& node, const std::string& remedy);

// Digits, or an exponent form of a whole number: 20e9, 1.5e6.
bool parse_integer(std::string_view text, std::int64_t& value);
Problem read_integer(const YAML::Node& node, const Range<std::int64_t>& range, std::int64_t& value);
Problem read_number(const YAML::Node& node, const Range<double>& range, double& value);
Problem read_choice(const std::string& word, const std::vector<Choice>& choices);

}  // namespace fulmen
