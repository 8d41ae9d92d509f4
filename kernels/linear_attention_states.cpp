// Argument checks and dispatch of the states that slices of a sequence pass on.
#include "kernels/linear_attention_states.h"

#include "kernels/linear_attention_checks.h"

namespace fulmen {

namespace {

// Operations of one product between every token and a state.
double state_operations(const LinearAttentionInputs& inputs, const Tensor& state) {
  return 2.0 * static_cast<double>(inputs.key.size(0) * inputs.key.size(1) * inputs.key.size(2) * state.size(2) *
                                   state.size(3));
}

}  // namespace

void linear_attention_final_state(const Execution& execution, const LinearAttentionInputs& inputs,
                                  const Tensor& final_state, const Tensor& piece_states) {
  check_attention_inputs(inputs);
  check_attention_state(final_state, inputs, "final_state");
  check_piece_states(execution, inputs, piece_states, "piece_states");
  run_on_device(execution,
                {"linear attention states", state_operations(inputs, final_state), traffic({inputs.key, inputs.value}),
                 Scratch::on_cpu},
                backends::linear_attention_final_state, inputs, final_state, piece_states);
}

void linear_attention_initial_state_gradient(const Execution& execution, const LinearAttentionInputs& inputs,
                                             const Tensor& d_output, const Tensor& d_initial_state,
                                             const Tensor& piece_gradients) {
  check_attention_inputs(inputs);
  check_attention_heads(d_output, inputs.query.dtype(), inputs.value.shape(), "d_output");
  check_attention_state(d_initial_state, inputs, "d_initial_state");
  check_piece_states(execution, inputs, piece_gradients, "piece_gradients");
  run_on_device(execution,
                {"linear attention states", state_operations(inputs, d_initial_state),
                 traffic({inputs.query, d_output}), Scratch::on_cpu},
                backends::linear_attention_initial_state_gradient, inputs, d_output, d_initial_state, piece_gradients);
}

void combine_slice_states(const Execution& execution, const SliceStates& slices, SliceSide side, const Tensor& reach,
                          const Tensor& out) {
  FULMEN_CHECK(out.rank() == 4 && out.is_contiguous() && slices.states.is_contiguous(), "states {} are combined to {}",
               slices.states.describe(), out.describe());
  const std::int64_t count = slices.bounds.elements() - 1;
  check_dtype(slices.states, out.dtype(), "states");
  check_shape(slices.states, {count, out.size(0), out.size(1), out.size(2), out.size(3)}, "states");
  check_vector(slices.slope, DType::fp64, out.size(1), "slope");
  check_vector(slices.bounds, DType::int64, count + 1, "bounds");
  check_vector(reach, DType::int64, out.size(0), "reach");
  FULMEN_CHECK(0 <= slices.slice && slices.slice < count, "slice {} of {}", slices.slice, count);
  run_on_device(execution, {"combination of states", 0.0, traffic({slices.states, out})},
                backends::combine_slice_states, slices, side, reach, out);
}

void linear_attention_add_initial_state(const Execution& execution, const LinearAttentionInputs& inputs,
                                        const LinearAttentionOutputs& outputs) {
  check_attention_inputs(inputs);
  FULMEN_CHECK(inputs.initial_state, "there is no initial state to add");
  check_attention_heads(outputs.output, inputs.query.dtype(), inputs.value.shape(), "output");
  run_on_device(execution,
                {"linear attention states", state_operations(inputs, inputs.initial_state),
                 traffic({inputs.query, outputs.output, outputs.output}), Scratch::on_cpu},
                backends::linear_attention_add_initial_state, inputs, outputs);
}

void linear_attention_add_final_state_gradient(const Execution& execution, const LinearAttentionInputs& inputs,
                                               const LinearAttentionGradients& gradients) {
  check_attention_inputs(inputs);
  check_attention_state(gradients.d_final_state, inputs, "d_final_state");
  check_attention_heads(gradients.d_key, inputs.key.dtype(), inputs.key.shape(), "d_key");
  check_attention_heads(gradients.d_value, inputs.key.dtype(), inputs.value.shape(), "d_value");
  run_on_device(execution,
                {"linear attention states", 2.0 * state_operations(inputs, gradients.d_final_state),
                 traffic({inputs.key, inputs.value, gradients.d_key, gradients.d_value}), Scratch::on_cpu},
                backends::linear_attention_add_final_state_gradient, inputs, gradients);
}

}  // namespace fulmen
