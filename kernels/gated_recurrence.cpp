// Argument checks and dispatch of gated recurrences.
#include "kernels/gated_recurrence.h"

#include "kernels/dispatch.h"
#include "kernels/linear_attention_checks.h"

namespace fulmen {

namespace {

struct Sizes {
  explicit Sizes(const GatedRecurrenceInputs& inputs)
      : batch(inputs.key.size(0)),
        length(inputs.key.size(1)),
        heads(inputs.log_decay.size(2)),
        key_width(inputs.key.size(3)),
        value_width(inputs.value ? inputs.value.size(3) : inputs.initial_state.size(3)) {}

  std::int64_t batch, length, heads, key_width, value_width;
};

void check_state(const Tensor& x, const GatedRecurrenceInputs& inputs, std::int64_t columns, const char* name) {
  const Sizes size(inputs);
  check_attention_heads(x, accumulation_dtype(inputs.key.dtype()), {size.batch, size.heads, size.key_width, columns},
                        name);
}

void check_contiguous(const Tensor& x, DType dtype, const Shape& shape, const char* name) {
  check_dtype(x, dtype, name);
  check_shape(x, shape, name);
  FULMEN_CHECK(x.is_contiguous(), "{} is not contiguous", name);
}

void check_inputs(const GatedRecurrenceInputs& inputs, bool reads_queries) {
  const Tensor& key = inputs.key;
  FULMEN_CHECK(key.rank() == 4 && (inputs.log_decay.rank() == 3 || inputs.log_decay.rank() == 4),
               "key is {}, log_decay is {}", key.describe(), inputs.log_decay.describe());
  FULMEN_CHECK(inputs.value || inputs.initial_state, "neither values nor an initial state");
  const Sizes size(inputs);
  const DType dtype = key.dtype(), wide = accumulation_dtype(dtype);
  FULMEN_CHECK(size.batch > 0 && size.length > 0 && size.key_width > 0 && size.value_width > 0 && key.size(2) > 0 &&
                   size.heads % key.size(2) == 0,
               "key is {}, {} heads", key.describe(), size.heads);
  check_attention_heads(key, dtype, key.shape(), "key");
  if (reads_queries) check_attention_heads(inputs.query, dtype, key.shape(), "query");
  if (inputs.value)
    check_attention_heads(inputs.value, dtype, {size.batch, size.length, size.heads, size.value_width}, "value");
  Shape decays = {size.batch, size.length, size.heads};
  if (inputs.delta()) check_contiguous(inputs.beta, wide, decays, "beta");
  if (inputs.per_channel()) decays.push_back(size.key_width);
  check_contiguous(inputs.log_decay, wide, decays, "log_decay");
  FULMEN_CHECK(!inputs.bonus || !inputs.delta(), "a bonus with the delta rule");
  if (inputs.bonus) check_contiguous(inputs.bonus, wide, {size.heads, size.key_width}, "bonus");
  if (inputs.initial_state) check_state(inputs.initial_state, inputs, size.value_width, "initial_state");
  check_segments(inputs.segments, size.batch, size.length);
}

// Operations of the chunk form with chunks of 64 tokens, the causal half of the scores only. The delta rule solves for
// what is written and reads the state once more.
constexpr double chunk_tokens = 64.0;

double forward_operations(const GatedRecurrenceInputs& inputs) {
  const Sizes size(inputs);
  const auto k = static_cast<double>(size.key_width), v = static_cast<double>(size.value_width);
  const double delta = inputs.delta() ? chunk_tokens * (k + v) + 2.0 * k * v : 0.0;
  return static_cast<double>(size.batch * size.length * size.heads) * (chunk_tokens * (k + v) + 4.0 * k * v + delta);
}

double backward_operations(const GatedRecurrenceInputs& inputs) {
  const Sizes size(inputs);
  const auto k = static_cast<double>(size.key_width), v = static_cast<double>(size.value_width);
  const double delta = inputs.delta() ? chunk_tokens * (3.0 * k + 3.0 * v) + 6.0 * k * v : 0.0;
  return static_cast<double>(size.batch * size.length * size.heads) *
         (chunk_tokens * (3.0 * k + 2.0 * v) + 10.0 * k * v + delta);
}

}  // namespace

std::int64_t gated_recurrence_transition_columns(const GatedRecurrenceInputs& inputs) {
  return inputs.delta() ? inputs.key.size(3) : 1;
}

void gated_recurrence_forward(const Execution& execution, const GatedRecurrenceInputs& inputs,
                              const GatedRecurrenceOutputs& outputs) {
  check_inputs(inputs, true);
  const Sizes size(inputs);
  check_attention_heads(outputs.output, inputs.key.dtype(), {size.batch, size.length, size.heads, size.value_width},
                        "output");
  if (outputs.final_state) check_state(outputs.final_state, inputs, size.value_width, "final_state");
  run_on_device(execution,
                {"gated recurrence forward", forward_operations(inputs),
                 traffic({inputs.query, inputs.key, inputs.value, inputs.log_decay, inputs.beta, outputs.output}),
                 Scratch::everywhere},
                backends::gated_recurrence_forward, inputs, outputs);
}

void gated_recurrence_backward(const Execution& execution, const GatedRecurrenceInputs& inputs,
                               const GatedRecurrenceGradients& gradients) {
  check_inputs(inputs, true);
  const Sizes size(inputs);
  const DType dtype = inputs.key.dtype(), wide = accumulation_dtype(dtype);
  const Shape values = {size.batch, size.length, size.heads, size.value_width};
  if (gradients.d_output) check_attention_heads(gradients.d_output, dtype, values, "d_output");
  if (gradients.d_query) {
    check_attention_heads(gradients.d_query, dtype, inputs.query.shape(), "d_query");
    check_attention_heads(gradients.d_key, dtype, inputs.key.shape(), "d_key");
    if (inputs.value) check_attention_heads(gradients.d_value, dtype, values, "d_value");
    check_contiguous(gradients.d_log_decay, wide, inputs.log_decay.shape(), "d_log_decay");
    if (inputs.delta()) check_contiguous(gradients.d_beta, wide, inputs.beta.shape(), "d_beta");
    if (inputs.bonus) check_contiguous(gradients.d_bonus, wide, inputs.bonus.shape(), "d_bonus");
  }
  if (gradients.d_final_state) check_state(gradients.d_final_state, inputs, size.value_width, "d_final_state");
  if (gradients.d_initial_state) check_state(gradients.d_initial_state, inputs, size.value_width, "d_initial_state");
  run_on_device(execution,
                {"gated recurrence backward", backward_operations(inputs),
                 traffic({inputs.query, inputs.key, inputs.value, inputs.log_decay, inputs.beta, gradients.d_output,
                          gradients.d_query, gradients.d_key, gradients.d_value, gradients.d_log_decay}),
                 Scratch::everywhere},
                backends::gated_recurrence_backward, inputs, gradients);
}

void gated_recurrence_step(const Execution& execution, const GatedRecurrenceInputs& inputs, const Tensor& state,
                           const Tensor& output) {
  GatedRecurrenceInputs token = inputs;
  token.segments = Tensor(), token.initial_state = Tensor();  // ignored
  check_inputs(token, true);
  const Sizes size(token);
  FULMEN_CHECK(size.length == 1, "a step takes one token, not {}", size.length);
  check_contiguous(state, accumulation_dtype(inputs.key.dtype()),
                   {size.batch, size.heads, size.key_width, size.value_width}, "state");
  check_attention_heads(output, inputs.key.dtype(), {size.batch, 1, size.heads, size.value_width}, "output");
  run_on_device(execution,
                {"gated recurrence step", 0.0, traffic({state, state, inputs.query, inputs.key, inputs.value, output}),
                 Scratch::everywhere},
                backends::gated_recurrence_step, token, state, output);
}

void gated_recurrence_summary(const Execution& execution, const GatedRecurrenceInputs& inputs, const Tensor& summary) {
  check_inputs(inputs, false);
  FULMEN_CHECK(inputs.value, "a summary without values");
  check_state(summary, inputs, Sizes(inputs).value_width + gated_recurrence_transition_columns(inputs), "summary");
  run_on_device(execution,
                {"gated recurrence summary", forward_operations(inputs) / 2.0,
                 traffic({inputs.key, inputs.value, inputs.log_decay, inputs.beta, summary}), Scratch::everywhere},
                backends::gated_recurrence_summary, inputs, summary);
}

void combine_gated_slices(const Execution& execution, const GatedSlices& slices, SliceSide side, const Tensor& reach,
                          const Tensor& out) {
  Shape shape = out.shape();
  check_contiguous(out, out.dtype(), shape, "out");
  check_vector(reach, DType::int64, out.size(0), "reach");
  check_vector(slices.bounds, DType::int64, slices.summaries.size(0) + 1, "bounds");
  shape.insert(shape.begin(), slices.summaries.size(0));
  check_contiguous(slices.summaries, out.dtype(), shape, "summaries");
  FULMEN_CHECK(0 <= slices.slice && slices.slice < slices.summaries.size(0), "slice {} of {}", slices.slice,
               slices.summaries.size(0));
  FULMEN_CHECK(0 < slices.value_width && slices.value_width < out.size(3), "{} values in summaries {}",
               slices.value_width, out.describe());
  run_on_device(execution, {"gated recurrence slices", 0.0, traffic({slices.summaries, out}), Scratch::everywhere},
                backends::combine_gated_slices, slices, side, reach, out);
}

}  // namespace fulmen
