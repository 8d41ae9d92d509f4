// Argument checks and dispatch of the norm of each head.
#include "kernels/head_norm.h"

#include "kernels/dispatch.h"

namespace fulmen {
namespace {

void check(const HeadNorm& norm, const Tensor& x, const Tensor& inverse_rms) {
  FULMEN_CHECK(x.rank() == 2 && norm.group_width > 0 && x.size(1) % norm.group_width == 0,
               "x is {}, expected [tokens, groups * {}]", x.describe(), norm.group_width);
  const DType dtype = x.dtype();
  const std::int64_t tokens = x.size(0), width = x.size(1);
  check_matrix(x, dtype, tokens, width, "x");
  check_gate_activation(norm.gate_activation);
  if (norm.gate) check_matrix(norm.gate, dtype, tokens, width, "gate");
  if (norm.gain) {
    FULMEN_CHECK(norm.gain.elements() == norm.group_width || norm.gain.elements() == width,
                 "gain is {}, expected {} or {} elements", norm.gain.describe(), norm.group_width, width);
    check_vector(norm.gain, dtype, norm.gain.elements(), "gain");
  }
  check_dtype(inverse_rms, accumulation_dtype(dtype), "inverse_rms");
  check_shape(inverse_rms, {tokens, width / norm.group_width}, "inverse_rms");
  FULMEN_CHECK(inverse_rms.is_contiguous(), "inverse_rms is not contiguous");
}

}  // namespace

void head_norm_forward(const Execution& execution, const HeadNorm& norm, const Tensor& x, const Tensor& y,
                       const Tensor& inverse_rms) {
  check(norm, x, inverse_rms);
  check_matrix(y, x.dtype(), x.size(0), x.size(1), "y");
  if (x.elements() == 0) return;
  run_on_device(execution, {"head norm forward", 0.0, traffic({x, norm.gate, y})}, backends::head_norm_forward, norm, x,
                y, inverse_rms);
}

void head_norm_backward(const Execution& execution, const HeadNorm& norm, const Tensor& d_y, const Tensor& x,
                        const Tensor& inverse_rms, const HeadNormGradients& gradients) {
  check(norm, x, inverse_rms);
  const DType dtype = x.dtype();
  const std::int64_t tokens = x.size(0), width = x.size(1);
  check_matrix(d_y, dtype, tokens, width, "d_y");
  check_matrix(gradients.d_x, dtype, tokens, width, "d_x");
  FULMEN_CHECK(gradients.d_gate.is_null() == norm.gate.is_null(), "a gate and its gradient belong together");
  FULMEN_CHECK(gradients.d_gain.is_null() == norm.gain.is_null(), "a gain and its gradient belong together");
  if (norm.gate) check_matrix(gradients.d_gate, dtype, tokens, width, "d_gate");
  if (norm.gain) check_vector(gradients.d_gain, accumulation_dtype(dtype), norm.gain.elements(), "d_gain");
  if (gradients.y) check_matrix(gradients.y, dtype, tokens, width, "y");
  if (x.elements() == 0) return;
  run_on_device(execution,
                {"head norm backward", 0.0, traffic({d_y, x, norm.gate, gradients.d_x, gradients.d_gate, gradients.y}),
                 scratch_of_sums(norm.gain)},
                backends::head_norm_backward, norm, d_y, x, inverse_rms, gradients);
}

}  // namespace fulmen
