// Linear attention with wide heads on Hopper's tensor cores: bf16, keys and values of any widths in multiples of 64.
#pragma once

#include "kernels/linear_attention.h"

namespace fulmen::cuda::hopper {

// Whether these kernels can take the tensors: a Hopper GPU, bf16, keys of 64 to 256 columns and values of 64 to 512 in
// multiples of 64, no LRPE, no activations, every tensor's address and strides multiples of 16 bytes.
// Only tensors that are read or written count. States of pieces are not kept.
bool takes_wide(const LinearAttentionInputs& inputs, const LinearAttentionOutputs& outputs);
bool takes_wide(const LinearAttentionInputs& inputs, const LinearAttentionGradients& gradients);
bool takes_wide_states(const LinearAttentionInputs& inputs);
bool takes_wide_state_gradients(const LinearAttentionInputs& inputs, const Tensor& d_output);

void wide_attention_forward(const Execution& execution, const LinearAttentionInputs& inputs,
                            const LinearAttentionOutputs& outputs);
void wide_attention_backward(const Execution& execution, const LinearAttentionInputs& inputs,
                             const LinearAttentionGradients& gradients);
// As kernels/linear_attention_states.h has them.
void wide_attention_final_state(const Execution& execution, const LinearAttentionInputs& inputs,
                                const Tensor& final_state);
void wide_attention_initial_state_gradient(const Execution& execution, const LinearAttentionInputs& inputs,
                                           const Tensor& d_output, const Tensor& d_initial_state);

}  // namespace fulmen::cuda::hopper
