// TransNormerLLM's keys, and what it refuses.
#include "model/families/transnormer/config.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "framework/configuration.h"
#include "framework/text.h"

namespace fulmen {

namespace {

std::string shown(const std::set<std::int64_t>& layers) {
  std::vector<std::string> words;
  for (const std::int64_t layer : layers) words.push_back(std::to_string(layer));
  return fmt::format("[{}]", join(words, ", "));
}

}  // namespace

bool TransnormerConfig::has_lrpe(std::int64_t layer) const {
  return lrpe_layers ? std::ranges::find(*lrpe_layers, layer) != lrpe_layers->end() : layer == 0;
}

void TransnormerConfig::bind(Schema& schema) {
  schema.add("model.variant", variant, {{"tnl1"}, {"tnl3"}},
             "tnl1: full-rank gate, SiLU on q and k (the released 385M, 1B, 7B). tnl3: low-rank sigmoid gate, SiLU on "
             "v too (15B).");
  schema.add("model.heads", heads, {0, 1 << 16}, "Attention heads; they divide `hidden`.");
  schema.add("model.glu", glu, {0, 1 << 22}, "Inner width of the gated linear unit.");
  schema.add("model.gate_rank", gate_rank, {0, 1 << 16}, "Rank of tnl3's gate.");
  schema.add("model.lrpe_layers", lrpe_layers, {0, 100000}, "Layers whose q and k carry LRPE; auto: layer 0.");
  schema.add("model.norm_epsilon", norm_epsilon, {0.0, 1.0}, "Added to the mean square in every norm.");
}

void TransnormerConfig::validate_family() const {
  if (variant != "tnl1" && variant != "tnl3")
    throw UserError("model.variant", fmt::format("'{}' is unknown", variant), "use tnl1 or tnl3");
  require_positive("heads", heads);
  require_positive("glu", glu);
  if (low_rank_gate()) require_positive("gate_rank", gate_rank);
  if (hidden % heads != 0)
    throw UserError("model.heads", fmt::format("{} does not divide hidden {}", heads, hidden),
                    "choose a number of heads that divides the hidden width");
  for (const std::int64_t layer : lrpe_layers.value_or(std::vector<std::int64_t>{}))
    if (layer < 0 || layer >= layers)
      throw UserError("model.lrpe_layers", fmt::format("{} is none of the layers 0 to {}", layer, layers - 1));
}

void TransnormerConfig::add_identity(std::map<std::string, std::string>& identity) const {
  const std::vector<std::int64_t> lrpe = lrpe_layers.value_or(std::vector<std::int64_t>{0});
  identity["variant"] = variant;
  identity["heads"] = std::to_string(heads);
  identity["glu"] = std::to_string(glu);
  identity["lrpe_layers"] = shown({lrpe.begin(), lrpe.end()});
  if (low_rank_gate()) identity["gate_rank"] = std::to_string(gate_rank);
  if (norm_epsilon != TransnormerConfig().norm_epsilon) identity["norm_epsilon"] = fmt::format("{}", norm_epsilon);
}

void TransnormerConfig::check_shares(int shares) const {
  if (heads % shares != 0)
    throw UserError("parallel.tensor", fmt::format("{} tensor ranks do not divide {} heads", shares, heads),
                    "choose a number that divides model.heads");
}

EmbeddingSpec TransnormerConfig::embedding() const {
  return {tied_embedding_name, std::sqrt(static_cast<double>(hidden))};
}

}  // namespace fulmen
