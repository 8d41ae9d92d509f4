// The LLaMA family of Transformers (arXiv 2302.13971; grouped queries: arXiv 2305.13245): RMSNorm, rotary positions,
// SwiGLU. transformers has the same names of parameters.
#pragma once

#include <vector>

#include "model/model_config.h"
#include "model/model_family.h"

namespace fulmen {

struct LlamaConfig final : ModelConfig {
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;    // of keys and values; 0: as many as heads
  std::int64_t head_width = 0;  // 0: hidden / heads
  std::int64_t glu = 0;
  double rope_theta = 10000.0;
  std::string rope_type = "default";  // or llama3, with the four numbers below
  double rope_factor = 8.0, rope_low_frequency_factor = 1.0, rope_high_frequency_factor = 4.0;
  std::int64_t rope_original_length = 8192;
  bool tied_head = false;

  std::int64_t kv() const { return kv_heads > 0 ? kv_heads : heads; }
  std::int64_t width() const { return head_width > 0 ? head_width : hidden / heads; }
  std::vector<double> frequencies() const;

  std::string family() const override { return "llama"; }
  std::unique_ptr<ModelConfig> clone() const override { return std::make_unique<LlamaConfig>(*this); }
  void bind(Schema& schema) override;
  void check_shares(int shares) const override;
  EmbeddingSpec embedding() const override;
  HeadSpec head() const override;
  std::vector<Branch> layer(std::int64_t layer) const override;

 private:
  void validate_family() const override;
  void add_identity(std::map<std::string, std::string>& identity) const override;
};

ModelFamily llama_family();

}  // namespace fulmen
