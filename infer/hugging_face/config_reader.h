// The keys of a config.json, with errors that name the file. A heavy header: include it in .cpp files only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace fulmen {

// Remembers which keys were asked for. A key with the value null is as good as absent.
class ConfigReader {
 public:
  // Throws UserError for a file that is no JSON object. Python's Infinity is read, bare or as {"__float__":
  // "Infinity"}.
  explicit ConfigReader(const std::filesystem::path& path);

  const std::string& where() const { return where_; }
  bool has(const std::string& key) const;
  const nlohmann::json& value(const std::string& key) const;

  // Throw UserError naming the key where it is of another type, or missing and nothing stands for it.
  std::int64_t integer(const std::string& key) const;
  std::int64_t integer(const std::string& key, std::int64_t otherwise) const;
  double number(const std::string& key, double otherwise) const;
  bool boolean(const std::string& key, bool otherwise) const;
  std::vector<double> numbers(const std::string& key) const;
  std::vector<std::string> texts(const std::string& key) const;
  // An object in this object.
  ConfigReader section(const std::string& key) const;
  // Throws UserError where the key has another value than the only supported value.
  void require(const std::string& key, const nlohmann::json& wanted) const;
  // Keys without effect on what Fulmen computes.
  void pass_over(std::initializer_list<const char*> keys) const;
  // Throws UserError naming the first key that nobody asked for: it might change the model.
  void refuse_others() const;

 private:
  ConfigReader(std::string where, nlohmann::json json) : where_(std::move(where)), json_(std::move(json)) {}

  std::string where_;
  nlohmann::json json_;
  mutable std::set<std::string> asked_;
};

}  // namespace fulmen
