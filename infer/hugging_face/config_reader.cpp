// The keys of a config.json.
#include "infer/hugging_face/config_reader.h"

#include <limits>

#include "framework/error.h"
#include "framework/files.h"
#include "framework/json_document.h"

namespace fulmen {

namespace {

constexpr const char* infinity_as_json = R"({"__float__":"Infinity"})";

// Python writes Infinity bare, which is no JSON. A minus before it would make a number that no key has.
std::string with_quoted_infinity(const std::string& text) {
  constexpr std::string_view word = "Infinity";
  std::string result;
  result.reserve(text.size());
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (!in_string && text.compare(i, word.size(), word) == 0) {
      result += infinity_as_json;
      i += word.size() - 1;
      continue;
    }
    if (text[i] == '"') in_string = !in_string;
    result += text[i];
    if (in_string && text[i] == '\\' && i + 1 < text.size()) result += text[++i];
  }
  return result;
}

double as_number(const nlohmann::json& value, const std::string& where, const std::string& key) {
  static const nlohmann::json infinity = nlohmann::json::parse(infinity_as_json);
  if (value == infinity) return std::numeric_limits<double>::infinity();
  if (!value.is_number()) throw UserError(where, fmt::format("{} is {}, which is not a number", key, value.dump()));
  return value.get<double>();
}

}  // namespace

ConfigReader::ConfigReader(const std::filesystem::path& path)
    : where_(path.string()), json_(parse_json_object(with_quoted_infinity(read_document(path)), where_)) {}

bool ConfigReader::has(const std::string& key) const {
  asked_.insert(key);
  return json_.contains(key) && !json_[key].is_null();
}

const nlohmann::json& ConfigReader::value(const std::string& key) const {
  asked_.insert(key);
  if (!json_.contains(key))
    throw UserError(where_, fmt::format("has no {}", key), "it is not the config.json of such a model");
  return json_[key];
}

std::int64_t ConfigReader::integer(const std::string& key) const {
  const nlohmann::json& number = value(key);
  if (!number.is_number_integer()) throw UserError(where_, fmt::format("{} is not an integer", key));
  if (number.is_number_unsigned() && number.get<std::uint64_t>() > std::uint64_t{INT64_MAX})
    throw UserError(where_, fmt::format("{} is {}, which no model has", key, number.dump()));
  return number.get<std::int64_t>();
}

std::int64_t ConfigReader::integer(const std::string& key, std::int64_t otherwise) const {
  return has(key) ? integer(key) : otherwise;
}

double ConfigReader::number(const std::string& key, double otherwise) const {
  return has(key) ? as_number(value(key), where_, key) : otherwise;
}

bool ConfigReader::boolean(const std::string& key, bool otherwise) const {
  if (!has(key)) return otherwise;
  if (!value(key).is_boolean()) throw UserError(where_, fmt::format("{} is neither true nor false", key));
  return value(key).get<bool>();
}

std::vector<double> ConfigReader::numbers(const std::string& key) const {
  if (!value(key).is_array()) throw UserError(where_, fmt::format("{} is not a list", key));
  std::vector<double> numbers;
  for (const nlohmann::json& item : value(key)) numbers.push_back(as_number(item, where_, key));
  return numbers;
}

std::vector<std::string> ConfigReader::texts(const std::string& key) const {
  if (!value(key).is_array()) throw UserError(where_, fmt::format("{} is not a list", key));
  std::vector<std::string> texts;
  for (const nlohmann::json& item : value(key)) {
    if (!item.is_string()) throw UserError(where_, fmt::format("{} holds {}, which is no text", key, item.dump()));
    texts.push_back(item.get<std::string>());
  }
  return texts;
}

ConfigReader ConfigReader::section(const std::string& key) const {
  if (!value(key).is_object()) throw UserError(where_, fmt::format("{} is no object", key));
  return {fmt::format("{}: {}", where_, key), value(key)};
}

void ConfigReader::require(const std::string& key, const nlohmann::json& wanted) const {
  if (has(key) && json_[key] != wanted)
    throw UserError(where_, fmt::format("{} is {}; only {} is supported", key, json_[key].dump(), wanted.dump()));
}

void ConfigReader::pass_over(std::initializer_list<const char*> keys) const { asked_.insert(keys.begin(), keys.end()); }

void ConfigReader::refuse_others() const {
  for (const auto& [key, value] : json_.items())
    if (!value.is_null() && !asked_.contains(key))
      throw UserError(where_, fmt::format("{} is {}, a key that models of this family do not have", key, value.dump()),
                      "it may ask for another model; remove it if it has no effect");
}

}  // namespace fulmen
