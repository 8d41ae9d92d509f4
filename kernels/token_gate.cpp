// Argument checks and dispatch of token gates.
#include "kernels/token_gate.h"

#include "kernels/dispatch.h"

namespace fulmen {

namespace {

void check(const TokenGate& gate, const Tensor& x, const Tensor& y, const char* name) {
  FULMEN_CHECK(x.rank() == 2, "x is {}", x.describe());
  const DType wide = accumulation_dtype(x.dtype());
  check_unit_inner_stride(x, "x");
  check_matrix(y, wide, x.size(0), x.size(1), name);
  FULMEN_CHECK(y.is_contiguous(), "{} is not contiguous", name);
  if (gate.bias) check_vector(gate.bias, wide, x.size(1), "bias");
  FULMEN_CHECK(gate.log_rate.is_null() == (gate.form != GateForm::negative_softplus), "a rate of another form");
  if (!gate.log_rate) return;
  check_vector(gate.log_rate, wide, gate.log_rate.elements(), "log_rate");
  FULMEN_CHECK(x.size(1) % gate.log_rate.elements() == 0, "{} rates of {} columns", gate.log_rate.elements(),
               x.size(1));
}

}  // namespace

void token_gate_forward(const Execution& execution, const TokenGate& gate, const Tensor& x, const Tensor& y) {
  check(gate, x, y, "y");
  if (x.elements() == 0) return;
  run_on_device(execution, {"token gate forward", 0.0, traffic({x, y})}, backends::token_gate_forward, gate, x, y);
}

void token_gate_backward(const Execution& execution, const TokenGate& gate, const Tensor& d_y, const Tensor& x,
                         const TokenGateGradients& gradients) {
  check(gate, x, d_y, "d_y");
  check_matrix(gradients.d_x, x.dtype(), x.size(0), x.size(1), "d_x");
  if (gate.bias) check_vector(gradients.d_bias, gate.bias.dtype(), gate.bias.elements(), "d_bias");
  if (gate.log_rate) check_vector(gradients.d_log_rate, gate.log_rate.dtype(), gate.log_rate.elements(), "d_log_rate");
  if (x.elements() == 0) return;
  run_on_device(execution, {"token gate backward", 0.0, traffic({d_y, x, gradients.d_x}), Scratch::on_cpu},
                backends::token_gate_backward, gate, d_y, x, gradients);
}

}  // namespace fulmen
