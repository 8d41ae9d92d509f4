// TransNormerLLM's token mixer: fused projection, linear attention with decay, a norm over all heads together, a gate,
// and the output projection:
//   q, k, v, u = normed W^T;   y = out_proj(gate(u) * norm(attention(silu(q), silu(k), v)))
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/branch.h"

namespace fulmen {

struct GatedLinearAttentionOptions {
  std::int64_t hidden = 0, heads = 0;
  // 0: the gate u is a quarter of the fused projection. Else the rank of sigmoid(G2 G1 normed), with SiLU on v, too.
  std::int64_t gate_rank = 0;
  std::vector<double> slopes;  // by head: the decay is exp(-slope)
  bool lrpe = false;
  double norm_epsilon = 1e-6, initializer_std = 0.02;
};

// prefix: of the parameters' names.
Branch gated_linear_attention(const std::string& prefix, const GatedLinearAttentionOptions& options);

}  // namespace fulmen
