// TransNormerLLM (arXiv 2307.14995): its sizes, and what its layers are made of.
#pragma once

#include "model/model_config.h"
#include "model/model_family.h"

namespace fulmen {

// The embedding, which is also the projection of the head.
inline constexpr const char* tied_embedding_name = "model.embed_tokens.weight";

struct TransnormerConfig final : ModelConfig {
  std::string variant = "tnl1";  // tnl1: full-rank gate u, SiLU on q and k. tnl3: low-rank sigmoid gate, SiLU on v too
  std::int64_t heads = 0;        // H; the head width is d / H
  std::int64_t glu = 0;          // inner width of the channel mixer
  std::int64_t gate_rank = 0;    // of tnl3's low-rank gate; unused by tnl1
  std::optional<std::vector<std::int64_t>> lrpe_layers;  // whose q and k carry LRPE; not given: layer 0

  std::int64_t head_width() const { return hidden / heads; }
  bool low_rank_gate() const { return variant == "tnl3"; }
  bool has_lrpe(std::int64_t layer) const;

  std::string family() const override { return "transnormer"; }
  std::unique_ptr<ModelConfig> clone() const override { return std::make_unique<TransnormerConfig>(*this); }
  void bind(Schema& schema) override;
  void check_shares(int shares) const override;
  EmbeddingSpec embedding() const override;
  HeadSpec head() const override;
  std::vector<Branch> layer(std::int64_t layer) const override;

 private:
  void validate_family() const override;
  // variant, heads, glu, lrpe_layers; gate_rank for tnl3, and norm_epsilon where it differs from the released models.
  void add_identity(std::map<std::string, std::string>& identity) const override;
};

ModelFamily transnormer_family();

}  // namespace fulmen
