// The other kernels as their definitions have them, on contiguous double-precision vectors: the oracle of the backends.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/activation.h"
#include "kernels/adamw.h"
#include "kernels/head_norm.h"
#include "kernels/norm.h"
#include "kernels/rotation.h"

namespace fulmen::reference {

using Values = std::vector<double>;

// op(a) [m, k] op(b) [k, n], row-major; a transposed factor is stored [k, m] or [n, k].
Values gemm(const Values& a, bool transpose_a, const Values& b, bool transpose_b, std::int64_t m, std::int64_t n,
            std::int64_t k);

// y = x / sqrt(mean(x^2) + epsilon) per row of [tokens, width].
Values simple_rms_norm(const Values& x, std::int64_t width, double epsilon);
// d_x = J^T d_y with the whole Jacobian of each row.
Values simple_rms_norm_backward(const Values& x, const Values& d_y, std::int64_t width, double epsilon);

// A norm with weights, as kernels/norm.h has it, per row of [tokens, width]; gain and bias are empty where it has none.
Values norm(const Values& x, NormKind kind, const Values& gain, const Values& bias, std::int64_t width, double epsilon);
// The gradients with the whole Jacobian of each row.
struct NormGradients {
  Values d_x, d_gain, d_bias;
};
NormGradients norm_backward(const Values& x, NormKind kind, const Values& gain, const Values& d_y, std::int64_t width,
                            double epsilon);

// y = act(gate) * simple_rms_norm(x), and its gradients {d_x, d_gate}.
Values gated_norm(const Values& x, const Values& gate, Activation activation, std::int64_t width, double epsilon);
struct GatedNormGradients {
  Values d_x, d_gate;
};
GatedNormGradients gated_norm_backward(const Values& x, const Values& gate, Activation activation, const Values& d_y,
                                       std::int64_t width, double epsilon);

// The norm of each head, as kernels/head_norm.h has it, with the whole Jacobian of each group. gate and gain are empty
// where there is none; gain holds a group's columns or a row's.
struct HeadNormProblem {
  std::int64_t width = 0, group_width = 0;
  Values x, gate, gain;
  bool zero_centred = false;
  Activation activation = Activation::silu;
  GatePlace place = GatePlace::after_norm;
  double epsilon = 0.0;
};
struct HeadNormResult {
  Values y, d_x, d_gate, d_gain;
};
HeadNormResult head_norm(const HeadNormProblem& problem, const Values& d_y);

// y = act(a) * b, and its gradients {d_a, d_b}.
Values gated_linear_unit(const Values& a, const Values& b, Activation activation);
struct GatedLinearUnitGradients {
  Values d_a, d_b;
};
GatedLinearUnitGradients gated_linear_unit_backward(const Values& a, const Values& b, Activation activation,
                                                    const Values& d_y);

// losses [tokens] = weight * (log sum exp(logits) - logits[target]) over logits [tokens, columns]; and
// scale * weight * (softmax - one hot).
Values cross_entropy(const Values& logits, const std::vector<std::int32_t>& targets, const std::vector<float>& weights,
                     std::int64_t columns);
Values cross_entropy_backward(const Values& logits, const std::vector<std::int32_t>& targets,
                              const std::vector<float>& weights, std::int64_t columns, double scale);

// out [tokens, width] = scale * weight[token], 0 for a token outside [first, first + rows).
Values embedding(const std::vector<std::int32_t>& tokens, const Values& weight, std::int64_t width, std::int64_t first,
                 double scale);
// d_weight [rows, width] of it.
Values embedding_backward(const std::vector<std::int32_t>& tokens, const Values& d_out, std::int64_t width,
                          std::int64_t first, std::int64_t rows, double scale);

// x [tokens, heads * head_width] with its columns turned as kernels/rotation.h has it, frequency by frequency.
Values rotate(const Values& x, std::int64_t head_width, RotationPairs pairs, const Values& frequencies,
              const std::vector<std::int64_t>& positions, double scale);

// One step in place. scalars as in kernels/adamw.h.
void adamw(Values& parameters, const Values& gradients, Values& exp_avg, Values& exp_avg_sq, const Values& scalars,
           const AdamwOptions& options);

}  // namespace fulmen::reference
