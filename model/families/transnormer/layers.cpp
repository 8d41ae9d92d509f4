// What the layers of TransNormerLLM are made of.
#include "model/families/transnormer/layers.h"

#include "model/families/transnormer/decay_slopes.h"
#include "model/mixers/gated_linear_attention.h"
#include "model/mixers/gated_linear_unit.h"

namespace fulmen {

std::vector<Branch> transnormer_layer(const ModelConfig& config, std::int64_t layer) {
  const std::string prefix = fmt::format("model.layers.{}.", layer), channel = prefix + "channel_mixer.";
  const double epsilon = config.norm_epsilon, std = config.initializer_std;
  return {gated_linear_attention(prefix + "token_mixer.", {.hidden = config.hidden,
                                                           .heads = config.heads,
                                                           .gate_rank = config.low_rank_gate() ? config.gate_rank : 0,
                                                           .slopes = decay_slopes(config.heads, layer, config.layers),
                                                           .lrpe = config.has_lrpe(layer),
                                                           .norm_epsilon = epsilon,
                                                           .initializer_std = std}),
          gated_linear_unit(
              channel + "l1.weight", channel + "l2.weight", channel + "l3.weight",
              {.hidden = config.hidden, .width = config.glu, .norm_epsilon = epsilon, .initializer_std = std})};
}

}  // namespace fulmen
