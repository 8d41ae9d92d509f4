// RetNet's layers.
#include "model/branch.h"
#include "model/families/retnet/config.h"
#include "model/mixers/gated_linear_unit.h"
#include "model/mixers/retention.h"

namespace fulmen {

namespace {

Norm norm_with_gain(const RetnetConfig& config, const std::string& name) {
  return {config.norm_epsilon, NormKind::rms, {declare_norm_weight(name, config.hidden, 1.0)}};
}

}  // namespace

HeadSpec RetnetConfig::head() const { return {norm_with_gain(*this, "layer_norm.weight"), "output_projection.weight"}; }

std::vector<Branch> RetnetConfig::layer(std::int64_t layer) const {
  const std::string prefix = fmt::format("layers.{}.", layer);
  return {retention(prefix + "retention.", {.hidden = hidden,
                                            .heads = heads,
                                            .values = values(),
                                            .norm = norm_with_gain(*this, prefix + "retention_layer_norm.weight"),
                                            .rope = rotation == "rope",
                                            .head_norm_epsilon = head_norm_epsilon,
                                            .head_norm_gain = head_norm_gain,
                                            .initializer_std = initializer_std}),
          gated_linear_unit(prefix + "ffn.fc1.weight", prefix + "ffn.gate.weight", prefix + "ffn.fc2.weight",
                            {.hidden = hidden,
                             .width = glu,
                             .activation = Activation::silu,
                             .norm = norm_with_gain(*this, prefix + "final_layer_norm.weight"),
                             .initializer_std = initializer_std})};
}

}  // namespace fulmen
