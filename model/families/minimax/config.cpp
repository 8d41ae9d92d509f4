// MiniMax's keys, and what it refuses.
#include "model/families/minimax/config.h"

#include <algorithm>

#include "framework/configuration.h"
#include "framework/text.h"
#include "model/families/attention_keys.h"

namespace fulmen {

void MinimaxConfig::bind(Schema& schema) {
  schema.add("model.heads", heads, {0, 1 << 16}, "Heads of the queries, and of linear layers.");
  schema.add("model.kv_heads", kv_heads, {0, 1 << 16},
             "Heads of keys and values in softmax layers; 0: as many as `heads`.");
  schema.add("model.head_width", head_width, {0, 1 << 16}, "Width of a head; 0: `hidden` / `heads`.");
  schema.add("model.layer_types", layer_types, {{"linear"}, {"softmax"}}, "The token mixer of each layer.");
  schema.add("model.experts", experts, {0, 1 << 16}, "Experts of a layer; 0: a dense channel mixer of width `glu`.");
  schema.add("model.experts_per_token", experts_per_token, {1, 1 << 10}, "Experts that a token passes through.");
  schema.add("model.expert_glu", expert_glu, {0, 1 << 22}, "Inner width of an expert.");
  schema.add("model.glu", glu, {0, 1 << 22}, "Inner width of a dense channel mixer.");
  const Range<double> scales{-1e6, 1e6};
  schema.add("model.linear_alpha", linear_alpha, scales, "Factor of the normed input behind a linear token mixer.");
  schema.add("model.linear_beta", linear_beta, scales, "Factor of a linear token mixer's output.");
  schema.add("model.softmax_alpha", softmax_alpha, scales, "Factor of the normed input behind a softmax token mixer.");
  schema.add("model.softmax_beta", softmax_beta, scales, "Factor of a softmax token mixer's output.");
  schema.add("model.mlp_alpha", mlp_alpha, scales, "Factor of the normed input behind a channel mixer.");
  schema.add("model.mlp_beta", mlp_beta, scales, "Factor of a channel mixer's output.");
  schema.add("model.router_loss", router_loss, {0.0, 1e3},
             "Factor of the routers' loss, the mean over layers and samples.");
  schema.add("model.rope_theta", rope_theta, {1.0, 1e12}, "Base of the rotary frequencies in softmax layers.");
  schema.add("model.norm_epsilon", norm_epsilon, {0.0, 1.0}, "Added to the mean square in the norms of the stream.");
}

void MinimaxConfig::validate_family() const {
  require_positive("heads", heads);
  check_heads(hidden, heads, kv(), head_width);
  if (static_cast<std::int64_t>(layer_types.size()) != layers)
    throw UserError("model.layer_types", fmt::format("names {} layers, the model has {}", layer_types.size(), layers),
                    "name the token mixer of each layer");
  for (const std::string& type : layer_types)
    if (type != "linear" && type != "softmax")
      throw UserError("model.layer_types", fmt::format("'{}' is unknown", type), "use linear or softmax");
  if (width() % 2 != 0)
    throw UserError("model.head_width", fmt::format("{} is odd: rotary positions turn pairs", width()));
  if (rope_theta <= 1.0) throw UserError("model.rope_theta", fmt::format("{} is not above 1", rope_theta));
  if (experts == 0) return require_positive("glu", glu);
  require_positive("expert_glu", expert_glu);
  if (glu != 0)
    throw UserError("model.glu", "is of a dense channel mixer, and there are experts", "leave one of the two out");
  if (experts_per_token > experts)
    throw UserError("model.experts_per_token", fmt::format("{} of {} experts", experts_per_token, experts),
                    "choose at most model.experts");
}

void MinimaxConfig::add_identity(std::map<std::string, std::string>& identity) const {
  identity["heads"] = std::to_string(heads);
  identity["kv_heads"] = std::to_string(kv());
  identity["head_width"] = std::to_string(width());
  identity["layer_types"] = fmt::format("[{}]", join(layer_types, ", "));
  identity["experts"] = std::to_string(experts);
  if (experts > 0) {
    identity["experts_per_token"] = std::to_string(experts_per_token);
    identity["expert_glu"] = std::to_string(expert_glu);
    identity["router_loss"] = fmt::format("{}", router_loss);
  } else {
    identity["glu"] = std::to_string(glu);
  }
  identity["linear_alpha"] = fmt::format("{}", linear_alpha);
  identity["linear_beta"] = fmt::format("{}", linear_beta);
  identity["softmax_alpha"] = fmt::format("{}", softmax_alpha);
  identity["softmax_beta"] = fmt::format("{}", softmax_beta);
  identity["mlp_alpha"] = fmt::format("{}", mlp_alpha);
  identity["mlp_beta"] = fmt::format("{}", mlp_beta);
  identity["rope_theta"] = fmt::format("{}", rope_theta);
  identity["norm_epsilon"] = fmt::format("{}", norm_epsilon);
}

void MinimaxConfig::check_shares(int shares) const { check_head_shares(heads, kv(), shares); }

EmbeddingSpec MinimaxConfig::embedding() const { return {"model.embed_tokens.weight"}; }

}  // namespace fulmen
