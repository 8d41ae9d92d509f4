// Causal softmax attention with grouped heads and rotary positions:
//   q, k, v = x Wqkv (+ b);   y = concat_h(softmax(scale rotate(q_h) rotate(k_g)^T) v_g) Wo (+ b),   g = h's group
#pragma once

#include <optional>
#include <vector>

#include "kernels/rotation.h"
#include "model/branch.h"

namespace fulmen {

struct SoftmaxAttentionOptions {
  std::int64_t hidden = 0, head_width = 0;
  Norm norm = {};
  Junction junction = {};
  ParameterDeclaration projections;  // three segments: query, key and value, each split by its heads
  std::optional<ParameterDeclaration> projections_bias = {};
  ParameterDeclaration out;
  std::optional<ParameterDeclaration> out_bias = {};
  std::vector<double> frequencies = {};  // of the rotation (kernels/rotation.h); none: positions are not rotated
  RotationPairs pairs = RotationPairs::halves;
};

Branch softmax_attention(const SoftmaxAttentionOptions& options);

}  // namespace fulmen
