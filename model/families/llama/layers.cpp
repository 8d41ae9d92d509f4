// The layers of the LLaMA family.
#include "kernels/rotation.h"
#include "model/branch.h"
#include "model/families/llama/config.h"
#include "model/mixers/gated_linear_unit.h"
#include "model/mixers/softmax_attention.h"

namespace fulmen {

namespace {

Norm norm_with_gain(const LlamaConfig& config, const std::string& name) {
  return {config.norm_epsilon, NormKind::rms, {declare_norm_weight(name, config.hidden, 1.0)}};
}

}  // namespace

std::vector<double> LlamaConfig::frequencies() const {
  std::vector<double> plain = rotary_frequencies(rope_theta, width());
  if (rope_type == "default") return plain;
  return scale_frequencies(std::move(plain), {rope_factor, rope_low_frequency_factor, rope_high_frequency_factor,
                                              static_cast<double>(rope_original_length)});
}

HeadSpec LlamaConfig::head() const {
  return {norm_with_gain(*this, "model.norm.weight"), tied_head ? "model.embed_tokens.weight" : "lm_head.weight"};
}

std::vector<Branch> LlamaConfig::layer(std::int64_t layer) const {
  const std::string prefix = fmt::format("model.layers.{}.", layer), attention = prefix + "self_attn.";
  const Initializer normal = normal_initializer(initializer_std);
  const std::int64_t queries = heads * width(), keys = kv() * width();
  return {
      softmax_attention({.hidden = hidden,
                         .head_width = width(),
                         .norm = norm_with_gain(*this, prefix + "input_layernorm.weight"),
                         .projections = declare_joined(attention + "qkv_proj.weight",
                                                       {{attention + "q_proj.weight", queries, heads},
                                                        {attention + "k_proj.weight", keys, kv(), true},
                                                        {attention + "v_proj.weight", keys, kv(), true}},
                                                       hidden, normal),
                         .out = declare_weight(attention + "o_proj.weight", {hidden, queries}, normal, 1, heads),
                         .frequencies = frequencies()}),
      gated_linear_unit(prefix + "mlp.gate_proj.weight", prefix + "mlp.up_proj.weight", prefix + "mlp.down_proj.weight",
                        {.hidden = hidden,
                         .width = glu,
                         .activation = Activation::silu,
                         .norm = norm_with_gain(*this, prefix + "post_attention_layernorm.weight"),
                         .initializer_std = initializer_std})};
}

}  // namespace fulmen
