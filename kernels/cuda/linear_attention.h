// The pieces of rows that linear attention makes on a GPU. See kernels/linear_attention.h.
#pragma once

#include "kernels/linear_attention.h"

namespace fulmen::cuda {

std::int64_t linear_attention_piece_elements(const Execution& execution, const LinearAttentionSize& size);

}  // namespace fulmen::cuda
