// Argument checks and dispatch of linear attention.
#include "kernels/linear_attention.h"

#include "kernels/cuda/linear_attention.h"
#include "kernels/dispatch.h"
#include "kernels/linear_attention_checks.h"

namespace fulmen {

void check_segments(const Tensor& segments, std::int64_t batch, std::int64_t length) {
  if (segments.is_null()) return;
  check_vector(segments, DType::int64, segments.elements(), "segments");
  if (segments.device().kind != DeviceKind::cpu) return;
  const std::int64_t* const offsets = segments.as<std::int64_t>();
  const std::int64_t count = segments.elements() - 1;
  FULMEN_CHECK(count >= batch && offsets[0] == 0 && offsets[count] == batch * length,
               "segments do not cover {} rows of {} tokens", batch, length);
  for (std::int64_t s = 0; s < count; ++s) {
    FULMEN_CHECK(offsets[s] < offsets[s + 1] && offsets[s] / length == (offsets[s + 1] - 1) / length,
                 "segment {} runs from {} to {}, rows have {} tokens", s, offsets[s], offsets[s + 1], length);
  }
}

void check_attention_heads(const Tensor& x, DType dtype, const Shape& shape, const char* name) {
  check_dtype(x, dtype, name);
  check_shape(x, shape, name);
  check_unit_inner_stride(x, name);
}

void check_attention_state(const Tensor& x, const LinearAttentionInputs& inputs, const char* name) {
  const std::int64_t keys = inputs.key.size(3) * (inputs.theta ? 2 : 1);
  check_dtype(x, accumulation_dtype(inputs.query.dtype()), name);
  check_shape(x, {inputs.query.size(0), inputs.query.size(2), keys, inputs.value.size(3)}, name);
  FULMEN_CHECK(x.is_contiguous(), "{} is not contiguous", name);
}

LinearAttentionSize size_of(const LinearAttentionInputs& inputs) {
  const Tensor &key = inputs.key, &value = inputs.value;
  return {key.size(0),
          key.size(1),
          key.size(2),
          key.size(3),
          value.size(3),
          key.dtype(),
          inputs.query_key_activation,
          !inputs.theta.is_null()};
}

std::int64_t linear_attention_piece_elements(const Execution& execution, const LinearAttentionSize& size) {
  if (execution.device.kind == DeviceKind::cpu) return 0;
  if constexpr (gpu::built) return cuda::linear_attention_piece_elements(execution, size);
  gpu::require(execution.device);
  return 0;
}

void check_piece_states(const Execution& execution, const LinearAttentionInputs& inputs, const Tensor& x,
                        const char* name) {
  if (x.is_null()) return;
  check_vector(x, accumulation_dtype(inputs.key.dtype()), linear_attention_piece_elements(execution, size_of(inputs)),
               name);
}

void check_attention_inputs(const LinearAttentionInputs& inputs) {
  const Tensor &query = inputs.query, &key = inputs.key, &value = inputs.value;
  FULMEN_CHECK(query.rank() == 4 && value.rank() == 4, "query is {}, value is {}", query.describe(), value.describe());
  const DType dtype = query.dtype();
  const std::int64_t batch = query.size(0), length = query.size(1), heads = query.size(2), width = query.size(3);
  FULMEN_CHECK(batch > 0 && length > 0 && heads > 0 && width > 0 && value.size(3) > 0, "query is {}, value is {}",
               query.describe(), value.describe());
  check_attention_heads(query, dtype, query.shape(), "query");
  check_attention_heads(key, dtype, query.shape(), "key");
  check_attention_heads(value, dtype, {batch, length, heads, value.size(3)}, "value");
  check_vector(inputs.slope, DType::fp64, heads, "slope");
  if (inputs.theta) {
    check_dtype(inputs.theta, DType::fp64, "theta");
    check_shape(inputs.theta, {heads, width}, "theta");
    FULMEN_CHECK(inputs.theta.is_contiguous(), "theta is not contiguous");
    check_dtype(inputs.positions, DType::int64, "positions");
    check_shape(inputs.positions, {batch, length}, "positions");
  }
  if (inputs.initial_state) check_attention_state(inputs.initial_state, inputs, "initial_state");
  check_gate_activation(inputs.query_key_activation);
  check_gate_activation(inputs.value_activation);
  check_segments(inputs.segments, batch, length);
}

namespace {

void check_outputs(const LinearAttentionInputs& inputs, const LinearAttentionOutputs& outputs) {
  check_attention_heads(outputs.output, inputs.query.dtype(), inputs.value.shape(), "output");
  if (outputs.square_sums) {
    check_dtype(outputs.square_sums, accumulation_dtype(inputs.query.dtype()), "square_sums");
    check_shape(outputs.square_sums, {inputs.query.size(0) * inputs.query.size(1), inputs.query.size(2)},
                "square_sums");
    FULMEN_CHECK(outputs.square_sums.is_contiguous(), "square_sums is not contiguous");
  }
  if (outputs.final_state) check_attention_state(outputs.final_state, inputs, "final_state");
}

}  // namespace

namespace {

// Operations of the chunk form with chunks of 64 tokens, the causal half of the scores only. Forward: scores and their
// product with v, the state's update and read-out. Backward: five products inside a chunk, five with states.
constexpr double chunk_tokens = 64.0;

double token_heads(const LinearAttentionInputs& inputs) {
  return static_cast<double>(inputs.query.size(0) * inputs.query.size(1) * inputs.query.size(2));
}

double key_width(const LinearAttentionInputs& inputs) {
  return static_cast<double>(inputs.query.size(3)) * (inputs.theta ? 2.0 : 1.0);
}

double forward_operations(const LinearAttentionInputs& inputs) {
  const double k = key_width(inputs), v = static_cast<double>(inputs.value.size(3));
  return token_heads(inputs) * (chunk_tokens * (k + v) + 4.0 * k * v);
}

double backward_operations(const LinearAttentionInputs& inputs) {
  const double k = key_width(inputs), v = static_cast<double>(inputs.value.size(3));
  return token_heads(inputs) * (chunk_tokens * (3.0 * k + 2.0 * v) + 10.0 * k * v);
}

}  // namespace

void linear_attention_forward(const Execution& execution, const LinearAttentionInputs& inputs,
                              const LinearAttentionOutputs& outputs) {
  check_attention_inputs(inputs);
  check_outputs(inputs, outputs);
  check_piece_states(execution, inputs, outputs.piece_states, "piece_states");
  FULMEN_CHECK(outputs.piece_states || !outputs.own_piece_states, "there are no states of pieces");
  run_on_device(execution,
                {"linear attention forward", forward_operations(inputs),
                 traffic({inputs.query, inputs.key, inputs.value, outputs.output}), Scratch::on_cpu},
                backends::linear_attention_forward, inputs, outputs);
}

void linear_attention_backward(const Execution& execution, const LinearAttentionInputs& inputs,
                               const LinearAttentionGradients& gradients) {
  check_attention_inputs(inputs);
  const DType dtype = inputs.query.dtype();
  check_attention_heads(gradients.d_output, dtype, inputs.value.shape(), "d_output");
  check_attention_heads(gradients.d_query, dtype, inputs.query.shape(), "d_query");
  check_attention_heads(gradients.d_key, dtype, inputs.key.shape(), "d_key");
  check_attention_heads(gradients.d_value, dtype, inputs.value.shape(), "d_value");
  check_piece_states(execution, inputs, inputs.piece_states, "piece_states");
  check_piece_states(execution, inputs, gradients.piece_gradients, "piece_gradients");
  if (gradients.d_final_state) check_attention_state(gradients.d_final_state, inputs, "d_final_state");
  if (gradients.d_initial_state) check_attention_state(gradients.d_initial_state, inputs, "d_initial_state");
  if (inputs.theta) {
    check_dtype(gradients.d_theta, DType::fp64, "d_theta");
    check_shape(gradients.d_theta, inputs.theta.shape(), "d_theta");
    FULMEN_CHECK(gradients.d_theta.is_contiguous(), "d_theta is not contiguous");
  }
  run_on_device(execution,
                {"linear attention backward", backward_operations(inputs),
                 traffic({inputs.query, inputs.key, inputs.value, gradients.d_output, gradients.d_query,
                          gradients.d_key, gradients.d_value}),
                 Scratch::on_cpu},
                backends::linear_attention_backward, inputs, gradients);
}

void linear_attention_step(const Execution& execution, const LinearAttentionInputs& inputs, const Tensor& state,
                           const LinearAttentionOutputs& outputs) {
  LinearAttentionInputs token = inputs;
  token.segments = Tensor();  // ignored
  check_attention_inputs(token);
  FULMEN_CHECK(inputs.query.size(1) == 1, "a step takes one token, not {}", inputs.query.size(1));
  check_attention_state(state, inputs, "state");
  check_outputs(inputs, outputs);
  run_on_device(execution,
                {"linear attention step", 0.0,
                 traffic({state, state, inputs.query, inputs.key, inputs.value, outputs.output}), Scratch::on_cpu},
                backends::linear_attention_step, inputs, state, outputs);
}

}  // namespace fulmen
