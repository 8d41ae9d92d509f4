// Argument checks and dispatch of the activation after a bias.
#include "kernels/activation_function.h"

#include "kernels/dispatch.h"

namespace fulmen {

void activation_function_forward(const Execution& execution, const Tensor& x, const Tensor& bias, Activation activation,
                                 const Tensor& y) {
  FULMEN_CHECK(x.rank() == 2, "x is {}, expected a matrix", x.describe());
  check_matrix(x, x.dtype(), x.size(0), x.size(1), "x");
  check_matrix(y, x.dtype(), x.size(0), x.size(1), "y");
  if (bias) check_vector(bias, x.dtype(), x.size(1), "bias");
  if (x.elements() == 0) return;
  run_on_device(execution, {"activation forward", 0.0, traffic({x, y})}, backends::activation_function_forward, x, bias,
                activation, y);
}

void activation_function_backward(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& bias,
                                  Activation activation, const Tensor& d_x, const Tensor& d_bias, const Tensor& y) {
  FULMEN_CHECK(d_y.rank() == 2, "d_y is {}, expected a matrix", d_y.describe());
  const DType dtype = d_y.dtype();
  const std::int64_t tokens = d_y.size(0), width = d_y.size(1);
  check_matrix(d_y, dtype, tokens, width, "d_y");
  FULMEN_CHECK(x || (activation == Activation::none && y.is_null()), "x is null, but it is needed");
  if (x) check_matrix(x, dtype, tokens, width, "x");
  if (d_x) check_matrix(d_x, dtype, tokens, width, "d_x");
  if (y) check_matrix(y, dtype, tokens, width, "y");
  if (bias) check_vector(bias, dtype, width, "bias");
  if (d_bias) check_vector(d_bias, accumulation_dtype(dtype), width, "d_bias");
  FULMEN_CHECK(d_bias.is_null() || bias, "there is a gradient of a bias that is not there");
  if (d_y.elements() == 0) return;
  run_on_device(execution, {"activation backward", 0.0, traffic({d_y, x, d_x, y}), scratch_of_sums(d_bias)},
                backends::activation_function_backward, d_y, x, bias, activation, d_x, d_bias, y);
}

}  // namespace fulmen
