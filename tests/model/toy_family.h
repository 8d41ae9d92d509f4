// A family that only tests know. Its layers lean on the executor of branches in every way that TransNormerLLM's do not.
// They have a halo, vector parameters, a norm with a gain, a state that grows, and a tensor carried to later layers.
// Ranks own stacks of parameters in parts, which have a clip group and a learning rate of their own. The family also
// has a loss of its own, and a head that is not tied.
#pragma once

#include "model/model_config.h"

namespace fulmen {

constexpr const char* toy_clip_group = "stacks";

struct ToyConfig final : ModelConfig {
  std::int64_t heads = 6;
  std::int64_t items = 6;   // of the stacks
  std::int64_t inner = 10;  // width of an item
  double balance = 0.05;    // weight of the layers' loss

  std::string family() const override { return "toy"; }
  std::unique_ptr<ModelConfig> clone() const override { return std::make_unique<ToyConfig>(*this); }
  void bind(Schema& schema) override;
  void check_shares(int shares) const override;
  EmbeddingSpec embedding() const override { return {"toy.embedding"}; }
  HeadSpec head() const override;
  std::vector<Branch> layer(std::int64_t layer) const override;

 private:
  void validate_family() const override;
  void add_identity(std::map<std::string, std::string>& identity) const override;
};

}  // namespace fulmen
