// RetNet's token mixer.
#include "model/mixers/retention.h"

#include <cmath>

#include "model/operations/decay_attention.h"
#include "model/operations/head_norm.h"
#include "model/operations/rotation.h"

namespace fulmen {

std::vector<double> retention_slopes(std::int64_t heads) {
  std::vector<double> slopes;
  for (std::int64_t h = 0; h < heads; ++h) slopes.push_back(-std::log1p(-std::exp2(-5.0 - static_cast<double>(h))));
  return slopes;
}

Branch retention(const std::string& prefix, const RetentionOptions& options) {
  const std::int64_t hidden = options.hidden, heads = options.heads, values = options.values;
  const std::int64_t key_width = hidden / heads, value_width = values / heads;
  const Initializer normal = normal_initializer(options.initializer_std);
  BranchBuilder b(hidden);
  const auto p = b.project(b.normed(options.norm), {declare_joined(prefix + "qkvg_proj.weight",
                                                                   {{prefix + "q_proj.weight", hidden, heads},
                                                                    {prefix + "k_proj.weight", hidden, heads},
                                                                    {prefix + "v_proj.weight", values, heads},
                                                                    {prefix + "g_proj.weight", values, heads}},
                                                                   hidden, normal)});
  const Value frequencies = b.shared_constant(options.rope ? rotary_frequencies(10000.0, key_width)
                                                           : rotary_frequencies_with_end(10000.0, key_width));
  const auto rotated = b.apply(std::make_shared<RotateHeads>(RotationOptions{
                                   .head_width = key_width,
                                   .pairs = options.rope ? RotationPairs::halves : RotationPairs::neighbours,
                                   .scales = {1.0, 1.0 / std::sqrt(static_cast<double>(key_width))}}),
                               {p[0], p[1], frequencies});
  const auto attended =
      b.apply(std::make_shared<DecayAttention>(DecayAttentionOptions{.key_width = key_width,
                                                                     .value_width = value_width,
                                                                     .query_key_activation = Activation::none,
                                                                     .square_sums = false}),
              {rotated[0], rotated[1], p[2], b.constant(retention_slopes(heads))});
  const HeadNormOptions head_norm{
      .group_width = value_width, .epsilon = options.head_norm_epsilon, .gated = true, .gain = options.head_norm_gain};
  std::vector<Value> inputs = {attended[0], p[3]};
  if (options.head_norm_gain)
    inputs.push_back(b.parameter(declare_vector(
        prefix + "g_norm.weight", {value_width}, [](const RandomStream&, std::int64_t) { return 1.0; }, 0)));
  const Value normed = b.apply(std::make_shared<HeadNormOperation>(head_norm), inputs)[0];
  b.contract(normed, declare_weight(prefix + "out_proj.weight", {hidden, values}, normal, 1, heads));
  return b.finish();
}

}  // namespace fulmen
