// Sums over heads that slices of a sequence need, on a GPU.
#pragma once

#include "kernels/linear_attention_states.h"

namespace fulmen::cuda {

// to += from, both [batch, length, heads, width] with unit inner stride, of one dtype. square_sums [batch * length,
// heads], accumulation dtype: sum of to^2 over the width, as rounded; or null.
void add_heads(const Execution& execution, const Tensor& from, const Tensor& to, const Tensor& square_sums);

}  // namespace fulmen::cuda
