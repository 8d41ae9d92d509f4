// Linear attention with decay, on the CPU. See kernels/linear_attention.h.
#pragma once

#include "kernels/linear_attention.h"

namespace fulmen::cpu {

void linear_attention_forward(const Execution& execution, const LinearAttentionInputs& inputs,
                              const LinearAttentionOutputs& outputs);
void linear_attention_backward(const Execution& execution, const LinearAttentionInputs& inputs,
                               const LinearAttentionGradients& gradients);
void linear_attention_step(const Execution& execution, const LinearAttentionInputs& inputs, const Tensor& state,
                           const LinearAttentionOutputs& outputs);

}  // namespace fulmen::cpu
