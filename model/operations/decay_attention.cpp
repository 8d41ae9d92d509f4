// Linear attention with a constant decay per head as an operation.
#include "model/operations/decay_attention.h"

namespace fulmen {

std::int64_t DecayAttention::heads(Widths in) const {
  const std::int64_t of_head = options_.by_heads ? 2 * options_.key_width + options_.value_width : options_.key_width;
  return in[0] / of_head;
}

std::vector<Port> DecayAttention::outputs(Widths in) const {
  std::vector<Port> ports = {{.width = heads(in) * options_.value_width, .keep = Keep::all}};
  if (options_.square_sums)
    ports.push_back({.type = PortType::accumulation, .width = heads(in), .keep = Keep::never, .differentiable = false});
  return ports;
}

// Update and read-out of the state: two operations each for each of its elements.
Costs DecayAttention::costs(std::int64_t length, Widths in) const {
  (void)length;
  const double forward =
      4.0 * static_cast<double>(heads(in) * options_.key_width * options_.value_width) * (options_.lrpe ? 2.0 : 1.0);
  return {forward, 2.0 * forward};
}

std::vector<KeptTensor> DecayAttention::kept(const PassShape& where, Widths in) const {
  const std::int64_t elements = linear_attention_piece_elements(
      where.execution, {where.shape.batch, where.shape.length, heads(in), options_.key_width, options_.value_width,
                        where.activation, options_.query_key_activation, options_.lrpe});
  if (elements == 0) return {};
  return {{PortType::accumulation, {elements}, Keep::all}};
}

Shape DecayAttention::state_shape(std::int64_t batch, Widths in) const {
  const std::int64_t width = options_.key_width;
  return {batch, heads(in), options_.lrpe ? 2 * width : width, options_.value_width};
}

DecayAttention::Heads DecayAttention::heads_of(const Pass& pass, Tensors matrices) const {
  const std::int64_t key = options_.key_width, length = pass.micro_batch.shape.length;
  const auto split = [&](const Tensor& matrix, std::int64_t width) {
    return matrix ? matrix.split_dimension(0, length).split_dimension(2, width) : Tensor();
  };
  if (!options_.by_heads)
    return {split(matrices[0], key), split(matrices[1], key), split(matrices[2], options_.value_width)};
  const std::int64_t all = 2 * key + options_.value_width;
  const Tensor whole = split(matrices[0], all);
  if (!whole) return {};
  return {whole.slice(3, 0, key), whole.slice(3, key, 2 * key), whole.slice(3, 2 * key, all)};
}

Tensor DecayAttention::values_of(const Pass& pass, const Tensor& matrix) const {
  if (matrix.is_null()) return {};
  return matrix.split_dimension(0, pass.micro_batch.shape.length).split_dimension(2, options_.value_width);
}

LinearAttentionInputs DecayAttention::inputs(const Pass& pass, Tensors in, const Tensor& initial) const {
  LinearAttentionInputs inputs;
  const Heads heads = heads_of(pass, in);
  inputs.query = heads.query;
  inputs.key = heads.key;
  inputs.value = heads.value;
  inputs.query_key_activation = options_.query_key_activation;
  inputs.value_activation = options_.value_activation;
  inputs.slope = in[matrices()];
  if (options_.lrpe) {
    inputs.theta = in[matrices() + 1];
    inputs.positions = pass.micro_batch.positions;
  }
  // Planned: one document in each row, which needs the most scratch memory.
  if (!pass.execution.plans()) inputs.segments = pass.micro_batch.segments;
  inputs.initial_state = initial;
  return inputs;
}

LinearAttentionOutputs DecayAttention::results(const Pass& pass, Tensors out, Tensors kept) const {
  LinearAttentionOutputs outputs;
  outputs.output = values_of(pass, out[0]);
  if (options_.square_sums) outputs.square_sums = out[1];
  if (!kept.empty()) outputs.piece_states = kept[0];
  return outputs;
}

LinearAttentionGradients DecayAttention::gradients(const Pass& pass, const BackwardTensors& tensors) const {
  LinearAttentionGradients gradients;
  gradients.d_output = values_of(pass, tensors.d_out[0]);
  const Heads heads = heads_of(pass, tensors.d_in);
  gradients.d_query = heads.query;
  gradients.d_key = heads.key;
  gradients.d_value = heads.value;
  if (options_.lrpe) gradients.d_theta = tensors.d_in[matrices() + 1];
  return gradients;
}

void DecayAttention::summarise(const Pass& pass, Tensors in, const Tensor& state, Tensors kept) const {
  linear_attention_final_state(pass.execution, inputs(pass, in, {}), state, kept.empty() ? Tensor() : kept[0]);
}

void DecayAttention::combine(const Pass& pass, Tensors in, const SliceTable& table, SliceSide side, const Tensor& reach,
                             const Tensor& out) const {
  combine_slice_states(pass.execution, {table.states, in[matrices()], table.bounds, table.slice}, side, reach, out);
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
                                          values_of(pass, tensors.d_out[0]), d_initial,
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
