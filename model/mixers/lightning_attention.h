// MiniMax-01's linear token mixer (arXiv 2501.08313):
//   q, k, v = silu(x Wqkv);   y = (sigmoid(x Wg) * norm(attention(q, k, v))) Wo
// with a norm over all heads together, and the fused projection laid out head by head.
#pragma once

#include <string>

#include "model/branch.h"

namespace fulmen {

struct LightningAttentionOptions {
  std::int64_t hidden = 0, heads = 0, head_width = 0;
  Norm norm = {};
  Junction junction = {};
  std::vector<double> slopes;  // by head: the decay is exp(-slope)
  double head_norm_epsilon = 1e-6, initializer_std = 0.02;
};

// As MiniMax has them: 2^(-8 (h + 1) / H) (1 - l / (L - 1 + 1e-5) + 1e-5), l counted over all layers.
std::vector<double> lightning_slopes(std::int64_t heads, std::int64_t layer, std::int64_t layers);

// prefix: of the parameters' names.
Branch lightning_attention(const std::string& prefix, const LightningAttentionOptions& options);

}  // namespace fulmen
