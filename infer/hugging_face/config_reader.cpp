// The keys of a config.json.
#include "infer/hugging_face/config_reader.h"

#include "framework/error.h"
#include "framework/files.h"
#include "infer/json_document.h"

namespace fulmen {

ConfigReader::ConfigReader(const std::filesystem::path& path)
    : where_(path.string()), json_(parse_json_object(read_text(path), where_)) {}

std::int64_t ConfigReader::integer(const char* key) const {
  if (!json_.contains(key))
    throw UserError(where_, fmt::format("has no {}", key), "it is not the config.json of such a model");
  if (!json_[key].is_number_integer()) throw UserError(where_, fmt::format("{} is not an integer", key));
  return json_[key].get<std::int64_t>();
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
