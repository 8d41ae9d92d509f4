// The product of a gated linear unit: y = act(a) * b. TransNormerLLM's SGLU has no activation; SwiGLU has SiLU.
#pragma once

#include "framework/execution.h"
#include "kernels/activation.h"
#include "kernels/backends.h"

namespace fulmen {

// a, b, y [tokens, width]; any row stride, unit inner stride.
void gated_linear_unit_forward(const Execution& execution, const Tensor& a, const Tensor& b, Activation activation,
                               const Tensor& y);
FULMEN_BACKENDS(gated_linear_unit_forward);
// d_a = d_y * b * act'(a), d_b = d_y * act(a), and y again, which the weight gradient of the layer after it reads
// (null: not wanted). The results may have any row stride, and each may stand where d_y, a or b stood.
void gated_linear_unit_backward(const Execution& execution, const Tensor& d_y, const Tensor& a, const Tensor& b,
                                Activation activation, const Tensor& d_a, const Tensor& d_b, const Tensor& y);
FULMEN_BACKENDS(gated_linear_unit_backward);

}  // namespace fulmen
