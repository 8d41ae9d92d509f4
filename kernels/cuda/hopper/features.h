// Queries, keys and values as the sweeps of linear attention take them, where an activation or LRPE makes other numbers, or
// more of them, than the tensors hold: act(x), or [act(x) cos(m theta), act(x) sin(m theta)] (arXiv 2307.14995, section 3.1.1).
#pragma once

#include "framework/execution.h"
#include "kernels/activation.h"

namespace fulmen::cuda::hopper {

struct Features {
  Tensor x;                   // bf16 [batch, length, heads, D], unit inner stride
  Activation activation;
  Tensor theta, positions;    // as LinearAttentionInputs has them; null for no LRPE
  std::int64_t width() const { return x.size(3) * (theta ? 2 : 1); }
};

// out: bf16 [batch, length, heads, width()], contiguous.
void make_features(const Execution& execution, const Features& features, const Tensor& out);
// From d_out, contiguous, d_x (strided as x may be); d_theta fp64 [heads, D] is added to, in a fixed order.
void differentiate_features(const Execution& execution, const Features& features, const Tensor& d_out, const Tensor& d_x,
                            const Tensor& d_theta);

}  // namespace fulmen::cuda::hopper
