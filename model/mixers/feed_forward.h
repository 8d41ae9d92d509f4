// The channel mixer of two products with an activation between them: y = act(x W1 + b1) W2 + b2.
#pragma once

#include <optional>

#include "kernels/activation.h"
#include "model/branch.h"

namespace fulmen {

struct FeedForwardOptions {
  std::int64_t hidden = 0;
  Norm norm = {};
  Junction junction = {};
  Activation activation = Activation::gelu_tanh;
  ParameterDeclaration first, second;  // split by the inner width
  std::optional<ParameterDeclaration> first_bias = {}, second_bias = {};
};

Branch feed_forward(const FeedForwardOptions& options);

}  // namespace fulmen
