// SimpleRMSNorm (no gain, no bias), fused with what stands beside it: the residual addition before it, the gate after
// it.
//   y = x / sqrt(mean_j(x_j^2) + eps)     TransNormerLLM (arXiv 2307.14995), eps inside the root as in the released
//   code
// Statistics are kept in the accumulation dtype (fp32, or fp64 for fp64 tensors).
#pragma once

#include "framework/execution.h"
#include "kernels/activation.h"

namespace fulmen {

// sum = residual + branch; normed = sum * inverse_rms.
// residual, branch, sum, normed [tokens, width]; inverse_rms [tokens], accumulation dtype.
// branch may be null: then sum must be null too or alias residual, and residual itself is normalised.
// sum may alias residual or branch.
void residual_norm_forward(const Execution& execution, const Tensor& residual, const Tensor& branch, double epsilon,
                           const Tensor& sum, const Tensor& normed, const Tensor& inverse_rms);

// Given sum and inverse_rms of the forward pass and d_normed:
//   d_sum = d_residual + inverse_rms * (d_normed - normed * mean_j(d_normed * normed)),  normed = sum * inverse_rms
// d_residual [tokens, width] is the gradient that reaches `sum` past the norm; null means none. d_sum is the gradient
// of both `residual` and `branch`. Writes normed again, which the weight gradient of the layer after the norm reads
// (null: not wanted). d_sum and normed may each alias one of d_residual, d_normed and sum.
void residual_norm_backward(const Execution& execution, const Tensor& d_normed, const Tensor& sum,
                            const Tensor& inverse_rms, const Tensor& d_residual, const Tensor& d_sum,
                            const Tensor& normed);

// row_sums [tokens] = sum over the last dimension of values [tokens, n]; both in the accumulation dtype.
void sum_rows(const Execution& execution, const Tensor& values, const Tensor& row_sums);

// The gated norm over all heads together: y = act(gate) * x * inverse_rms, inverse_rms = 1/sqrt(sum/width + eps).
// x, gate, y [tokens, local width] (any row stride); square_sums [tokens, n] add up to the sum of squares over the
// whole width: those of the heads, as the attention kernel yields them, or their sum over all tensor ranks. width is
// the global one. Writes inverse_rms [tokens] for the backward pass.
void gated_norm_forward(const Execution& execution, const Tensor& x, const Tensor& square_sums, std::int64_t width,
                        double epsilon, const Tensor& gate, Activation gate_activation, const Tensor& y,
                        const Tensor& inverse_rms);

// dot [tokens] = sum over the local width of d_y * act(gate) * x * inverse_rms, for a width that is split: the caller
// sums it over the tensor group before the backward pass.
void gated_norm_backward_dot(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& inverse_rms,
                             const Tensor& gate, Activation gate_activation, const Tensor& dot);
// The backward pass: with n = x * inverse_rms, d_n = d_y * act(gate) and dot = sum over the whole width of d_n * n,
//   d_x = inverse_rms * (d_n - n * dot / width),  d_gate = d_y * n * act'(gate).
// A null dot is formed in the same pass; the whole width must be here. Writes y again, which the weight gradient of the
// layer after it reads (null: not wanted). d_x, d_gate and y may have any row stride and each alias one of d_y, x and
// gate.
void gated_norm_backward(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& inverse_rms,
                         const Tensor& gate, Activation gate_activation, const Tensor& dot, std::int64_t width,
                         const Tensor& d_x, const Tensor& d_gate, const Tensor& y);

}  // namespace fulmen
