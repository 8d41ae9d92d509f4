// GLA's token mixer.
#include "model/mixers/channel_gated_attention.h"

#include <cmath>

#include "model/mixers/gate_vector.h"
#include "model/operations/gated_recurrence.h"
#include "model/operations/head_norm.h"
#include "model/operations/token_gate.h"

namespace fulmen {

Branch channel_gated_attention(const std::string& prefix, const ChannelGatedAttentionOptions& options) {
  const std::int64_t hidden = options.hidden, heads = options.heads, keys = options.keys, values = options.values;
  const std::int64_t key_width = keys / heads, value_width = values / heads, rank = options.gate_rank;
  const Initializer normal = normal_initializer(options.initializer_std);
  BranchBuilder b(hidden);
  const auto p =
      b.project(b.normed(options.norm), {declare_joined(prefix + "qkvg_proj.weight",
                                                        {{prefix + "q_proj.weight", keys, heads},
                                                         {prefix + "k_proj.weight", keys, heads},
                                                         {prefix + "v_proj.weight", values, heads},
                                                         {prefix + "g_proj.weight", values, heads}},
                                                        hidden, normal),
                                         declare_weight(prefix + "gk_proj.0.weight", {rank, hidden}, normal, 0, 0)});
  const Value gate = b.project(p[4], {declare_weight(prefix + "gk_proj.1.weight", {keys, rank}, normal, 0, heads)})[0];
  const Value bias = b.parameter(declare_gate_vector(
      prefix + "gk_proj.1.bias", {keys}, [](const RandomStream&, std::int64_t) { return 0.0; }, heads));
  const Value log_decay = b.apply(std::make_shared<TokenGateOperation>(TokenGateOptions{
                                      .form = GateForm::log_sigmoid, .divisor = options.gate_divisor, .bias = true}),
                                  {gate, bias})[0];
  const auto recurrence = std::make_shared<GatedRecurrence>(
      GatedRecurrenceOptions{.key_width = key_width,
                             .value_width = value_width,
                             .per_channel = true,
                             .scale = 1.0 / std::sqrt(static_cast<double>(key_width))});
  const Value attended = b.apply(recurrence, {p[0], p[1], p[2], log_decay})[0];
  const Value gain = b.parameter(declare_vector(
      prefix + "g_norm_swish_gate.weight", {value_width}, [](const RandomStream&, std::int64_t) { return 1.0; }, 0));
  const auto norm = std::make_shared<HeadNormOperation>(
      HeadNormOptions{.group_width = value_width, .epsilon = options.head_norm_epsilon, .gated = true, .gain = true});
  b.contract(b.apply(norm, {attended, p[3], gain})[0],
             declare_weight(prefix + "o_proj.weight", {hidden, values}, normal, 1, heads));
  return b.finish();
}

}  // namespace fulmen
