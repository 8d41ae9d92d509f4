// RetNet's keys, and what it refuses.
#include "model/families/retnet/config.h"

#include <cmath>

#include "framework/configuration.h"
#include "framework/text.h"
#include "model/families/attention_keys.h"

namespace fulmen {

void RetnetConfig::bind(Schema& schema) {
  schema.add("model.heads", heads, {0, 1 << 16}, "Heads; they divide `hidden` and `value_width`.");
  schema.add("model.value_width", value_width, {0, 1 << 21}, "Width of the values of all heads; 0: 2 `hidden`.");
  schema.add("model.glu", glu, {0, 1 << 22}, "Inner width of the gated linear unit.");
  schema.add("model.norm_epsilon", norm_epsilon, {0.0, 1.0}, "Added to the mean square in the norms of the stream.");
  schema.add("model.head_norm_epsilon", head_norm_epsilon, {0.0, 1.0}, "The same in the norm of each head.");
  schema.add("model.head_norm_gain", head_norm_gain,
             "Whether the norm of a head has a gain, shared by all heads (flash-linear-attention).");
  schema.add("model.scale_embedding", scale_embedding, "Whether embeddings are multiplied by the root of `hidden`.");
  schema.add(
      "model.rotation", rotation, {{"torchscale"}, {"rope"}},
      "torchscale: frequencies from 1 to 1/10000, neighbours are pairs. rope: as LLaMA (flash-linear-attention).");
}

void RetnetConfig::validate_family() const {
  require_positive("heads", heads);
  require_positive("glu", glu);
  check_heads(hidden, heads, heads, 0);
  if (values() % heads != 0)
    throw UserError("model.value_width", fmt::format("{} heads do not divide {}", heads, values()),
                    "choose a multiple of model.heads");
  if (hidden / heads % 2 != 0 || hidden / heads < 4)
    throw UserError("model.heads", fmt::format("heads of width {} cannot be rotated", hidden / heads),
                    "choose a number of heads with an even width of at least 4");
  if (rotation != "torchscale" && rotation != "rope")
    throw UserError("model.rotation", fmt::format("'{}' is unknown", rotation), "use torchscale or rope");
}

void RetnetConfig::add_identity(std::map<std::string, std::string>& identity) const {
  identity["heads"] = std::to_string(heads);
  identity["value_width"] = std::to_string(values());
  identity["glu"] = std::to_string(glu);
  identity["norm_epsilon"] = fmt::format("{}", norm_epsilon);
  identity["head_norm_epsilon"] = fmt::format("{}", head_norm_epsilon);
  identity["head_norm_gain"] = head_norm_gain ? "true" : "false";
  identity["scale_embedding"] = scale_embedding ? "true" : "false";
  identity["rotation"] = rotation;
}

void RetnetConfig::check_shares(int shares) const { check_head_shares(heads, heads, shares); }

EmbeddingSpec RetnetConfig::embedding() const {
  return {"embed_tokens.weight", scale_embedding ? std::sqrt(static_cast<double>(hidden)) : 1.0};
}

}  // namespace fulmen
