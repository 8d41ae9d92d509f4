// Linear attention on any GPU, for any widths and dtypes (fp32, fp64, bf16): the chunk form as batched matrix products.
#pragma once

#include "kernels/linear_attention.h"

namespace fulmen::cuda {

void linear_attention_forward_plain(const Execution& execution, const LinearAttentionInputs& inputs,
                                    const LinearAttentionOutputs& outputs);
void linear_attention_backward_plain(const Execution& execution, const LinearAttentionInputs& inputs,
                                     const LinearAttentionGradients& gradients);

// See kernels/linear_attention_states.h.
void linear_attention_final_state_plain(const Execution& execution, const LinearAttentionInputs& inputs,
                                        const Tensor& to);
void linear_attention_initial_state_gradient_plain(const Execution& execution, const LinearAttentionInputs& inputs,
                                                   const Tensor& d_output, const Tensor& to);
void linear_attention_add_initial_state_plain(const Execution& execution, const LinearAttentionInputs& inputs,
                                              const LinearAttentionOutputs& outputs);
// d_key and d_value as gradients.d_final_state alone makes them, and d_theta, which is added to. Reads key and value
// only.
void linear_attention_final_state_gradients_plain(const Execution& execution, const LinearAttentionInputs& inputs,
                                                  const LinearAttentionGradients& gradients);

}  // namespace fulmen::cuda
