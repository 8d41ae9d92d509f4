// Shared by the configurations of all families: validation, and their identity in checkpoints.
#include "model/model_config.h"

#include "framework/configuration.h"
#include "model/model_section.h"

namespace fulmen {

void ModelConfig::require_positive(const char* key, std::int64_t value) {
  if (value > 0) return;
  throw UserError(fmt::format("model.{}", key), value == 0 ? "is not given" : fmt::format("{} is less than 1", value),
                  "name a model.preset or spell the model out");
}

void ModelConfig::validate() const {
  require_positive("layers", layers);
  require_positive("hidden", hidden);
  require_positive("vocabulary", vocabulary);
  if (!(norm_epsilon > 0.0))
    throw UserError("model.norm_epsilon", fmt::format("{} is not positive", norm_epsilon),
                    "without it a row of zeros has no norm: the released models use 1e-6");
  if (pad_id && (*pad_id < 0 || *pad_id >= vocabulary))
    throw UserError("model.pad_id", fmt::format("{} is not in the vocabulary of {}", *pad_id, vocabulary));
  validate_family();
}

std::map<std::string, std::string> ModelConfig::identity() const {
  std::map<std::string, std::string> identity = {
      {"family", family()},
      {"layers", std::to_string(layers)},
      {"hidden", std::to_string(hidden)},
      {"vocabulary", std::to_string(vocabulary)},
  };
  add_identity(identity);
  return identity;
}

namespace {

std::shared_ptr<const ModelConfig> read_identity(const std::map<std::string, std::string>& identity) {
  const auto given = [&](const char* key) {
    const auto found = identity.find(key);
    return found == identity.end() ? std::string() : found->second;
  };
  std::map<std::string, std::string> keys;
  for (const auto& [key, value] : identity) keys["model." + key] = value;
  Schema schema;
  const ModelSection section(schema, given("family"), given("preset"));
  schema.parse(keys);
  for (const auto& [key, value] : section.config().identity())
    if (!identity.contains(key))
      throw UserError("", fmt::format("does not say model.{}", key),
                      "it was not written by this program, or is damaged");
  return section.validated();
}

}  // namespace

std::shared_ptr<const ModelConfig> ModelConfig::from_identity(const std::map<std::string, std::string>& identity,
                                                              const std::string& source) {
  try {
    return read_identity(identity);
  } catch (const UserError& error) {
    throw UserError(source, fmt::format("its description of the model: {}", error.what()));
  }
}

void check_length(const ModelConfig& config, std::int64_t length, const std::string& key) {
  const EmbeddingSpec embedding = config.embedding();
  if (embedding.positions.empty() || length <= embedding.most_positions) return;
  throw UserError(key,
                  fmt::format("{} tokens, and the model has {} learned positions", length, embedding.most_positions),
                  "use shorter texts, or train a model with a larger model.positions");
}

}  // namespace fulmen
