// GPT-1 and GPT-2: LayerNorm with gain and bias, learned positions, biases everywhere, GELU. transformers has the same
// names of parameters and the same order of dimensions, [in, out].
#pragma once

#include <vector>

#include "model/model_config.h"
#include "model/model_family.h"

namespace fulmen {

struct GptConfig final : ModelConfig {
  std::int64_t heads = 0;
  std::int64_t ffn = 0;  // 0: 4 hidden
  std::int64_t positions = 1024;
  std::string norm_place = "before";  // of each branch, and a norm at the end (GPT-2); or after it (GPT-1)

  GptConfig() { norm_epsilon = 1e-5; }
  std::int64_t inner() const { return ffn > 0 ? ffn : 4 * hidden; }
  bool norms_after() const { return norm_place == "after"; }

  std::string family() const override { return "gpt"; }
  std::unique_ptr<ModelConfig> clone() const override { return std::make_unique<GptConfig>(*this); }
  void bind(Schema& schema) override;
  void check_shares(int shares) const override;
  EmbeddingSpec embedding() const override;
  HeadSpec head() const override;
  std::vector<Branch> layer(std::int64_t layer) const override;

 private:
  void validate_family() const override;
  void add_identity(std::map<std::string, std::string>& identity) const override;
};

ModelFamily gpt_family();

}  // namespace fulmen
