// Causal softmax attention as an operation.
#include "model/operations/softmax_attention.h"

#include <cmath>

namespace fulmen {

namespace {

// [batch, length, width].
Tensor rows_of(const Pass& pass, const Tensor& matrix) {
  return matrix ? matrix.split_dimension(0, pass.micro_batch.shape.length) : Tensor();
}

}  // namespace

void SoftmaxAttention::find_first_visible(const Pass& pass, const Tensor& first) const {
  document_starts(pass.execution, pass.micro_batch.segments, pass.micro_batch.positions, pass.micro_batch.tokens_before,
                  first);
}

Tensor SoftmaxAttention::first_visible(const Pass& pass) const {
  const Tensor first = pass.execution.scratch->take(DType::int64, pass.micro_batch.positions.shape());
  find_first_visible(pass, first);
  return first;
}

// For whole samples.
RingQueries SoftmaxAttention::queries(const Pass& pass, Tensors in) const {
  if (pass.micro_batch.one_document) return {rows_of(pass, in[0]), {}, {}};
  return {rows_of(pass, in[0]), pass.micro_batch.positions, first_visible(pass)};
}

RingKeys SoftmaxAttention::keys(const Pass& pass, Tensors in) const {
  return {rows_of(pass, in[1]), rows_of(pass, in[2]), pass.micro_batch.positions};
}

std::vector<Port> SoftmaxAttention::outputs(Widths in) const { return {{.width = in[0], .keep = Keep::all}}; }

// Two products over half of the pairs of tokens, two operations a pair and column each; five in the backward pass.
Costs SoftmaxAttention::costs(std::int64_t length, Widths in) const {
  const double product = static_cast<double>(in[0]) * static_cast<double>(length);
  return {2.0 * product, 5.0 * product};
}

std::vector<KeptTensor> SoftmaxAttention::kept(const PassShape& where, Widths in) const {
  return {{PortType::accumulation, {where.shape.batch, log_sums(in), where.shape.length}, Keep::products}};
}

SoftmaxAttentionInputs SoftmaxAttention::inputs(const RingQueries& queries, const RingKeys& keys) const {
  return {.query = heads_of(queries.query),
          .key = heads_of(keys.key),
          .value = heads_of(keys.value),
          .scale = 1.0 / std::sqrt(static_cast<double>(head_width_)),
          .query_positions = queries.positions,
          .key_positions = queries.positions ? keys.positions : Tensor(),
          .first_visible = queries.first_visible,
          .sees_all = queries.sees_all};
}

void SoftmaxAttention::forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const {
  const Arena::Frame frame(*pass.execution.scratch);
  forward_block(pass.execution, queries(pass, in), keys(pass, in), rows_of(pass, out[0]), kept[0]);
}

void SoftmaxAttention::backward(const Pass& pass, const BackwardTensors& tensors) const {
  const Arena::Frame frame(*pass.execution.scratch);
  const auto rows = [&](const Tensor& matrix) { return heads_of(rows_of(pass, matrix)); };
  softmax_attention_backward(pass.execution, inputs(queries(pass, tensors.in), keys(pass, tensors.in)),
                             {.output = rows(tensors.out[0]),
                              .log_sum_exp = tensors.kept[0],
                              .d_output = rows(tensors.d_out[0]),
                              .d_query = rows(tensors.d_in[0]),
                              .d_key = rows(tensors.d_in[1]),
                              .d_value = rows(tensors.d_in[2])});
}

std::vector<StateSpec> SoftmaxAttention::states(std::int64_t batch, std::int64_t length, Widths in) const {
  std::vector<StateSpec> cache;
  for (const std::int64_t width : {in[1], in[2]})
    cache.push_back({PortType::activation, {batch, width / head_width_, length, head_width_}});
  return cache;
}

// A token's position is the number of tokens before it.
void SoftmaxAttention::step(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors states) const {
  (void)kept;
  const Tensor& positions = pass.micro_batch.positions;
  const SoftmaxAttentionInputs token =
      inputs({rows_of(pass, in[0]), {}, {}}, {rows_of(pass, in[1]), rows_of(pass, in[2]), {}});
  softmax_attention_step(pass.execution, token, {states[0], states[1], positions.flatten()},
                         heads_of(rows_of(pass, out[0])));
}

void SoftmaxAttention::forward_block(const Execution& execution, const RingQueries& queries, const RingKeys& keys,
                                     const Tensor& output, const Tensor& log_sum) const {
  softmax_attention_forward(execution, inputs(queries, keys), heads_of(output), log_sum);
}

void SoftmaxAttention::merge_block(const Execution& execution, const Tensor& block_output, const Tensor& block_log_sum,
                                   bool first, const Tensor& output, const Tensor& log_sum) const {
  merge_attention(execution, heads_of(block_output), block_log_sum, first, heads_of(output), log_sum);
}

void SoftmaxAttention::backward_block(const Execution& execution, const RingQueries& queries, const RingKeys& keys,
                                      const RingGradients& gradients) const {
  softmax_attention_backward(execution, inputs(queries, keys),
                             {.output = heads_of(gradients.output),
                              .log_sum_exp = gradients.log_sum,
                              .d_output = heads_of(gradients.d_output),
                              .d_query = heads_of(gradients.d_query),
                              .d_key = heads_of(gradients.d_key),
                              .d_value = heads_of(gradients.d_value),
                              .add = true});
}

}  // namespace fulmen
