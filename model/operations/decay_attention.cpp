// Linear attention with a constant decay per head as an operation.
#include "model/operations/decay_attention.h"

namespace fulmen {

std::vector<Port> DecayAttention::outputs(Widths in) const {
  return {{.width = in[2], .keep = Keep::all},
          {.type = PortType::accumulation,
           .width = in[2] / options_.head_width,
           .keep = Keep::never,
           .differentiable = false}};
}

// Update and read-out of the state: two operations each for each of its elements.
Costs DecayAttention::costs(std::int64_t length, Widths in) const {
  (void)length;
  const double forward = 4.0 * static_cast<double>(in[0] * options_.head_width) * (options_.lrpe ? 2.0 : 1.0);
  return {forward, 2.0 * forward};
}

std::vector<KeptTensor> DecayAttention::kept(const PassShape& where, Widths in) const {
  const std::int64_t width = options_.head_width;
  const std::int64_t elements = linear_attention_piece_elements(
      where.execution, {where.shape.batch, where.shape.length, in[0] / width, width, width, where.activation,
                        options_.query_key_activation, options_.lrpe});
  if (elements == 0) return {};
  return {{PortType::accumulation, {elements}, Keep::all}};
}

Shape DecayAttention::state_shape(std::int64_t batch, Widths in) const {
  const std::int64_t width = options_.head_width;
  return {batch, in[0] / width, options_.lrpe ? 2 * width : width, width};
}

Tensor DecayAttention::heads_of(const Pass& pass, const Tensor& matrix) const {
  if (matrix.is_null()) return {};
  return matrix.split_dimension(0, pass.micro_batch.shape.length).split_dimension(2, options_.head_width);
}

LinearAttentionInputs DecayAttention::inputs(const Pass& pass, Tensors in, const Tensor& initial) const {
  LinearAttentionInputs inputs;
  inputs.query = heads_of(pass, in[0]);
  inputs.key = heads_of(pass, in[1]);
  inputs.value = heads_of(pass, in[2]);
  inputs.query_key_activation = options_.query_key_activation;
  inputs.value_activation = options_.value_activation;
  inputs.slope = in[3];
  if (options_.lrpe) {
    inputs.theta = in[4];
    inputs.positions = pass.micro_batch.positions;
  }
  inputs.segments = pass.micro_batch.segments;
  inputs.initial_state = initial;
  return inputs;
}

LinearAttentionOutputs DecayAttention::results(const Pass& pass, Tensors out, Tensors kept) const {
  LinearAttentionOutputs outputs;
  outputs.output = heads_of(pass, out[0]);
  outputs.square_sums = out[1];
  if (!kept.empty()) outputs.piece_states = kept[0];
  return outputs;
}

LinearAttentionGradients DecayAttention::gradients(const Pass& pass, const BackwardTensors& tensors) const {
  LinearAttentionGradients gradients;
  gradients.d_output = heads_of(pass, tensors.d_out[0]);
  gradients.d_query = heads_of(pass, tensors.d_in[0]);
  gradients.d_key = heads_of(pass, tensors.d_in[1]);
  gradients.d_value = heads_of(pass, tensors.d_in[2]);
  if (options_.lrpe) gradients.d_theta = tensors.d_in[4];
  return gradients;
}

void DecayAttention::summarise(const Pass& pass, Tensors in, const Tensor& state, Tensors kept) const {
  linear_attention_final_state(pass.execution, inputs(pass, in, {}), state, kept.empty() ? Tensor() : kept[0]);
}

void DecayAttention::combine(const Pass& pass, Tensors in, const SliceTable& table, SliceSide side, const Tensor& reach,
                             const Tensor& out) const {
  combine_slice_states(pass.execution, {table.states, in[3], table.bounds, table.slice}, side, reach, out);
}

void DecayAttention::forward_from(const Pass& pass, Tensors in, const Tensor& initial, bool summarised, Tensors out,
                                  Tensors kept) const {
  LinearAttentionOutputs outputs = results(pass, out, kept);
  outputs.own_piece_states = summarised && !outputs.piece_states.is_null();
  linear_attention_forward(pass.execution, inputs(pass, in, initial), outputs);
}

void DecayAttention::add_initial_state(const Pass& pass, Tensors in, const Tensor& initial, Tensors out) const {
  linear_attention_add_initial_state(pass.execution, inputs(pass, in, initial), results(pass, out, {}));
}

void DecayAttention::summarise_gradient(const Pass& pass, const BackwardTensors& tensors, const Tensor& initial,
                                        const Tensor& d_initial, Tensors work) const {
  linear_attention_initial_state_gradient(pass.execution, inputs(pass, tensors.in, initial),
                                          heads_of(pass, tensors.d_out[0]), d_initial,
                                          work.empty() ? Tensor() : work[0]);
}

void DecayAttention::backward_to(const Pass& pass, const BackwardTensors& tensors, const Tensor& initial,
                                 const Tensor& d_final, Tensors work) const {
  LinearAttentionInputs in = inputs(pass, tensors.in, initial);
  if (!tensors.kept.empty()) in.piece_states = tensors.kept[0];
  LinearAttentionGradients out = gradients(pass, tensors);
  out.d_final_state = d_final;
  if (!work.empty()) out.piece_gradients = work[0];
  linear_attention_backward(pass.execution, in, out);
}

void DecayAttention::add_final_state_gradient(const Pass& pass, const BackwardTensors& tensors, const Tensor& initial,
                                              const Tensor& d_final) const {
  LinearAttentionGradients out = gradients(pass, tensors);
  out.d_final_state = d_final;
  linear_attention_add_final_state_gradient(pass.execution, inputs(pass, tensors.in, initial), out);
}

std::vector<StateSpec> DecayAttention::states(std::int64_t batch, std::int64_t length, Widths in) const {
  (void)length;
  return {{PortType::accumulation, state_shape(batch, in)}};
}

void DecayAttention::step(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors states) const {
  linear_attention_step(pass.execution, inputs(pass, in, {}), states[0], results(pass, out, kept));
}

}  // namespace fulmen
