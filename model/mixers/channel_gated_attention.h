// The token mixer of gated linear attention (GLA, arXiv 2312.06635): each token chooses a decay for each channel of the
// keys by a low-rank gate; a norm of each head with a gain that all heads share, and a SiLU gate.
//   log decay = log sigmoid(W2 W1 x + b) / divisor;   y = Wo (norm(attention(q / sqrt(width), k, v)) silu(Wg x))
#pragma once

#include <string>

#include "model/branch.h"

namespace fulmen {

struct ChannelGatedAttentionOptions {
  std::int64_t hidden = 0, heads = 0;
  std::int64_t keys = 0, values = 0;  // of all heads
  std::int64_t gate_rank = 0;
  double gate_divisor = 16.0;
  Norm norm = {};
  double head_norm_epsilon = 1e-6, initializer_std = 0.02;
};

// prefix: of the parameters' names, which are flash-linear-attention's.
Branch channel_gated_attention(const std::string& prefix, const ChannelGatedAttentionOptions& options);

}  // namespace fulmen
