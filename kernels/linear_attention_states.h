// The states that linear attention passes between the slices of a sequence on several ranks. A slice needs the final
// states of the slices in front of it, and the gradients of the initial states of the slices behind it. It needs
// nothing else, so the traffic does not grow with the length (LASP, arXiv 2404.02882; gathered once as in LASP-2, arXiv
// 2502.07563).
#pragma once

#include "kernels/backends.h"
#include "kernels/linear_attention.h"

namespace fulmen {

// final_state of linear_attention_forward with a zero initial state, without the outputs. Reads key and value only.
// piece_states: written for linear_attention_forward; or null.
void linear_attention_final_state(const Execution& execution, const LinearAttentionInputs& inputs,
                                  const Tensor& final_state, const Tensor& piece_states = {});
FULMEN_BACKENDS(linear_attention_final_state);

// d_initial_state of linear_attention_backward with a zero d_final_state, without the other gradients. Reads the query
// only; d_output [batch, length, heads, value width]. piece_gradients: written for linear_attention_backward; or null.
void linear_attention_initial_state_gradient(const Execution& execution, const LinearAttentionInputs& inputs,
                                             const Tensor& d_output, const Tensor& d_initial_state,
                                             const Tensor& piece_gradients = {});
FULMEN_BACKENDS(linear_attention_initial_state_gradient);

// A slice's place among the slices of its sequence, and their states.
struct SliceStates {
  Tensor states;  // [slices, batch, heads, state key width, value width]: each slice's own
  Tensor slope;   // fp64 [heads]
  Tensor bounds;  // int64 [slices + 1]: slice i holds tokens [bounds[i], bounds[i + 1]) of every sample
  int slice = 0;  // the slice that asks
};
enum class SliceSide : std::uint8_t { before, after };

// The state in front of the slice, from the final states of earlier slices. Or the gradient of the state behind it,
// from the gradients of initial states of later slices:
//   out = sum over the slices on that side, those that begin less than reach tokens away, of decay^distance * their
//   state
// where the distance runs between the facing ends. reach, int64 [batch]: how far the row's document goes on to that
// side of the slice. out [batch, heads, state key width, value width], as the states in the accumulation dtype;
// contiguous. Powers of the decay are formed in fp64.
void combine_slice_states(const Execution& execution, const SliceStates& slices, SliceSide side, const Tensor& reach,
                          const Tensor& out);
FULMEN_BACKENDS(combine_slice_states);

// Adds to outputs.output what linear_attention_forward would have added for inputs.initial_state;
// squares are summed again where they change. For a state that arrives after the forward pass has run without it.
void linear_attention_add_initial_state(const Execution& execution, const LinearAttentionInputs& inputs,
                                        const LinearAttentionOutputs& outputs);
FULMEN_BACKENDS(linear_attention_add_initial_state);

// Adds to d_key, d_value and d_theta what linear_attention_backward would have added for gradients.d_final_state.
// Reads none of the other gradients; key and value of the inputs only.
void linear_attention_add_final_state_gradient(const Execution& execution, const LinearAttentionInputs& inputs,
                                               const LinearAttentionGradients& gradients);
FULMEN_BACKENDS(linear_attention_add_final_state_gradient);

}  // namespace fulmen
