// The channel mixer of gated linear units: y = last(act(first(x)) * second(x)) by names of weights.
#pragma once

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

Branch gated_linear_unit(const std::string& first, const std::string& second, const std::string& last,
                         const GatedLinearUnitOptions& options);

}  // namespace fulmen
