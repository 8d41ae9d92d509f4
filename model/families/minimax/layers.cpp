// MiniMax's layers.
#include "kernels/rotation.h"
#include "model/branch.h"
#include "model/families/minimax/config.h"
#include "model/mixers/experts.h"
#include "model/mixers/gated_linear_unit.h"
#include "model/mixers/lightning_attention.h"
#include "model/mixers/softmax_attention.h"

namespace fulmen {

namespace {

Norm norm_with_gain(const MinimaxConfig& config, const std::string& name) {
  return {config.norm_epsilon, NormKind::rms, {declare_norm_weight(name, config.hidden, 1.0)}};
}

Branch token_mixer(const MinimaxConfig& config, std::int64_t layer, const std::string& prefix) {
  const std::int64_t hidden = config.hidden, heads = config.heads, width = config.width(), kv = config.kv();
  const Norm norm = norm_with_gain(config, prefix + "input_layernorm.weight");
  const std::string attention = prefix + "self_attn.";
  if (config.layer_types[static_cast<std::size_t>(layer)] == "linear")
    return lightning_attention(attention, {.hidden = hidden,
                                           .heads = heads,
                                           .head_width = width,
                                           .norm = norm,
                                           .junction = {true, config.linear_alpha, config.linear_beta},
                                           .slopes = lightning_slopes(heads, layer, config.layers),
                                           .initializer_std = config.initializer_std});
  const Initializer normal = normal_initializer(config.initializer_std);
  return softmax_attention(
      {.hidden = hidden,
       .head_width = width,
       .norm = norm,
       .junction = {true, config.softmax_alpha, config.softmax_beta},
       .projections = declare_joined(attention + "qkv_proj.weight",
                                     {{attention + "q_proj.weight", heads * width, heads},
                                      {attention + "k_proj.weight", kv * width, kv, true},
                                      {attention + "v_proj.weight", kv * width, kv, true}},
                                     hidden, normal),
       .out = declare_weight(attention + "o_proj.weight", {hidden, heads * width}, normal, 1, heads),
       .frequencies = rotary_frequencies(config.rope_theta, width)});
}

Branch channel_mixer(const MinimaxConfig& config, const std::string& prefix) {
  const Norm norm = norm_with_gain(config, prefix + "post_attention_layernorm.weight");
  const Junction junction{true, config.mlp_alpha, config.mlp_beta};
  const std::string mlp = prefix + "mlp.";
  if (config.experts == 0)
    return gated_linear_unit(mlp + "gate_proj.weight", mlp + "up_proj.weight", mlp + "down_proj.weight",
                             {.hidden = config.hidden,
                              .width = config.glu,
                              .activation = Activation::silu,
                              .norm = norm,
                              .junction = junction,
                              .initializer_std = config.initializer_std});
  return experts(mlp + "gate.weight", mlp + "experts.gate_up_proj", mlp + "experts.down_proj",
                 {.hidden = config.hidden,
                  .inner = config.expert_glu,
                  .experts = config.experts,
                  .chosen = config.experts_per_token,
                  .norm = norm,
                  .junction = junction,
                  .router_loss = config.router_loss / static_cast<double>(config.layers),
                  .initializer_std = config.initializer_std});
}

}  // namespace

HeadSpec MinimaxConfig::head() const { return {norm_with_gain(*this, "model.norm.weight"), "lm_head.weight"}; }

std::vector<Branch> MinimaxConfig::layer(std::int64_t layer) const {
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  return {token_mixer(*this, layer, prefix), channel_mixer(*this, prefix)};
}

}  // namespace fulmen
