// The product of a gated linear unit, on a GPU. See kernels/gated_linear_unit.h.
#pragma once

#include "framework/execution.h"
#include "kernels/activation.h"

namespace fulmen::cuda {

void gated_linear_unit_forward(const Execution& execution, const Tensor& a, const Tensor& b, Activation activation,
                               const Tensor& y);
void gated_linear_unit_backward(const Execution& execution, const Tensor& d_y, const Tensor& a, const Tensor& b,
                                Activation activation, const Tensor& d_a, const Tensor& d_b, const Tensor& y);

}  // namespace fulmen::cuda
