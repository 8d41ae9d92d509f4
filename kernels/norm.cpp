// Argument checks and dispatch of the norms.
#include "kernels/norm.h"

#include "kernels/dispatch.h"

namespace fulmen {

namespace {

void check_residual_norm(const Tensor& residual, const Tensor& branch, const Tensor& sum, const Tensor& normed) {
  FULMEN_CHECK(residual.rank() == 2, "residual is {}, expected a matrix", residual.describe());
  const DType dtype = residual.dtype();
  const std::int64_t tokens = residual.size(0), width = residual.size(1);
  check_matrix(residual, dtype, tokens, width, "residual");
  if (branch) {
    check_matrix(branch, dtype, tokens, width, "branch");
    check_matrix(sum, dtype, tokens, width, "sum");
  } else {
    FULMEN_CHECK(sum.is_null() || sum.data() == residual.data(), "without a branch, sum must be null or the residual");
  }
  check_matrix(normed, dtype, tokens, width, "normed");
}

void check_residual_norm_backward(const Tensor& d_normed, const Tensor& sum, const Tensor& d_residual,
                                  const Tensor& d_sum, const Tensor& normed) {
  FULMEN_CHECK(sum.rank() == 2, "sum is {}, expected a matrix", sum.describe());
  const DType dtype = sum.dtype();
  const std::int64_t tokens = sum.size(0), width = sum.size(1);
  check_matrix(sum, dtype, tokens, width, "sum");
  check_matrix(d_normed, dtype, tokens, width, "d_normed");
  if (d_residual) check_matrix(d_residual, dtype, tokens, width, "d_residual");
  check_matrix(d_sum, dtype, tokens, width, "d_sum");
  if (normed) check_matrix(normed, dtype, tokens, width, "normed");
}

// A vector that must be there, or must not.
void check_weight(const Tensor& weight, bool wanted, DType dtype, std::int64_t width, const char* name) {
  if (wanted)
    check_vector(weight, dtype, width, name);
  else
    FULMEN_CHECK(weight.is_null(), "this kind of norm has no {}", name);
}

void check_weights(const NormWeights& weights, DType dtype, std::int64_t width) {
  check_weight(weights.gain, weights.kind != NormKind::simple, dtype, width, "gain");
  check_weight(weights.bias, weights.kind == NormKind::layer, dtype, width, "bias");
}

void check_statistics(const Tensor& statistics, NormKind kind, DType dtype, std::int64_t tokens) {
  check_matrix(statistics, accumulation_dtype(dtype), tokens, statistics_of(kind), "statistics");
  FULMEN_CHECK(statistics.is_contiguous(), "statistics is not contiguous");
}

}  // namespace

void residual_norm_forward(const Execution& execution, const Tensor& residual, const Tensor& branch, double epsilon,
                           const Tensor& sum, const Tensor& normed, const Tensor& inverse_rms) {
  check_residual_norm(residual, branch, sum, normed);
  check_vector(inverse_rms, accumulation_dtype(residual.dtype()), residual.size(0), "inverse_rms");
  if (residual.elements() == 0) return;
  run_on_device(execution, {"residual norm forward", 0.0, traffic({residual, branch, branch ? sum : Tensor(), normed})},
                backends::residual_norm_forward, residual, branch, epsilon, sum, normed, inverse_rms);
}

void residual_norm_backward(const Execution& execution, const Tensor& d_normed, const Tensor& sum,
                            const Tensor& inverse_rms, const Tensor& d_residual, const Tensor& d_sum,
                            const Tensor& normed) {
  check_residual_norm_backward(d_normed, sum, d_residual, d_sum, normed);
  check_vector(inverse_rms, accumulation_dtype(sum.dtype()), sum.size(0), "inverse_rms");
  if (sum.elements() == 0) return;
  run_on_device(execution, {"residual norm backward", 0.0, traffic({d_normed, sum, d_residual, d_sum, normed})},
                backends::residual_norm_backward, d_normed, sum, inverse_rms, d_residual, d_sum, normed);
}

void weighted_norm_forward(const Execution& execution, const Tensor& residual, const Tensor& branch,
                           const NormWeights& weights, double epsilon, const Tensor& sum, const Tensor& normed,
                           const Tensor& statistics) {
  check_residual_norm(residual, branch, sum, normed);
  check_weights(weights, residual.dtype(), residual.size(1));
  check_statistics(statistics, weights.kind, residual.dtype(), residual.size(0));
  if (weights.kind == NormKind::simple)
    return residual_norm_forward(execution, residual, branch, epsilon, sum, normed, statistics.flatten());
  if (residual.elements() == 0) return;
  run_on_device(execution, {"residual norm forward", 0.0, traffic({residual, branch, branch ? sum : Tensor(), normed})},
                backends::weighted_norm_forward, residual, branch, weights, epsilon, sum, normed, statistics);
}

void weighted_norm_backward(const Execution& execution, const Tensor& d_normed, const Tensor& sum,
                            const NormWeights& weights, const Tensor& statistics, const Tensor& d_residual,
                            const Tensor& d_sum, const Tensor& normed, const NormWeightGradients& gradients) {
  check_residual_norm_backward(d_normed, sum, d_residual, d_sum, normed);
  const std::int64_t width = sum.size(1);
  check_weights(weights, sum.dtype(), width);
  check_statistics(statistics, weights.kind, sum.dtype(), sum.size(0));
  check_weight(gradients.d_gain, !weights.gain.is_null(), accumulation_dtype(sum.dtype()), width, "d_gain");
  check_weight(gradients.d_bias, !weights.bias.is_null(), accumulation_dtype(sum.dtype()), width, "d_bias");
  if (weights.kind == NormKind::simple)
    return residual_norm_backward(execution, d_normed, sum, statistics.flatten(), d_residual, d_sum, normed);
  if (sum.elements() == 0) return;
  run_on_device(
      execution, {"residual norm backward", 0.0, traffic({d_normed, sum, d_residual, d_sum, normed}), Scratch::on_cpu},
      backends::weighted_norm_backward, d_normed, sum, weights, statistics, d_residual, d_sum, normed, gradients);
}

void sum_rows(const Execution& execution, const Tensor& values, const Tensor& row_sums) {
  FULMEN_CHECK(values.rank() == 2, "values is {}, expected a matrix", values.describe());
  check_matrix(values, values.dtype(), values.size(0), values.size(1), "values");
  check_vector(row_sums, values.dtype(), values.size(0), "row_sums");
  if (values.size(0) == 0) return;
  run_on_device(execution, {"row sums", 0.0, traffic({values, row_sums})}, backends::sum_rows, values, row_sums);
}

void gated_norm_forward(const Execution& execution, const Tensor& x, const Tensor& square_sums, std::int64_t width,
                        double epsilon, const Tensor& gate, Activation gate_activation, const Tensor& y,
                        const Tensor& inverse_rms, const Tensor& gain) {
  FULMEN_CHECK(x.rank() == 2 && width >= x.size(1), "x is {}, the whole width {}", x.describe(), width);
  check_gate_activation(gate_activation);
  const DType dtype = x.dtype();
  const std::int64_t tokens = x.size(0), local_width = x.size(1);
  check_matrix(x, dtype, tokens, local_width, "x");
  FULMEN_CHECK(square_sums.rank() == 2, "square_sums is {}, expected a matrix", square_sums.describe());
  check_matrix(square_sums, accumulation_dtype(dtype), tokens, square_sums.size(1), "square_sums");
  check_matrix(gate, dtype, tokens, local_width, "gate");
  if (gain) check_vector(gain, dtype, local_width, "gain");
  check_matrix(y, dtype, tokens, local_width, "y");
  check_vector(inverse_rms, accumulation_dtype(dtype), tokens, "inverse_rms");
  if (x.elements() == 0) return;
  run_on_device(execution, {"gated norm forward", 0.0, traffic({x, gate, y})}, backends::gated_norm_forward, x,
                square_sums, width, epsilon, gate, gate_activation, y, inverse_rms, gain);
}

void gated_norm_backward_dot(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& inverse_rms,
                             const Tensor& gate, Activation gate_activation, const Tensor& dot, const Tensor& gain) {
  FULMEN_CHECK(x.rank() == 2, "x is {}, expected a matrix", x.describe());
  check_gate_activation(gate_activation);
  const DType dtype = x.dtype();
  const std::int64_t tokens = x.size(0), local_width = x.size(1);
  check_matrix(d_y, dtype, tokens, local_width, "d_y");
  check_matrix(x, dtype, tokens, local_width, "x");
  check_vector(inverse_rms, accumulation_dtype(dtype), tokens, "inverse_rms");
  check_matrix(gate, dtype, tokens, local_width, "gate");
  if (gain) check_vector(gain, dtype, local_width, "gain");
  check_vector(dot, accumulation_dtype(dtype), tokens, "dot");
  if (tokens == 0) return;
  run_on_device(execution, {"gated norm dot", 0.0, traffic({d_y, x, gate})}, backends::gated_norm_backward_dot, d_y, x,
                inverse_rms, gate, gate_activation, dot, gain);
}

void gated_norm_backward(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& inverse_rms,
                         const Tensor& gate, Activation gate_activation, const Tensor& dot, std::int64_t width,
                         const Tensor& d_x, const Tensor& d_gate, const Tensor& y, const Tensor& gain,
                         const Tensor& d_gain) {
  FULMEN_CHECK(x.rank() == 2 && (dot ? width >= x.size(1) : width == x.size(1)), "x is {}, the whole width {}",
               x.describe(), width);
  check_gate_activation(gate_activation);
  const DType dtype = x.dtype();
  const std::int64_t tokens = x.size(0), local_width = x.size(1);
  check_matrix(d_y, dtype, tokens, local_width, "d_y");
  check_matrix(x, dtype, tokens, local_width, "x");
  check_vector(inverse_rms, accumulation_dtype(dtype), tokens, "inverse_rms");
  check_matrix(gate, dtype, tokens, local_width, "gate");
  if (gain) check_vector(gain, dtype, local_width, "gain");
  if (dot) check_vector(dot, accumulation_dtype(dtype), tokens, "dot");
  check_matrix(d_x, dtype, tokens, local_width, "d_x");
  check_matrix(d_gate, dtype, tokens, local_width, "d_gate");
  if (y) check_matrix(y, dtype, tokens, local_width, "y");
  FULMEN_CHECK(gain.is_null() == d_gain.is_null(), "a gain and its gradient belong together");
  if (d_gain) check_vector(d_gain, accumulation_dtype(dtype), local_width, "d_gain");
  if (x.elements() == 0) return;
  run_on_device(execution, {"gated norm backward", 0.0, traffic({d_y, x, gate, d_x, d_gate, y}), scratch_of_sums(gain)},
                backends::gated_norm_backward, d_y, x, inverse_rms, gate, gate_activation, dot, width, d_x, d_gate, y,
                gain, d_gain);
}

}  // namespace fulmen
