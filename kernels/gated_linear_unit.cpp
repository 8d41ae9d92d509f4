// Argument checks and dispatch of the gated linear unit.
#include "kernels/gated_linear_unit.h"

#include "kernels/dispatch.h"

namespace fulmen {

void gated_linear_unit_forward(const Execution& execution, const Tensor& a, const Tensor& b, Activation activation,
                               const Tensor& y) {
  FULMEN_CHECK(a.rank() == 2, "a is {}, expected a matrix", a.describe());
  check_gate_activation(activation);
  check_matrix(a, a.dtype(), a.size(0), a.size(1), "a");
  check_matrix(b, a.dtype(), a.size(0), a.size(1), "b");
  check_matrix(y, a.dtype(), a.size(0), a.size(1), "y");
  if (a.elements() == 0) return;
  run_on_device(execution, {"gated unit forward", 0.0, traffic({a, b, y})}, backends::gated_linear_unit_forward, a, b,
                activation, y);
}

void gated_linear_unit_backward(const Execution& execution, const Tensor& d_y, const Tensor& a, const Tensor& b,
                                Activation activation, const Tensor& d_a, const Tensor& d_b, const Tensor& y) {
  FULMEN_CHECK(a.rank() == 2, "a is {}, expected a matrix", a.describe());
  check_gate_activation(activation);
  check_matrix(a, a.dtype(), a.size(0), a.size(1), "a");
  check_matrix(b, a.dtype(), a.size(0), a.size(1), "b");
  check_matrix(d_y, a.dtype(), a.size(0), a.size(1), "d_y");
  check_matrix(d_a, a.dtype(), a.size(0), a.size(1), "d_a");
  check_matrix(d_b, a.dtype(), a.size(0), a.size(1), "d_b");
  if (y) check_matrix(y, a.dtype(), a.size(0), a.size(1), "y");
  if (a.elements() == 0) return;
  run_on_device(execution, {"gated unit backward", 0.0, traffic({d_y, a, b, d_a, d_b, y})},
                backends::gated_linear_unit_backward, d_y, a, b, activation, d_a, d_b, y);
}

}  // namespace fulmen
