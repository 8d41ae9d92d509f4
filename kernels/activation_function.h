// An activation after a bias, as between the two products of a feed-forward network: y = act(x + bias).
#pragma once

#include "framework/execution.h"
#include "kernels/activation.h"
#include "kernels/backends.h"

namespace fulmen {

// x, y [tokens, width], any row stride; bias [width], their dtype, or null for none. y may stand where x stood.
void activation_function_forward(const Execution& execution, const Tensor& x, const Tensor& bias, Activation activation,
                                 const Tensor& y);
FULMEN_BACKENDS(activation_function_forward);

// d_x = d_y * act'(x + bias), d_bias += the sum of d_x over the tokens, and y again. The weight gradient of the layer
// after it reads y. d_x, y: any row stride, each null (not wanted) or in the place of d_y or x. d_bias [width] in the
// accumulation dtype, null without a bias. It is added to in an order that no number of threads changes. x may be null
// for Activation::none where y is not wanted.
void activation_function_backward(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& bias,
                                  Activation activation, const Tensor& d_x, const Tensor& d_bias, const Tensor& y);
FULMEN_BACKENDS(activation_function_backward);

}  // namespace fulmen
