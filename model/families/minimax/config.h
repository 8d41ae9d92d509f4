// MiniMax-01 (arXiv 2501.08313): layers of lightning attention and of softmax attention in a pattern, residuals that go
// on with the norm, experts. transformers has the same names of parameters.
#pragma once

#include <vector>

#include "model/model_config.h"
#include "model/model_family.h"

namespace fulmen {

struct MinimaxConfig final : ModelConfig {
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;             // of softmax layers; 0: as many as heads
  std::int64_t head_width = 0;           // 0: hidden / heads
  std::vector<std::string> layer_types;  // linear or softmax, for each layer
  std::int64_t experts = 0, experts_per_token = 2, expert_glu = 0;
  std::int64_t glu = 0;  // of a dense channel mixer, where there are no experts
  double linear_alpha = 1.0, linear_beta = 1.0, softmax_alpha = 1.0, softmax_beta = 1.0, mlp_alpha = 1.0,
         mlp_beta = 1.0;
  double router_loss = 0.001;
  double rope_theta = 1e6;

  std::int64_t kv() const { return kv_heads > 0 ? kv_heads : heads; }
  std::int64_t width() const { return head_width > 0 ? head_width : hidden / heads; }

  std::string family() const override { return "minimax"; }
  std::unique_ptr<ModelConfig> clone() const override { return std::make_unique<MinimaxConfig>(*this); }
  void bind(Schema& schema) override;
  void check_shares(int shares) const override;
  EmbeddingSpec embedding() const override;
  HeadSpec head() const override;
  std::vector<Branch> layer(std::int64_t layer) const override;

 private:
  void validate_family() const override;
  void add_identity(std::map<std::string, std::string>& identity) const override;
};

ModelFamily minimax_family();

}  // namespace fulmen
