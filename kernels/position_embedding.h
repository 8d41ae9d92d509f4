// Learned absolute positions (GPT-1, GPT-2): a row of a matrix is added to each token.
#pragma once

#include "framework/execution.h"
#include "kernels/backends.h"

namespace fulmen {

// out[b * length + t] += weight[positions[b, t]]. positions int64 [batch, length], in [0, rows); weight [rows, width];
// out [batch * length, width].
void position_embedding_forward(const Execution& execution, const Tensor& positions, const Tensor& weight,
                                const Tensor& out);
FULMEN_BACKENDS(position_embedding_forward);
// d_weight[positions[0, t]] += the sum over b of d_out[b * length + t], in the order of b. Every row of a micro-batch
// has the same positions, all different.
void position_embedding_backward(const Execution& execution, const Tensor& positions, const Tensor& d_out,
                                 const Tensor& d_weight);
FULMEN_BACKENDS(position_embedding_backward);

}  // namespace fulmen
