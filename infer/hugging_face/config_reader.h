// The keys of a config.json, with errors that name the file. A heavy header: include it in .cpp files only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include <nlohmann/json.hpp>

namespace fulmen {

class ConfigReader {
 public:
  // Throws UserError for a file that is no JSON object.
  explicit ConfigReader(const std::filesystem::path& path);

  const std::string& where() const { return where_; }
  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }
  const nlohmann::json& value(const char* key) const { return json_[key]; }

  // Throw UserError naming the key where it is of another type, or missing and nothing stands for it.
  std::int64_t integer(const char* key) const;
  double number(const char* key, double otherwise) const;
  // Throws UserError where the key has another value than the only one that is supported.
  void require(const char* key, const nlohmann::json& wanted) const;

 private:
  std::string where_;
  nlohmann::json json_;
};

}  // namespace fulmen
