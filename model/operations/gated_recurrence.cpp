// Recurrences with decays that tokens choose as an operation.
#include "model/operations/gated_recurrence.h"

#include "kernels/elementwise.h"

namespace fulmen {

std::vector<Port> GatedRecurrence::outputs(Widths in) const {
  return {{.width = heads(in) * options_.value_width, .keep = Keep::all}};
}

// Update and read-out of the state: two operations each for each of its elements. The delta rule reads it twice.
Costs GatedRecurrence::costs(std::int64_t length, Widths in) const {
  (void)length;
  const double state = static_cast<double>(heads(in) * options_.key_width * options_.value_width);
  const double forward = (options_.delta ? 6.0 : 4.0) * state;
  return {forward, 2.0 * forward};
}

Shape GatedRecurrence::state_shape(std::int64_t batch, Widths in) const {
  return {batch, heads(in), options_.key_width, options_.value_width + transition_columns()};
}

Tensor GatedRecurrence::state_of(const Tensor& crossing) const {
  return crossing ? crossing.slice(3, 0, options_.value_width) : Tensor();
}

Tensor GatedRecurrence::transition_of(const Tensor& crossing) const {
  return crossing.slice(3, options_.value_width, options_.value_width + transition_columns());
}

Tensor GatedRecurrence::heads_of(const Pass& pass, const Tensor& matrix, std::int64_t width) const {
  return matrix ? matrix.split_dimension(0, pass.micro_batch.shape.length).split_dimension(2, width) : Tensor();
}

Tensor GatedRecurrence::decays_of(const Pass& pass, const Tensor& matrix) const {
  if (matrix.is_null()) return {};
  const Tensor rows = matrix.split_dimension(0, pass.micro_batch.shape.length);
  return options_.per_channel ? rows.split_dimension(2, options_.key_width) : rows;
}

GatedRecurrenceInputs GatedRecurrence::inputs(const Pass& pass, Tensors in, const Tensor& initial) const {
  GatedRecurrenceInputs inputs;
  inputs.query = heads_of(pass, in[0], options_.key_width);
  inputs.key = heads_of(pass, in[1], options_.key_width);
  inputs.value = heads_of(pass, in[2], options_.value_width);
  inputs.log_decay = decays_of(pass, in[log_decay_place]);
  if (options_.delta) inputs.beta = in[last_place].split_dimension(0, pass.micro_batch.shape.length);
  if (options_.bonus) inputs.bonus = in[last_place].flatten().split_dimension(0, options_.key_width);
  inputs.scale = options_.scale;
  // Planned: one document in each row, which needs the most scratch memory.
  if (!pass.execution.plans()) inputs.segments = pass.micro_batch.segments;
  inputs.initial_state = state_of(initial);
  return inputs;
}

GatedRecurrenceGradients GatedRecurrence::gradients(const Pass& pass, const BackwardTensors& tensors) const {
  GatedRecurrenceGradients gradients;
  gradients.d_output = heads_of(pass, tensors.d_out[0], options_.value_width);
  gradients.d_query = heads_of(pass, tensors.d_in[0], options_.key_width);
  gradients.d_key = heads_of(pass, tensors.d_in[1], options_.key_width);
  gradients.d_value = heads_of(pass, tensors.d_in[2], options_.value_width);
  gradients.d_log_decay = decays_of(pass, tensors.d_in[log_decay_place]);
  if (options_.delta) gradients.d_beta = tensors.d_in[last_place].split_dimension(0, pass.micro_batch.shape.length);
  if (options_.bonus) gradients.d_bonus = tensors.d_in[last_place].flatten().split_dimension(0, options_.key_width);
  return gradients;
}

void GatedRecurrence::summarise(const Pass& pass, Tensors in, const Tensor& state, Tensors kept) const {
  (void)kept;
  gated_recurrence_summary(pass.execution, inputs(pass, in, {}), state);
}

void GatedRecurrence::combine(const Pass& pass, Tensors in, const SliceTable& table, SliceSide side,
                              const Tensor& reach, const Tensor& out) const {
  (void)in;
  combine_gated_slices(pass.execution, {table.states, options_.value_width, table.bounds, table.slice}, side, reach,
                       out);
}

void GatedRecurrence::forward_from(const Pass& pass, Tensors in, const Tensor& initial, bool summarised, Tensors out,
                                   Tensors kept) const {
  (void)summarised, (void)kept;
  gated_recurrence_forward(pass.execution, inputs(pass, in, initial),
                           {heads_of(pass, out[0], options_.value_width), {}});
}

void GatedRecurrence::add_initial_state(const Pass& pass, Tensors in, const Tensor& initial, Tensors out) const {
  GatedRecurrenceInputs from = inputs(pass, in, initial);
  from.value = Tensor();
  gated_recurrence_forward(
      pass.execution, from,
      {.output = heads_of(pass, out[0], options_.value_width), .final_state = {}, .accumulates = true});
}

void GatedRecurrence::summarise_gradient(const Pass& pass, const BackwardTensors& tensors, const Tensor& initial,
                                         const Tensor& d_initial, Tensors work) const {
  (void)work;
  GatedRecurrenceGradients own;
  own.d_output = heads_of(pass, tensors.d_out[0], options_.value_width);
  own.d_initial_state = state_of(d_initial);
  gated_recurrence_backward(pass.execution, inputs(pass, tensors.in, initial), own);
  copy(pass.execution, transition_of(initial), transition_of(d_initial));  // combine() left the slice's own there
}

void GatedRecurrence::backward_to(const Pass& pass, const BackwardTensors& tensors, const Tensor& initial,
                                  const Tensor& d_final, Tensors work) const {
  (void)work;
  GatedRecurrenceGradients out = gradients(pass, tensors);
  out.d_final_state = state_of(d_final);
  gated_recurrence_backward(pass.execution, inputs(pass, tensors.in, initial), out);
}

void GatedRecurrence::add_final_state_gradient(const Pass& pass, const BackwardTensors& tensors, const Tensor& initial,
                                               const Tensor& d_final) const {
  GatedRecurrenceGradients out = gradients(pass, tensors);
  out.d_output = Tensor();
  out.d_final_state = state_of(d_final);
  out.accumulates = true;
  gated_recurrence_backward(pass.execution, inputs(pass, tensors.in, initial), out);
}

std::vector<StateSpec> GatedRecurrence::states(std::int64_t batch, std::int64_t length, Widths in) const {
  (void)length;
  return {{PortType::accumulation, {batch, heads(in), options_.key_width, options_.value_width}}};
}

void GatedRecurrence::step(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors states) const {
  (void)kept;
  gated_recurrence_step(pass.execution, inputs(pass, in, {}), states[0], heads_of(pass, out[0], options_.value_width));
}

}  // namespace fulmen
