// Linear attention on Hopper's tensor cores: bf16, heads of 64 or 128.
#pragma once

#include "kernels/linear_attention.h"

namespace fulmen::cuda::hopper {

// Whether these sweeps can take the tensors: a Hopper GPU, bf16, key and value width 64 or 128 alike, SiLU or nothing on q
// and k, every tensor's address and strides multiples of 16 bytes. LRPE and an activation on v are taken too.
bool takes(const LinearAttentionInputs& inputs, const LinearAttentionOutputs& outputs);
bool takes(const LinearAttentionInputs& inputs, const LinearAttentionGradients& gradients);

void linear_attention_forward(const Execution& execution, const LinearAttentionInputs& inputs,
                              const LinearAttentionOutputs& outputs);
void linear_attention_backward(const Execution& execution, const LinearAttentionInputs& inputs,
                               const LinearAttentionGradients& gradients);

}  // namespace fulmen::cuda::hopper
