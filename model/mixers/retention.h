// RetNet's token mixer (arXiv 2307.08621, section 2.1), as torchscale has it since October 2023:
//   q, k, v, g = x W;   y = (silu(g) * headnorm(retention(rotate(q), rotate(k) / sqrt(width), v))) Wo
#pragma once

#include <string>

#include "model/branch.h"

namespace fulmen {

struct RetentionOptions {
  std::int64_t hidden = 0, heads = 0;
  std::int64_t values = 0;  // width of all heads
  Norm norm = {};
  bool rope = false;  // rotary positions of LLaMA instead of torchscale's
  double head_norm_epsilon = 1e-6;
  bool head_norm_gain = false;
  double initializer_std = 0.02;
};

// 1 - 2^(-5 - h) as -log of it, by head.
std::vector<double> retention_slopes(std::int64_t heads);

// prefix: of the parameters' names.
Branch retention(const std::string& prefix, const RetentionOptions& options);

}  // namespace fulmen
