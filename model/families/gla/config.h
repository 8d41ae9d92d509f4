// Gated linear attention (GLA, arXiv 2312.06635): a decay that each token chooses for each channel of the keys. Names
// of parameters are flash-linear-attention's.
#pragma once

#include <vector>

#include "model/model_config.h"
#include "model/model_family.h"

namespace fulmen {

struct GlaConfig final : ModelConfig {
  std::int64_t heads = 0;
  std::int64_t key_width = 0, value_width = 0;  // of all heads; 0: hidden / 2, and hidden
  std::int64_t gate_rank = 16;
  double gate_divisor = 16.0;
  std::int64_t glu = 0;

  std::int64_t keys() const { return key_width > 0 ? key_width : hidden / 2; }
  std::int64_t values() const { return value_width > 0 ? value_width : hidden; }

  std::string family() const override { return "gla"; }
  std::unique_ptr<ModelConfig> clone() const override { return std::make_unique<GlaConfig>(*this); }
  void bind(Schema& schema) override;
  void check_shares(int shares) const override;
  EmbeddingSpec embedding() const override;
  HeadSpec head() const override;
  std::vector<Branch> layer(std::int64_t layer) const override;

 private:
  void validate_family() const override;
  void add_identity(std::map<std::string, std::string>& identity) const override;
};

ModelFamily gla_family();

}  // namespace fulmen
