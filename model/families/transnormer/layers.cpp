// The layers of TransNormerLLM.
#include "model/branch.h"
#include "model/families/transnormer/config.h"
#include "model/mixers/decay_slopes.h"
#include "model/mixers/gated_linear_attention.h"
#include "model/mixers/gated_linear_unit.h"

namespace fulmen {

HeadSpec TransnormerConfig::head() const { return {{.epsilon = norm_epsilon}, tied_embedding_name}; }

std::vector<Branch> TransnormerConfig::layer(std::int64_t layer) const {
  const std::string prefix = fmt::format("model.layers.{}.", layer), channel = prefix + "channel_mixer.";
  return {gated_linear_attention(prefix + "token_mixer.", {.hidden = hidden,
                                                           .heads = heads,
                                                           .gate_rank = low_rank_gate() ? gate_rank : 0,
                                                           .slopes = decay_slopes(heads, layer, layers),
                                                           .lrpe = has_lrpe(layer),
                                                           .norm_epsilon = norm_epsilon,
                                                           .initializer_std = initializer_std}),
          gated_linear_unit(
              channel + "l1.weight", channel + "l2.weight", channel + "l3.weight",
              {.hidden = hidden, .width = glu, .norm = {.epsilon = norm_epsilon}, .initializer_std = initializer_std})};
}

}  // namespace fulmen
