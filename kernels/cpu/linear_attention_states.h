// The states that slices of a sequence pass on, on the CPU. See kernels/linear_attention_states.h.
#pragma once

#include "kernels/linear_attention_states.h"

namespace fulmen::cpu {

void linear_attention_final_state(const Execution& execution, const LinearAttentionInputs& inputs,
                                  const Tensor& final_state);
void linear_attention_initial_state_gradient(const Execution& execution, const LinearAttentionInputs& inputs,
                                             const Tensor& d_output, const Tensor& d_initial_state);
void combine_slice_states(const Execution& execution, const SliceStates& slices, SliceSide side, const Tensor& reach,
                          const Tensor& out);
void linear_attention_add_initial_state(const Execution& execution, const LinearAttentionInputs& inputs,
                                        const LinearAttentionOutputs& outputs);
void linear_attention_add_final_state_gradient(const Execution& execution, const LinearAttentionInputs& inputs,
                                               const LinearAttentionGradients& gradients);

}  // namespace fulmen::cpu
