// Chooses the path of linear attention on a GPU.
#include "kernels/cuda/linear_attention.h"

#ifdef FULMEN_HOPPER
#include "kernels/cuda/hopper/linear_attention.h"
#include "kernels/cuda/hopper/wide_attention.h"
#endif
#include "kernels/cuda/linear_attention_plain.h"
#include "kernels/cuda/linear_attention_states.h"

namespace fulmen::cuda {

namespace {

// The plain path makes all states in one pass with the rest; who was told to keep some cannot be served by it.
void check_nothing_is_kept(const Tensor& piece_states) {
  FULMEN_CHECK(piece_states.is_null(),
               "states of pieces are kept, but the tensors' strides or addresses keep the path that has them away");
}

}  // namespace

std::int64_t linear_attention_piece_elements(const Execution& execution, const LinearAttentionSize& size) {
#ifdef FULMEN_HOPPER
  return hopper::piece_elements(execution, size);
#else
  (void)execution, (void)size;
  return 0;
#endif
}

void linear_attention_forward(const Execution& execution, const LinearAttentionInputs& inputs,
                              const LinearAttentionOutputs& outputs) {
#ifdef FULMEN_HOPPER
  if (hopper::takes(inputs, outputs)) return hopper::linear_attention_forward(execution, inputs, outputs);
  if (hopper::takes_wide(inputs, outputs)) return hopper::wide_attention_forward(execution, inputs, outputs);
#endif
  check_nothing_is_kept(outputs.piece_states);
  linear_attention_forward_plain(execution, inputs, outputs);
}

void linear_attention_backward(const Execution& execution, const LinearAttentionInputs& inputs,
                               const LinearAttentionGradients& gradients) {
#ifdef FULMEN_HOPPER
  if (hopper::takes(inputs, gradients)) return hopper::linear_attention_backward(execution, inputs, gradients);
  if (hopper::takes_wide(inputs, gradients)) return hopper::wide_attention_backward(execution, inputs, gradients);
#endif
  check_nothing_is_kept(inputs.piece_states);
  check_nothing_is_kept(gradients.piece_gradients);
  linear_attention_backward_plain(execution, inputs, gradients);
}

void linear_attention_final_state(const Execution& execution, const LinearAttentionInputs& inputs,
                                  const Tensor& final_state, const Tensor& piece_states) {
#ifdef FULMEN_HOPPER
  if (hopper::takes_states(inputs))
    return hopper::linear_attention_final_state(execution, inputs, final_state, piece_states);
  if (hopper::takes_wide_states(inputs)) return hopper::wide_attention_final_state(execution, inputs, final_state);
#endif
  check_nothing_is_kept(piece_states);
  linear_attention_final_state_plain(execution, inputs, final_state);
}

void linear_attention_initial_state_gradient(const Execution& execution, const LinearAttentionInputs& inputs,
                                             const Tensor& d_output, const Tensor& d_initial_state,
                                             const Tensor& piece_gradients) {
#ifdef FULMEN_HOPPER
  if (hopper::takes_state_gradients(inputs, d_output))
    return hopper::linear_attention_initial_state_gradient(execution, inputs, d_output, d_initial_state,
                                                           piece_gradients);
  if (hopper::takes_wide_state_gradients(inputs, d_output))
    return hopper::wide_attention_initial_state_gradient(execution, inputs, d_output, d_initial_state);
#endif
  check_nothing_is_kept(piece_gradients);
  linear_attention_initial_state_gradient_plain(execution, inputs, d_output, d_initial_state);
}

void linear_attention_add_initial_state(const Execution& execution, const LinearAttentionInputs& inputs,
                                        const LinearAttentionOutputs& outputs) {
#ifdef FULMEN_HOPPER
  if (hopper::takes_initial_state(inputs)) {
    const Arena::Frame frame(*execution.scratch);
    const Tensor added = execution.scratch->take(outputs.output.dtype(), outputs.output.shape());
    hopper::linear_attention_initial_state_outputs(execution, inputs, added);
    return add_heads(execution, added, outputs.output, outputs.square_sums);
  }
#endif
  linear_attention_add_initial_state_plain(execution, inputs, outputs);
}

void linear_attention_add_final_state_gradient(const Execution& execution, const LinearAttentionInputs& inputs,
                                               const LinearAttentionGradients& gradients) {
  const Arena::Frame frame(*execution.scratch);
  LinearAttentionGradients added = gradients;
  added.d_key = execution.scratch->take(inputs.key.dtype(), inputs.key.shape());
  added.d_value = execution.scratch->take(inputs.value.dtype(), inputs.value.shape());
#ifdef FULMEN_HOPPER
  if (hopper::takes_states(inputs))
    hopper::linear_attention_final_state_gradients(execution, inputs, added);
  else
#endif
    linear_attention_final_state_gradients_plain(execution, inputs, added);
  add_heads(execution, added.d_key, gradients.d_key, {});
  add_heads(execution, added.d_value, gradients.d_value, {});
}

}  // namespace fulmen::cuda
