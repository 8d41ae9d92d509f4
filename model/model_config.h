// The definition of a model. A family (model/families/) derives its configuration from ModelConfig and says there
// which keys it has, what it refuses and what its layers are made of.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "framework/error.h"
#include "model/model_ends.h"

namespace fulmen {

class Schema;
struct Branch;

struct ModelConfig {
  std::string preset;  // the name it came from, or empty
  std::int64_t layers = 0;
  std::int64_t hidden = 0;  // d
  std::int64_t vocabulary = 0;
  double norm_epsilon = 1e-6;
  double initializer_std = 0.02;
  std::optional<std::int64_t> pad_id;  // this row of the embedding starts as zero

  virtual ~ModelConfig() = default;
  virtual std::string family() const = 0;
  virtual std::unique_ptr<ModelConfig> clone() const = 0;

  // Binds the family's own keys, "model.NAME", to their fields; model/model_section.h binds the common keys.
  virtual void bind(Schema& schema) = 0;
  // Throws UserError naming the key when sizes are missing or do not fit each other.
  void validate() const;
  // The values that a checkpoint must agree on, as keys of the section `model` with their values in YAML. They are
  // family, layers, hidden, vocabulary, and the family's own.
  std::map<std::string, std::string> identity() const;
  // The reverse. Throws UserError (naming `source`) when a value is missing, malformed or does not fit the others.
  static std::shared_ptr<const ModelConfig> from_identity(const std::map<std::string, std::string>& identity,
                                                          const std::string& source);

  // Throws UserError naming parallel.tensor when a layer cannot be cut into so many shares, a share for each tensor
  // rank.
  virtual void check_shares(int shares) const = 0;
  virtual EmbeddingSpec embedding() const = 0;
  virtual HeadSpec head() const = 0;
  bool tied() const { return head().projection == embedding().name; }
  // The residual branches of a layer, in order.
  virtual std::vector<Branch> layer(std::int64_t layer) const = 0;

 protected:
  // For copies of whole configurations only.
  ModelConfig() = default;
  ModelConfig(const ModelConfig&) = default;
  ModelConfig& operator=(const ModelConfig&) = default;

  // Throws UserError naming model.KEY when a size is less than 1.
  static void require_positive(const char* key, std::int64_t value);
  // The family's part of validate(), once the sizes above are known to be good.
  virtual void validate_family() const = 0;
  virtual void add_identity(std::map<std::string, std::string>& identity) const = 0;
};

// The configuration as its family knows it. One of another family is a defect of the program.
template <class FamilyConfig>
const FamilyConfig& as(const ModelConfig& config) {
  const auto* own = dynamic_cast<const FamilyConfig*>(&config);
  FULMEN_CHECK(own != nullptr, "a model of the family {} where another was expected", config.family());
  return *own;
}

// Throws UserError naming `key` when texts of so many tokens are longer than the model has positions.
void check_length(const ModelConfig& config, std::int64_t length, const std::string& key);

// Parameters of the model, tied parameters once, as its declarations have them.
std::int64_t parameter_count(const ModelConfig& config);

}  // namespace fulmen
