// GLA's keys, and what it refuses.
#include "model/families/gla/config.h"

#include "framework/configuration.h"
#include "framework/text.h"
#include "model/families/attention_keys.h"

namespace fulmen {

void GlaConfig::bind(Schema& schema) {
  schema.add("model.heads", heads, {0, 1 << 16}, "Heads; they divide `key_width` and `value_width`.");
  schema.add("model.key_width", key_width, {0, 1 << 21}, "Width of the keys of all heads; 0: half of `hidden`.");
  schema.add("model.value_width", value_width, {0, 1 << 21}, "Width of the values of all heads; 0: `hidden`.");
  schema.add("model.gate_rank", gate_rank, {1, 1 << 20}, "Rank of the gate that chooses the decays.");
  schema.add("model.gate_divisor", gate_divisor, {1e-6, 1e6}, "Divides the logarithms of the decays.");
  schema.add("model.glu", glu, {0, 1 << 22}, "Inner width of the gated linear unit.");
  schema.add("model.norm_epsilon", norm_epsilon, {0.0, 1.0}, "Added to the mean square in the norms.");
}

void GlaConfig::validate_family() const {
  require_positive("heads", heads);
  require_positive("glu", glu);
  const auto require_multiple = [&](const char* key, std::int64_t width) {
    if (width % heads != 0)
      throw UserError(fmt::format("model.{}", key), fmt::format("{} heads do not divide {}", heads, width),
                      "choose a multiple of model.heads");
  };
  require_multiple("key_width", keys());
  require_multiple("value_width", values());
}

void GlaConfig::add_identity(std::map<std::string, std::string>& identity) const {
  identity["heads"] = std::to_string(heads);
  identity["key_width"] = std::to_string(keys());
  identity["value_width"] = std::to_string(values());
  identity["gate_rank"] = std::to_string(gate_rank);
  identity["gate_divisor"] = fmt::format("{}", gate_divisor);
  identity["glu"] = std::to_string(glu);
  identity["norm_epsilon"] = fmt::format("{}", norm_epsilon);
}

void GlaConfig::check_shares(int shares) const { check_head_shares(heads, heads, shares); }

EmbeddingSpec GlaConfig::embedding() const { return {"model.embeddings.weight"}; }

}  // namespace fulmen
