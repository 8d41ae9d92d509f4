// The passes around the sweeps of linear attention: values through an activation, and the warps' sums of d_theta.
// Queries and keys become features in the sweeps themselves.
#pragma once

#include "framework/execution.h"
#include "kernels/activation.h"

namespace fulmen::cuda::hopper {

// out = act(x); bf16 [batch, length, heads, 64 or 128], rows of heads at multiples of 16 bytes.
void activate_values(const Execution& execution, const Tensor& x, Activation activation, const Tensor& out);
// d_x = d_out act'(x).
void differentiate_values(const Execution& execution, const Tensor& x, Activation activation, const Tensor& d_out,
                          const Tensor& d_x);

// d_theta fp64 [n] += the sum over the rows of shares, fp64 [count, n], in a fixed order.
void add_theta_shares(const Execution& execution, const Tensor& shares, const Tensor& d_theta);

}  // namespace fulmen::cuda::hopper
