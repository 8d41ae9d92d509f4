// GLA's layers.
#include "model/branch.h"
#include "model/families/gla/config.h"
#include "model/mixers/channel_gated_attention.h"
#include "model/mixers/gated_linear_unit.h"

namespace fulmen {

namespace {

Norm norm_with_gain(const GlaConfig& config, const std::string& name) {
  return {config.norm_epsilon, NormKind::rms, {declare_norm_weight(name, config.hidden, 1.0)}};
}

}  // namespace

HeadSpec GlaConfig::head() const { return {norm_with_gain(*this, "model.norm.weight"), "lm_head.weight"}; }

std::vector<Branch> GlaConfig::layer(std::int64_t layer) const {
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  return {
      channel_gated_attention(prefix + "attn.", {.hidden = hidden,
                                                 .heads = heads,
                                                 .keys = keys(),
                                                 .values = values(),
                                                 .gate_rank = gate_rank,
                                                 .gate_divisor = gate_divisor,
                                                 .norm = norm_with_gain(*this, prefix + "attn_norm.weight"),
                                                 .head_norm_epsilon = norm_epsilon,
                                                 .initializer_std = initializer_std}),
      gated_linear_unit(prefix + "mlp.gate_proj.weight", prefix + "mlp.up_proj.weight", prefix + "mlp.down_proj.weight",
                        {.hidden = hidden,
                         .width = glu,
                         .activation = Activation::silu,
                         .norm = norm_with_gain(*this, prefix + "mlp_norm.weight"),
                         .initializer_std = initializer_std})};
}

}  // namespace fulmen
