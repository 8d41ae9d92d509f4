// The keys of a config.json.
#include "infer/hugging_face/config_reader.h"

#include "framework/error.h"
#include "framework/files.h"
#include "framework/json_document.h"

namespace fulmen {

ConfigReader::ConfigReader(const std::filesystem::path& path)
    : where_(path.string()), json_(parse_json_object(read_document(path), where_)) {}

std::int64_t ConfigReader::integer(const char* key) const {
  if (!json_.contains(key))
    throw UserError(where_, fmt::format("has no {}", key), "it is not the config.json of such a model");
  const nlohmann::json& value = json_[key];
  if (!value.is_number_integer()) throw UserError(where_, fmt::format("{} is not an integer", key));
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > std::uint64_t{INT64_MAX})
    throw UserError(where_, fmt::format("{} is {}, which no model has", key, value.dump()));
  return value.get<std::int64_t>();
}

double ConfigReader::number(const char* key, double otherwise) const {
  if (!json_.contains(key)) return otherwise;
  if (!json_[key].is_number()) throw UserError(where_, fmt::format("{} is not a number", key));
  return json_[key].get<double>();
}

void ConfigReader::require(const char* key, const nlohmann::json& wanted) const {
  if (json_.contains(key) && json_[key] != wanted)
    throw UserError(where_, fmt::format("{} is {}; only {} is supported", key, json_[key].dump(), wanted.dump()));
}

}  // namespace fulmen
