// Checks of arguments that the entry points of linear attention share.
#pragma once

#include "kernels/dispatch.h"
#include "kernels/linear_attention.h"

namespace fulmen {

// [batch, length, heads, width], unit inner stride.
void check_attention_heads(const Tensor& x, DType dtype, const Shape& shape, const char* name);
// [batch, heads, state key width, value width], contiguous, accumulation dtype.
void check_attention_state(const Tensor& x, const LinearAttentionInputs& inputs, const char* name);
// A tensor of linear_attention_piece_elements elements, or null.
void check_piece_states(const Execution& execution, const LinearAttentionInputs& inputs, const Tensor& x,
                        const char* name);
// Offsets as in LinearAttentionInputs, or null.
void check_segments(const Tensor& segments, std::int64_t batch, std::int64_t length);
void check_attention_inputs(const LinearAttentionInputs& inputs);

}  // namespace fulmen
