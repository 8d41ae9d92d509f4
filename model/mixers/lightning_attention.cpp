// MiniMax-01's linear token mixer.
#include "model/mixers/lightning_attention.h"

#include <cmath>

#include "model/operations/decay_attention.h"
#include "model/operations/gated_norm.h"

namespace fulmen {

std::vector<double> lightning_slopes(std::int64_t heads, std::int64_t layer, std::int64_t layers) {
  const double depth = static_cast<double>(layer) / (static_cast<double>(layers - 1) + 1e-5);
  std::vector<double> slopes;
  for (std::int64_t h = 0; h < heads; ++h)
    slopes.push_back(std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads)) * (1.0 - depth + 1e-5));
  return slopes;
}

Branch lightning_attention(const std::string& prefix, const LightningAttentionOptions& options) {
  const std::int64_t hidden = options.hidden, heads = options.heads, width = heads * options.head_width;
  const Initializer normal = normal_initializer(options.initializer_std);
  BranchBuilder b(hidden);
  b.join(options.junction);
  const auto p = b.project(b.normed(options.norm),
                           {declare_weight(prefix + "qkv_proj.weight", {3 * width, hidden}, normal, 0, heads),
                            declare_weight(prefix + "output_gate.weight", {width, hidden}, normal, 0, heads)});
  const auto attention = std::make_shared<DecayAttention>(DecayAttentionOptions{.key_width = options.head_width,
                                                                                .value_width = options.head_width,
                                                                                .value_activation = Activation::silu,
                                                                                .by_heads = true});
  const auto attended = b.apply(attention, {p[0], b.constant(options.slopes)});
  const Value gain = b.parameter(declare_vector(
      prefix + "norm.weight", {width}, [](const RandomStream&, std::int64_t) { return 1.0; }, heads));
  const auto norm = std::make_shared<GatedNorm>(width, options.head_norm_epsilon, Activation::sigmoid);
  const Value gated = b.apply(norm, {attended[0], attended[1], p[1], gain})[0];
  b.contract(gated, declare_weight(prefix + "out_proj.weight", {hidden, width}, normal, 1, heads));
  return b.finish();
}

}  // namespace fulmen
