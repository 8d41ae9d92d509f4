// AdamW over flat buffers (Loshchilov and Hutter, arXiv 1711.05101), in the order that PyTorch uses:
//   g *= clip_scale;  p *= 1 - lr * weight_decay;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   p -= lr * (m / correction1) / (sqrt(v / correction2) + eps)
#pragma once

#include "framework/execution.h"
#include "kernels/backends.h"

namespace fulmen {

// Values that change from step to step. Kept in device memory as an fp64 tensor [adamw_scalars], so that a captured
// step can be replayed. They are {learning rate, correction1 = 1 - b1^t, correction2 = 1 - b2^t, clip_scale}.
inline constexpr std::int64_t adamw_scalars = 4;

struct AdamwOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.0;
  double learning_rate_scale = 1.0;  // of the parameter group
};

// parameters, exp_avg, exp_avg_sq, gradients: flat, equal lengths; gradients may be wider than the parameters. rounded:
// null, or (on a GPU) the weights that the model computes with, in a narrower dtype.
void adamw_update(const Execution& execution, const Tensor& parameters, const Tensor& gradients, const Tensor& exp_avg,
                  const Tensor& exp_avg_sq, const Tensor& scalars, const AdamwOptions& options,
                  const Tensor& rounded = {});
FULMEN_BACKENDS(adamw_update);

// Clipping by the global norm, as PyTorch: norm [1] = sqrt(square_sum [1]), scalars[3] = min(1, max_norm / (norm +
// 1e-6)), or 1 when max_norm is 0 (no clipping). All fp64, in device memory.
void set_clip_scale(const Execution& execution, const Tensor& square_sum, double max_norm, const Tensor& norm,
                    const Tensor& scalars);
FULMEN_BACKENDS(set_clip_scale);

}  // namespace fulmen
