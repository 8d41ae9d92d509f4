// TransNormerLLM's token mixer.
#include "model/gated_linear_attention.h"

#include <cmath>

#include "framework/transfer.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "model/decay_slopes.h"
#include "model/sliced_linear_attention.h"

namespace fulmen {

namespace {

std::string prefix_of(std::int64_t layer) { return fmt::format("model.layers.{}.token_mixer.", layer); }

// The fused projection: `parts` quarters (or thirds) of hidden rows, each split by heads.
ParameterDeclaration declare_projection(const ModelConfig& config, const std::string& name, int parts) {
  ParameterDeclaration declaration = declare_weight(name, {parts * config.hidden, config.hidden},
                                                    normal_initializer(config.initializer_std), 0, config.heads);
  declaration.segments.clear();
  for (int part = 0; part < parts; ++part)
    declaration.segments.push_back({name, part * config.hidden, config.hidden, config.heads});
  return declaration;
}

// One ladder of frequencies across all heads: theta[h, 0, j] = 10000^(-2 (h e + j) / d).
ParameterDeclaration declare_theta(const ModelConfig& config, const std::string& name) {
  const double hidden = static_cast<double>(config.hidden);
  ParameterDeclaration declaration = declare_vector(
      name, {config.heads, 1, config.head_width()},
      [hidden](const RandomStream&, std::int64_t index) {
        return std::pow(10000.0, -2.0 * static_cast<double>(index) / hidden);
      },
      config.heads);
  declaration.group.narrowest = DType::fp64;
  declaration.group.whole = true;
  return declaration;
}

}  // namespace

std::vector<ParameterDeclaration> GatedLinearAttention::declare(const ModelConfig& config, std::int64_t layer) {
  const std::string prefix = prefix_of(layer);
  const Initializer normal = normal_initializer(config.initializer_std);
  std::vector<ParameterDeclaration> list;
  if (config.low_rank_gate()) {
    list.push_back(declare_projection(config, prefix + "qkv_proj.weight", 3));
    // Each rank's heads contribute their part to the first gate matrix's gradient.
    list.push_back(declare_weight(prefix + "output_gate.0.weight", {config.gate_rank, config.hidden}, normal, 0, 0));
    list.back().placement = weight_placement(AxisPlacement::replicated_partial);
    list.push_back(
        declare_weight(prefix + "output_gate.1.weight", {config.hidden, config.gate_rank}, normal, 0, config.heads));
  } else {
    list.push_back(declare_projection(config, prefix + "qkvu_proj.weight", 4));
  }
  list.push_back(declare_weight(prefix + "out_proj.weight", {config.hidden, config.hidden}, normal, 1, config.heads));
  if (config.has_lrpe(layer)) list.push_back(declare_theta(config, prefix + "lrpe.theta"));
  return list;
}

GatedLinearAttention::GatedLinearAttention(const ModelConfig& config, std::int64_t layer, const ModelContext& context)
    : NormedSublayer(config, context),
      head_width_(config.head_width()),
      value_activation_(config.low_rank_gate() ? Activation::silu : Activation::none),
      gate_activation_(config.low_rank_gate() ? Activation::sigmoid : Activation::none) {
  const ParameterStore& parameters = *context.parameters;
  const std::string prefix = prefix_of(layer);
  projection_ = parameters.id(prefix + (config.low_rank_gate() ? "qkv_proj.weight" : "qkvu_proj.weight"));
  out_ = parameters.id(prefix + "out_proj.weight");
  if (config.low_rank_gate()) {
    gate_first_ = parameters.id(prefix + "output_gate.0.weight");
    gate_second_ = parameters.id(prefix + "output_gate.1.weight");
  }
  if (config.has_lrpe(layer)) theta_ = parameters.id(prefix + "lrpe.theta");

  const Communicator& tensor = *context.tensor;
  FULMEN_CHECK(config.heads % tensor.size() == 0, "{} tensor ranks do not divide {} heads", tensor.size(),
               config.heads);
  const IndexRange heads = partition(config.heads, tensor.size(), tensor.rank());
  heads_ = heads.size();
  local_ = heads_ * head_width_;
  const std::vector<double> slopes = decay_slopes(config.heads, layer, config.layers);
  slope_ = OwnedTensor(context.execution.device, DType::fp64, {heads_}, MemoryKind::weights, *context.execution.ledger);
  copy_to_device(context.execution, slopes.data() + heads.begin, slope_);
}

void GatedLinearAttention::prepare(int slots) {
  prepare_norms(slots);
  stashes_.clear();
  stashes_.resize(static_cast<std::size_t>(slots));
}

std::vector<StashTensor> GatedLinearAttention::stash(int slot, const BatchShape& shape) {
  const DType type = context_.parameters->precision().parameters;
  const DType wide = accumulation_dtype(type);
  const std::int64_t tokens = shape.tokens();
  Stash& stash = stash_of(slot);
  std::vector<StashTensor> list = {
      {&stash.projection, type, {tokens, (low_rank_gated() ? 3 : 4) * local_}, Keep::products},
      {&stash.attention, type, {tokens, local_}, Keep::all},
      {&stash.gate_inverse_rms, wide, {tokens}, Keep::products}};
  if (low_rank_gated()) {
    // Small, and read by backward_weight, when what was made again is gone.
    list.push_back({&stash.low_rank, type, {tokens, context_.parameters->layout(*gate_first_).rows}, Keep::always});
    list.push_back({&stash.low_rank_gate, type, {tokens, local_}, Keep::all});  // a product of few operations
  }
  if (context_.sequence.ranks != nullptr)
    list.push_back({&stash.initial_state, wide, state_shape(shape.batch), Keep::products});
  // Not where they would be without the state in front of the slice, which arrives later.
  if (context_.sequence.ranks == nullptr || !context_.sequence.overlap) {
    const std::int64_t elements = linear_attention_piece_elements(
        context_.execution,
        {shape.batch, shape.length, heads_, head_width_, head_width_, type, Activation::silu, theta_.has_value()});
    if (elements > 0) list.push_back({&stash.piece_states, wide, {elements}, Keep::all});
  }
  return with_norm(slot, shape, std::move(list));
}

Tensor GatedLinearAttention::gate(const Stash& stash) const {
  if (low_rank_gated()) return stash.low_rank_gate;
  return stash.projection.slice(1, 3 * local_, 4 * local_);
}

Tensor GatedLinearAttention::attention_output(const Stash& stash, const MicroBatch& micro_batch) const {
  return stash.attention.split_dimension(0, micro_batch.shape.length).split_dimension(2, head_width_);
}

LinearAttentionInputs GatedLinearAttention::attention_inputs(const Stash& stash, const MicroBatch& micro_batch) const {
  const Tensor& projection = stash.projection;
  const auto part = [&](int i) {  // [batch, length, heads, width], where the projection left it
    return projection.slice(1, i * local_, (i + 1) * local_)
        .split_dimension(0, micro_batch.shape.length)
        .split_dimension(2, head_width_);
  };
  LinearAttentionInputs inputs;
  inputs.query = part(0);
  inputs.key = part(1);
  inputs.value = part(2);
  inputs.value_activation = value_activation_;
  inputs.slope = slope_;
  if (theta_) {
    inputs.theta = context_.parameters->weight(*theta_);
    inputs.positions = micro_batch.positions;
  }
  inputs.segments = micro_batch.segments;
  if (context_.sequence.ranks != nullptr) inputs.initial_state = stash.initial_state;
  return inputs;
}

void GatedLinearAttention::run(int slot, const MicroBatch& micro_batch, const Tensor& state, const Tensor& residual,
                               const Tensor& branch, const Tensor& branch_out) {
  Stash& stash = stash_of(slot);
  const Execution& execution = context_.execution;
  const ParameterStore& parameters = *context_.parameters;
  const DType type = parameters.precision().parameters;
  const DType wide = accumulation_dtype(type);
  const std::int64_t tokens = micro_batch.shape.tokens();
  const Arena::Frame frame(*execution.scratch);

  multiply_normed(
      slot, micro_batch, residual, branch, [&](const Execution& where, IndexRange rows, const Tensor& values) {
        linear_forward(where, values, parameters.weight(projection_), stash.projection.slice(0, rows.begin, rows.end));
        if (low_rank_gated())
          linear_forward(where, values, parameters.weight(*gate_first_), stash.low_rank.slice(0, rows.begin, rows.end));
      });
  if (low_rank_gated())
    linear_forward(execution, stash.low_rank, parameters.weight(*gate_second_), stash.low_rank_gate);

  LinearAttentionOutputs outputs;
  outputs.output = attention_output(stash, micro_batch);
  outputs.square_sums = execution.scratch->take(wide, {tokens, heads_});
  outputs.piece_states = stash.piece_states;
  const LinearAttentionInputs inputs = attention_inputs(stash, micro_batch);
  if (state)
    linear_attention_step(execution, inputs, state, outputs);
  else if (context_.sequence.ranks != nullptr)
    sliced_linear_attention_forward(context_, micro_batch, inputs, outputs, stash.initial_state);
  else
    linear_attention_forward(execution, inputs, outputs);

  Tensor square_sums = outputs.square_sums;
  if (context_.tensor->size() > 1) {
    const Tensor square_sum = execution.scratch->take(wide, {tokens});
    sum_rows(execution, square_sums, square_sum);
    context_.sum_over_tensor(square_sum);
    square_sums = square_sum.reshape({tokens, 1});
  }
  const Tensor gated = execution.scratch->take(type, {tokens, local_});
  gated_norm_forward(execution, stash.attention, square_sums, hidden_, epsilon_, gate(stash), gate_activation_, gated,
                     stash.gate_inverse_rms);
  if (!branch_out) return;
  TokenSum sum(context_, branch_out, tokens, *execution.scratch);
  sum.add_up([&](const Execution& where, IndexRange rows, const Tensor& values) {
    linear_forward(where, gated.slice(0, rows.begin, rows.end), parameters.weight(out_), values);
  });
  sum.finish();
}

void GatedLinearAttention::forward(int slot, const MicroBatch& micro_batch, const Tensor& residual,
                                   const Tensor& branch, const Tensor& branch_out) {
  run(slot, micro_batch, {}, residual, branch, branch_out);
}

void GatedLinearAttention::restore(int slot, const MicroBatch& micro_batch) {
  Stash& stash = stash_of(slot);
  if (low_rank_gated())
    linear_forward(context_.execution, stash.low_rank, context_.parameters->weight(*gate_second_), stash.low_rank_gate);
  LinearAttentionOutputs outputs;
  outputs.output = attention_output(stash, micro_batch);
  outputs.piece_states = stash.piece_states;
  const LinearAttentionInputs inputs = attention_inputs(stash, micro_batch);
  if (context_.sequence.ranks != nullptr)
    sliced_linear_attention_again(context_, inputs, outputs);
  else
    linear_attention_forward(context_.execution, inputs, outputs);
}

Shape GatedLinearAttention::state_shape(std::int64_t batch) const {
  return {batch, heads_, theta_ ? 2 * head_width_ : head_width_, head_width_};
}

void GatedLinearAttention::decode(int slot, const MicroBatch& micro_batch, const Tensor& state, const Tensor& residual,
                                  const Tensor& branch, const Tensor& branch_out) {
  FULMEN_CHECK(micro_batch.shape.length == 1, "decoding takes one token a row, not {}", micro_batch.shape.length);
  run(slot, micro_batch, state, residual, branch, branch_out);
}

void GatedLinearAttention::differentiate(int slot, const MicroBatch& micro_batch, Arena& kept) {
  Stash& stash = stash_of(slot);
  const Execution& execution = context_.execution;
  const ParameterStore& parameters = *context_.parameters;
  const DType type = parameters.precision().parameters;
  const std::int64_t tokens = micro_batch.shape.tokens();
  stash.d_projection = kept.take(type, {tokens, stash.projection.size(1)});
  stash.gated = kept.take(type, {tokens, local_});
  if (low_rank_gated()) {
    stash.d_low_rank = kept.take(type, {tokens, stash.low_rank.size(1)});
    stash.d_low_rank_gate = kept.take(type, {tokens, local_});
  }
  const Arena::Frame frame(*execution.scratch);
  const Tensor& d_gated = stash.gated;  // written where its gradient was read
  linear_backward_input(execution, d_branch_out(slot), parameters.weight(out_), d_gated);

  Tensor dot;  // of a split width; of a whole one the backward pass forms it itself
  if (context_.tensor->size() > 1) {
    dot = execution.scratch->take(accumulation_dtype(type), {tokens});
    gated_norm_backward_dot(execution, d_gated, stash.attention, stash.gate_inverse_rms, gate(stash), gate_activation_,
                            dot);
    context_.sum_over_tensor(dot);
  }
  const Tensor d_attention = execution.scratch->take(type, {tokens, local_});
  const Tensor d_gate = low_rank_gated() ? stash.d_low_rank_gate : stash.d_projection.slice(1, 3 * local_, 4 * local_);
  gated_norm_backward(execution, d_gated, stash.attention, stash.gate_inverse_rms, gate(stash), gate_activation_, dot,
                      hidden_, d_attention, d_gate, stash.gated);

  const auto heads_of = [&](const Tensor& matrix) {
    return matrix.split_dimension(0, micro_batch.shape.length).split_dimension(2, head_width_);
  };
  LinearAttentionGradients gradients;
  gradients.d_output = heads_of(d_attention);
  gradients.d_query = heads_of(stash.d_projection.slice(1, 0, local_));
  gradients.d_key = heads_of(stash.d_projection.slice(1, local_, 2 * local_));
  gradients.d_value = heads_of(stash.d_projection.slice(1, 2 * local_, 3 * local_));
  if (theta_) gradients.d_theta = parameters.gradient(*theta_);
  LinearAttentionInputs inputs = attention_inputs(stash, micro_batch);
  inputs.piece_states = stash.piece_states;
  if (context_.sequence.ranks != nullptr)
    sliced_linear_attention_backward(context_, micro_batch, inputs, gradients);
  else
    linear_attention_backward(execution, inputs, gradients);
  if (low_rank_gated())
    linear_backward_input(execution, stash.d_low_rank_gate, parameters.weight(*gate_second_), stash.d_low_rank);
}

void GatedLinearAttention::differentiate_normed(int slot, TokenSum& d_normed, bool beside) {
  const Stash& stash = stash_of(slot);
  const ParameterStore& parameters = *context_.parameters;
  d_normed.add_up(
      [&](const Execution& where, IndexRange rows, const Tensor& values) {
        const auto of = [&](const Tensor& whole) { return whole.slice(0, rows.begin, rows.end); };
        linear_backward_input(where, of(stash.d_projection), parameters.weight(projection_), values);
        if (low_rank_gated())
          linear_backward_input(where, of(stash.d_low_rank), parameters.weight(*gate_first_), values, true);
      },
      beside);
}

void GatedLinearAttention::add_output_gradients(int slot) {
  const Stash& stash = stash_of(slot);
  add_weight_gradient(context_, context_.execution, out_, d_branch_out(slot), stash.gated);
  if (low_rank_gated())
    add_weight_gradient(context_, context_.execution, *gate_second_, stash.d_low_rank_gate, stash.low_rank);
}

void GatedLinearAttention::add_input_gradients(int slot, const Execution& execution, const Tensor& normed) {
  const Stash& stash = stash_of(slot);
  add_weight_gradient(context_, execution, projection_, stash.d_projection, normed);
  if (low_rank_gated()) add_weight_gradient(context_, execution, *gate_first_, stash.d_low_rank, normed);
}

}  // namespace fulmen
