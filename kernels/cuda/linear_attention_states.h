// The states that slices of a sequence pass on, on a GPU. See kernels/linear_attention_states.h.
#pragma once

#include "kernels/linear_attention_states.h"

namespace fulmen::cuda {

void linear_attention_final_state(const Execution& execution, const LinearAttentionInputs& inputs,
                                  const Tensor& final_state, const Tensor& piece_states);
void linear_attention_initial_state_gradient(const Execution& execution, const LinearAttentionInputs& inputs,
                                             const Tensor& d_output, const Tensor& d_initial_state,
                                             const Tensor& piece_gradients);
void combine_slice_states(const Execution& execution, const SliceStates& slices, SliceSide side, const Tensor& reach,
                          const Tensor& out);
void linear_attention_add_initial_state(const Execution& execution, const LinearAttentionInputs& inputs,
                                        const LinearAttentionOutputs& outputs);
void linear_attention_add_final_state_gradient(const Execution& execution, const LinearAttentionInputs& inputs,
                                               const LinearAttentionGradients& gradients);

// to += from, both [batch, length, heads, width] with unit inner stride, of one dtype. square_sums [batch * length,
// heads], accumulation dtype: sum of to^2 over the width, as rounded; or null.
void add_heads(const Execution& execution, const Tensor& from, const Tensor& to, const Tensor& square_sums);

}  // namespace fulmen::cuda
