// Linear attention with decay, on a GPU. See kernels/linear_attention.h.
#pragma once

#include "kernels/linear_attention.h"

namespace fulmen::cuda {

std::int64_t linear_attention_piece_elements(const Execution& execution, const LinearAttentionSize& size);
void linear_attention_forward(const Execution& execution, const LinearAttentionInputs& inputs,
                              const LinearAttentionOutputs& outputs);
void linear_attention_backward(const Execution& execution, const LinearAttentionInputs& inputs,
                               const LinearAttentionGradients& gradients);
void linear_attention_step(const Execution& execution, const LinearAttentionInputs& inputs, const Tensor& state,
                           const LinearAttentionOutputs& outputs);

}  // namespace fulmen::cuda
