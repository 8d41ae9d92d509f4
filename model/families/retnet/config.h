// RetNet (arXiv 2307.08621): retention, a linear attention with a fixed decay for each head, a norm of each head, a
// SiLU gate. Names of parameters are torchscale's.
#pragma once

#include <vector>

#include "model/model_config.h"
#include "model/model_family.h"

namespace fulmen {

struct RetnetConfig final : ModelConfig {
  std::int64_t heads = 0;
  std::int64_t value_width = 0;  // of all heads; 0: 2 hidden
  std::int64_t glu = 0;
  double head_norm_epsilon = 1e-6;
  bool head_norm_gain = false;  // shared by all heads
  bool scale_embedding = false;
  std::string rotation = "torchscale";  // or rope, as flash-linear-attention has it

  std::int64_t values() const { return value_width > 0 ? value_width : 2 * hidden; }

  std::string family() const override { return "retnet"; }
  std::unique_ptr<ModelConfig> clone() const override { return std::make_unique<RetnetConfig>(*this); }
  void bind(Schema& schema) override;
  void check_shares(int shares) const override;
  EmbeddingSpec embedding() const override;
  HeadSpec head() const override;
  std::vector<Branch> layer(std::int64_t layer) const override;

 private:
  void validate_family() const override;
  void add_identity(std::map<std::string, std::string>& identity) const override;
};

ModelFamily retnet_family();

}  // namespace fulmen
