// Norms and their fusions, on a GPU. See kernels/norm.h.
#pragma once

#include "framework/execution.h"
#include "kernels/activation.h"
#include "kernels/norm.h"

namespace fulmen::cuda {

void residual_norm_forward(const Execution& execution, const Tensor& residual, const Tensor& branch, double epsilon,
                           const Tensor& sum, const Tensor& normed, const Tensor& inverse_rms);
void residual_norm_backward(const Execution& execution, const Tensor& d_normed, const Tensor& sum,
                            const Tensor& inverse_rms, const Tensor& d_residual, const Tensor& d_sum,
                            const Tensor& normed);
// For the kinds that have a gain.
void residual_norm_forward(const Execution& execution, const Tensor& residual, const Tensor& branch,
                           const NormWeights& weights, double epsilon, const Tensor& sum, const Tensor& normed,
                           const Tensor& statistics);
void residual_norm_backward(const Execution& execution, const Tensor& d_normed, const Tensor& sum,
                            const NormWeights& weights, const Tensor& statistics, const Tensor& d_residual,
                            const Tensor& d_sum, const Tensor& normed, const NormWeightGradients& gradients);
void sum_rows(const Execution& execution, const Tensor& values, const Tensor& row_sums);
void gated_norm_forward(const Execution& execution, const Tensor& x, const Tensor& square_sums, std::int64_t width,
                        double epsilon, const Tensor& gate, Activation gate_activation, const Tensor& y,
                        const Tensor& inverse_rms);
void gated_norm_backward_dot(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& inverse_rms,
                             const Tensor& gate, Activation gate_activation, const Tensor& dot);
void gated_norm_backward(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& inverse_rms,
                         const Tensor& gate, Activation gate_activation, const Tensor& dot, std::int64_t width,
                         const Tensor& d_x, const Tensor& d_gate, const Tensor& y);

}  // namespace fulmen::cuda
