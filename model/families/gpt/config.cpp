// GPT's keys, and what it refuses.
#include "model/families/gpt/config.h"

#include "framework/configuration.h"
#include "framework/text.h"
#include "model/families/attention_keys.h"

namespace fulmen {

void GptConfig::bind(Schema& schema) {
  schema.add("model.heads", heads, {0, 1 << 16}, "Attention heads; they divide `hidden`.");
  schema.add("model.ffn", ffn, {0, 1 << 22}, "Inner width of the feed-forward network; 0: 4 `hidden`.");
  schema.add("model.positions", positions, {1, 1 << 24},
             "Learned positions. They run on across the documents of a sample; longer samples are refused.");
  schema.add("model.norm_epsilon", norm_epsilon, {0.0, 1.0}, "Added to the variance in every norm.");
  schema.add("model.norm_place", norm_place, {{"before"}, {"after"}},
             "before: of each branch, and a norm at the end (GPT-2). after: of each sum (GPT-1).");
}

void GptConfig::validate_family() const {
  require_positive("heads", heads);
  check_heads(hidden, heads, heads, 0);
  if (norm_place != "before" && norm_place != "after")
    throw UserError("model.norm_place", fmt::format("'{}' is unknown", norm_place), "use before or after");
}

void GptConfig::add_identity(std::map<std::string, std::string>& identity) const {
  identity["heads"] = std::to_string(heads);
  identity["ffn"] = std::to_string(inner());
  identity["positions"] = std::to_string(positions);
  identity["norm_epsilon"] = fmt::format("{}", norm_epsilon);
  identity["norm_place"] = norm_place;
}

void GptConfig::check_shares(int shares) const { check_head_shares(heads, heads, shares); }

EmbeddingSpec GptConfig::embedding() const {
  const std::string prefix = "transformer.";
  return {.name = prefix + (norms_after() ? "tokens_embed.weight" : "wte.weight"),
          .positions = prefix + (norms_after() ? "positions_embed.weight" : "wpe.weight"),
          .most_positions = positions};
}

}  // namespace fulmen
