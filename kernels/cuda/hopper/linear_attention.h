// Linear attention on Hopper's tensor cores: bf16, heads of 64 or 128.
#pragma once

#include "kernels/linear_attention.h"

namespace fulmen::cuda::hopper {

// Whether these sweeps can take the tensors. They want a Hopper GPU, bf16, key and value width 64 or 128 alike, SiLU or
// nothing on q and k. Every tensor's address and strides are multiples of 16 bytes. LRPE and an activation on v are
// taken too.
bool takes(const LinearAttentionInputs& inputs, const LinearAttentionOutputs& outputs);
bool takes(const LinearAttentionInputs& inputs, const LinearAttentionGradients& gradients);

// As fulmen::linear_attention_piece_elements.
std::int64_t piece_elements(const Execution& execution, const LinearAttentionSize& size);

void linear_attention_forward(const Execution& execution, const LinearAttentionInputs& inputs,
                              const LinearAttentionOutputs& outputs);
void linear_attention_backward(const Execution& execution, const LinearAttentionInputs& inputs,
                               const LinearAttentionGradients& gradients);

// The states that slices of a sequence pass on, as kernels/linear_attention_states.h has them, without what else
// forward and backward do. They take what `takes` takes; of query and key only the tensor that is read counts.
bool takes_states(const LinearAttentionInputs& inputs);
bool takes_initial_state(const LinearAttentionInputs& inputs);
bool takes_state_gradients(const LinearAttentionInputs& inputs, const Tensor& d_output);
void linear_attention_final_state(const Execution& execution, const LinearAttentionInputs& inputs,
                                  const Tensor& final_state, const Tensor& piece_states);
void linear_attention_initial_state_gradient(const Execution& execution, const LinearAttentionInputs& inputs,
                                             const Tensor& d_output, const Tensor& d_initial_state,
                                             const Tensor& piece_gradients);
// The output that inputs.initial_state alone makes, contiguous. Reads the query only.
void linear_attention_initial_state_outputs(const Execution& execution, const LinearAttentionInputs& inputs,
                                            const Tensor& output);
// d_key and d_value as gradients.d_final_state alone makes them, and d_theta, which is added to. Reads key and value
// only.
void linear_attention_final_state_gradients(const Execution& execution, const LinearAttentionInputs& inputs,
                                            const LinearAttentionGradients& gradients);

}  // namespace fulmen::cuda::hopper
