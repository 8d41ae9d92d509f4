// The residual stream between branches.
#pragma once

#include <array>
#include <utility>

#include "framework/tensor.h"

namespace fulmen {

// How a branch joins the residual stream. With s its sum, it hands on
//   residual_scale * r + branch_scale * f(norm(s)),   r = s, or norm(s) where `from_norm` (post-norm, MiniMax).
struct Junction {
  bool from_norm = false;
  double residual_scale = 1.0, branch_scale = 1.0;
};

// A forward pass hands it from branch to branch: the next sum is residual_scale * residual + branch_scale * branch.
// Tensors are [residual rows, hidden] (model/token_split.h).
struct ResidualStream {
  Tensor residual;
  Tensor branch = {};  // null in front of the first branch
  double residual_scale = 1.0, branch_scale = 1.0;
  Tensor branch_memory = {};                 // for the outputs of branches; null: the next output is not wanted
  std::array<Tensor, 2> normed_memory = {};  // where norms go on as the residual, for two branches in turns

  bool scaled() const { return branch && (residual_scale != 1.0 || branch_scale != 1.0); }
  // Memory that is not the residual's.
  Tensor next_normed() {
    std::swap(normed_memory[0], normed_memory[1]);
    return normed_memory[0];
  }
};

}  // namespace fulmen
