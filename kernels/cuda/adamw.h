// AdamW over flat buffers, on a GPU. See kernels/adamw.h.
#pragma once

#include "kernels/adamw.h"

namespace fulmen::cuda {

void adamw_update(const Execution& execution, const Tensor& parameters, const Tensor& gradients, const Tensor& exp_avg,
                  const Tensor& exp_avg_sq, const Tensor& scalars, const AdamwOptions& options, const Tensor& rounded);
void set_clip_scale(const Execution& execution, const Tensor& square_sum, double max_norm, const Tensor& norm,
                    const Tensor& scalars);

}  // namespace fulmen::cuda
