// Norms of rows, fused with their neighbours: the residual addition before, the gate after. SimpleRMSNorm has
// neither gain nor bias:
//   y = x / sqrt(mean_j(x_j^2) + eps)     TransNormerLLM (arXiv 2307.14995), eps inside the root as in the released
//   code
// Statistics are kept in the accumulation dtype (fp32, or fp64 for fp64 tensors).
#pragma once

#include <cstdint>

#include "framework/execution.h"
#include "kernels/activation.h"
#include "kernels/backends.h"

namespace fulmen {

// sum = residual + branch; normed = sum * inverse_rms.
// residual, branch, sum, normed [tokens, width]; inverse_rms [tokens], accumulation dtype.
// branch may be null: then sum must be null too or alias residual, and residual itself is normalised.
// sum may alias residual or branch.
void residual_norm_forward(const Execution& execution, const Tensor& residual, const Tensor& branch, double epsilon,
                           const Tensor& sum, const Tensor& normed, const Tensor& inverse_rms);
FULMEN_BACKENDS(residual_norm_forward);

// Given sum and inverse_rms of the forward pass and d_normed:
//   d_sum = d_residual + inverse_rms * (d_normed - normed * mean_j(d_normed * normed)),  normed = sum * inverse_rms
// d_residual [tokens, width] is the gradient that reaches `sum` past the norm; null means none. d_sum is the gradient
// of both `residual` and `branch`. Writes normed again, which the weight gradient of the layer after the norm reads
// (null: not wanted). d_sum and normed may each alias d_residual, d_normed or sum.
void residual_norm_backward(const Execution& execution, const Tensor& d_normed, const Tensor& sum,
                            const Tensor& inverse_rms, const Tensor& d_residual, const Tensor& d_sum,
                            const Tensor& normed);
FULMEN_BACKENDS(residual_norm_backward);

// The divisor and the factors of a norm. m = mean_j(x_j); r is the inverse root of a mean square plus eps.
enum class NormKind : std::uint8_t {
  simple,        // y = x r,                  r = 1 / sqrt(mean_j(x_j^2) + eps)
  rms,           // y = x r gain,             the same r         (LLaMA)
  zero_centred,  // y = x r (1 + gain),       the same r         (Qwen3-Next)
  layer,         // y = (x - m) r gain + bias,  r = 1 / sqrt(mean_j((x_j - m)^2) + eps)   (GPT-2)
};

struct NormWeights {
  NormKind kind = NormKind::simple;
  Tensor gain;  // [width], the activations' dtype; null for simple
  Tensor bias;  // [width], the activations' dtype; null but for layer
};

// Where the gradients of NormWeights go; null where the weight is null. [width], accumulation dtype. They are added to
// in an order that no number of threads changes.
struct NormWeightGradients {
  Tensor d_gain, d_bias;
};

// The statistics of a row for the backward pass: r, and for layer m after it.
constexpr std::int64_t statistics_of(NormKind kind) { return kind == NormKind::layer ? 2 : 1; }

// As residual_norm_forward above, for a norm of any kind: normed = norm(sum). statistics [tokens, statistics_of(kind)],
// contiguous, accumulation dtype.
void weighted_norm_forward(const Execution& execution, const Tensor& residual, const Tensor& branch,
                           const NormWeights& weights, double epsilon, const Tensor& sum, const Tensor& normed,
                           const Tensor& statistics);
FULMEN_BACKENDS(weighted_norm_forward);

// As residual_norm_backward above. With n = (sum - m) r (m = 0 but for layer), g = gain (or 1 + gain, or 1) and
// d_n = d_normed g:
//   d_sum = d_residual + r * (d_n - n mean_j(d_n n) - mean_j(d_n)),   the last mean for layer only,
//   d_gain += sum over tokens of d_normed n,   d_bias += sum over tokens of d_normed.
// normed is written again with gain and bias applied.
void weighted_norm_backward(const Execution& execution, const Tensor& d_normed, const Tensor& sum,
                            const NormWeights& weights, const Tensor& statistics, const Tensor& d_residual,
                            const Tensor& d_sum, const Tensor& normed, const NormWeightGradients& gradients);
FULMEN_BACKENDS(weighted_norm_backward);

// row_sums [tokens] = sum over the last dimension of values [tokens, n]; both in the accumulation dtype.
void sum_rows(const Execution& execution, const Tensor& values, const Tensor& row_sums);
FULMEN_BACKENDS(sum_rows);

// The gated norm over all heads together: y = act(gate) * x * inverse_rms * gain, inverse_rms = 1/sqrt(sum/width +
// eps). gain [local width], the activations' dtype; null: 1 (MiniMax has a gain, TransNormerLLM none). x, gate, y
// [tokens, local width] (any row stride). square_sums [tokens, n] sum to the squares of the whole width. They are the
// heads', as the attention kernel yields them, or their sum over all tensor ranks. width is global. Writes inverse_rms
// [tokens] for the backward pass.
void gated_norm_forward(const Execution& execution, const Tensor& x, const Tensor& square_sums, std::int64_t width,
                        double epsilon, const Tensor& gate, Activation gate_activation, const Tensor& y,
                        const Tensor& inverse_rms, const Tensor& gain = {});
FULMEN_BACKENDS(gated_norm_forward);

// dot [tokens] = sum over the local width of d_y * act(gate) * gain * x * inverse_rms, for a split width. The caller
// sums it over the tensor group before the backward pass.
void gated_norm_backward_dot(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& inverse_rms,
                             const Tensor& gate, Activation gate_activation, const Tensor& dot,
                             const Tensor& gain = {});
FULMEN_BACKENDS(gated_norm_backward_dot);
// The backward pass: with n = x * inverse_rms, d_n = d_y * act(gate) * gain and dot = sum over the whole width of
// d_n * n,
//   d_x = inverse_rms * (d_n - n * dot / width),  d_gate = d_y * n * gain * act'(gate),
//   d_gain += sum over the tokens of d_y * n * act(gate).
// d_gain [local width], accumulation dtype, null without a gain, is added to in an order that no number of threads
// changes. A null dot is formed in the same pass; the whole width must be here. Writes y again, which the weight
// gradient of the layer after it reads (null: not wanted). d_x, d_gate and y may have any row stride and each alias
// d_y, x or gate.
void gated_norm_backward(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& inverse_rms,
                         const Tensor& gate, Activation gate_activation, const Tensor& dot, std::int64_t width,
                         const Tensor& d_x, const Tensor& d_gate, const Tensor& y, const Tensor& gain = {},
                         const Tensor& d_gain = {});
FULMEN_BACKENDS(gated_norm_backward);

}  // namespace fulmen
