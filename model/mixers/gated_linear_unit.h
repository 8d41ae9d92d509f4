// The channel mixer of gated linear units: y = l3(act(l1(x)) * l2(x)). TransNormerLLM's has no activation.
#pragma once

#include <string>

#include "kernels/activation.h"
#include "model/branch.h"

namespace fulmen {

struct GatedLinearUnitOptions {
  std::int64_t hidden = 0, width = 0;
  Activation activation = Activation::none;
  Norm norm = {};
  Junction junction = {};
  double initializer_std = 0.02;
};

// first, second, last: names of the weights.
Branch gated_linear_unit(const std::string& first, const std::string& second, const std::string& last,
                         const GatedLinearUnitOptions& options);

}  // namespace fulmen
