// TransNormerLLM's token mixer.
#include "model/mixers/gated_linear_attention.h"

#include <cmath>

#include "model/operations/decay_attention.h"
#include "model/operations/gated_norm.h"

namespace fulmen {

namespace {

// One ladder of frequencies across all heads: theta[h, 0, j] = 10000^(-2 (h e + j) / d).
ParameterDeclaration declare_theta(const std::string& name, const GatedLinearAttentionOptions& options) {
  const auto hidden = static_cast<double>(options.hidden);
  const Initializer ladder = [hidden](const RandomStream&, std::int64_t index) {
    return std::pow(10000.0, -2.0 * static_cast<double>(index) / hidden);
  };
  ParameterDeclaration theta =
      declare_vector(name, {options.heads, 1, options.hidden / options.heads}, ladder, options.heads);
  theta.group.narrowest = DType::fp64;
  theta.group.whole = true;
  return theta;
}

}  // namespace

Branch gated_linear_attention(const std::string& prefix, const GatedLinearAttentionOptions& options) {
  const std::int64_t hidden = options.hidden, heads = options.heads, rank = options.gate_rank;
  const Initializer normal = normal_initializer(options.initializer_std);
  BranchBuilder b(hidden);
  const Value normed = b.normed({options.norm_epsilon});

  Value query, key, value, gate;
  if (rank > 0) {
    const auto p = b.project(normed, {declare_fused(prefix + "qkv_proj.weight", 3, hidden, hidden, heads, normal),
                                      declare_weight(prefix + "output_gate.0.weight", {rank, hidden}, normal, 0, 0)});
    query = p[0], key = p[1], value = p[2];
    gate = b.project(p[3], {declare_weight(prefix + "output_gate.1.weight", {hidden, rank}, normal, 0, heads)})[0];
  } else {
    const auto p = b.project(normed, {declare_fused(prefix + "qkvu_proj.weight", 4, hidden, hidden, heads, normal)});
    query = p[0], key = p[1], value = p[2], gate = p[3];
  }

  const Activation value_activation = rank > 0 ? Activation::silu : Activation::none;
  const Activation gate_activation = rank > 0 ? Activation::sigmoid : Activation::none;
  const auto attention = std::make_shared<DecayAttention>(DecayAttentionOptions{.key_width = hidden / heads,
                                                                                .value_width = hidden / heads,
                                                                                .value_activation = value_activation,
                                                                                .lrpe = options.lrpe});
  const auto norm = std::make_shared<GatedNorm>(hidden, options.norm_epsilon, gate_activation);

  std::vector<Value> inputs = {query, key, value, b.constant(options.slopes)};
  const ParameterDeclaration out = declare_weight(prefix + "out_proj.weight", {hidden, hidden}, normal, 1, heads);
  if (options.lrpe) inputs.push_back(b.parameter(declare_theta(prefix + "lrpe.theta", options)));
  const auto attended = b.apply(attention, inputs);
  b.contract(b.apply(norm, {attended[0], attended[1], gate})[0], out);
  return b.finish();
}

}  // namespace fulmen
