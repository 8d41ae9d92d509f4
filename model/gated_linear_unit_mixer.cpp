// TransNormerLLM's channel mixer.
#include "model/gated_linear_unit_mixer.h"

#include "kernels/gated_linear_unit.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "model/normed_input.h"

namespace fulmen {

namespace {

std::string prefix_of(std::int64_t layer) { return fmt::format("model.layers.{}.channel_mixer.", layer); }

}  // namespace

std::vector<ParameterDeclaration> GatedLinearUnitMixer::declare(const ModelConfig& config, std::int64_t layer) {
  const std::string prefix = prefix_of(layer);
  const Initializer normal = normal_initializer(config.initializer_std);
  // l1 and l2 read the same input, so they are one product: two logical tensors in one fused weight.
  ParameterDeclaration expand = declare_weight(prefix + "l1.weight", {config.glu, config.hidden}, normal, 0, config.glu);
  expand.name = prefix + "l1_l2";
  expand.segments.push_back({prefix + "l2.weight", 0, config.glu, config.glu});
  expand.tensors.push_back({prefix + "l2.weight", {config.glu, config.hidden}, normal});
  return {expand, declare_weight(prefix + "l3.weight", {config.hidden, config.glu}, normal, 1, config.glu)};
}

GatedLinearUnitMixer::GatedLinearUnitMixer(const ModelConfig& config, std::int64_t layer, const ModelContext& context)
    : context_(context), hidden_(config.hidden), epsilon_(config.norm_epsilon) {
  expand_ = context.parameters->id(prefix_of(layer) + "l1_l2");
  contract_ = context.parameters->id(prefix_of(layer) + "l3.weight");
  local_ = context.parameters->layout(contract_).columns;
}

void GatedLinearUnitMixer::prepare(int slots) {
  stashes_.clear();
  stashes_.resize(static_cast<std::size_t>(slots));
}

std::vector<StashTensor> GatedLinearUnitMixer::stash(int slot, const BatchShape& shape) {
  const DType type = context_.parameters->precision().parameters;
  const std::int64_t tokens = shape.tokens();
  Stash& stash = stashes_[static_cast<std::size_t>(slot)];
  return {{&stash.sum, type, {residual_rows(context_, tokens), hidden_}, Keep::products},
          {&stash.inverse_rms, accumulation_dtype(type), {residual_rows(context_, tokens)}, Keep::products},
          {&stash.expansion, type, {tokens, 2 * local_}, Keep::products}};
}

void GatedLinearUnitMixer::forward(int slot, const MicroBatch& micro_batch, const Tensor& residual, const Tensor& branch,
                                   const Tensor& branch_out) {
  const Execution& execution = context_.execution;
  const ParameterStore& parameters = *context_.parameters;
  const DType type = parameters.precision().parameters;
  const std::int64_t tokens = micro_batch.shape.tokens();
  Stash& stash = stashes_[static_cast<std::size_t>(slot)];
  const Arena::Frame frame(*execution.scratch);

  const Tensor normed = execution.scratch->take(type, stash.sum.shape());
  add_and_normalize(context_, residual, branch, epsilon_, stash.sum, normed, stash.inverse_rms);
  multiply_gathered(context_, normed, tokens, [&](const Execution& where, IndexRange rows, const Tensor& values) {
    linear_forward(where, values, parameters.weight(expand_), stash.expansion.slice(0, rows.begin, rows.end));
  });
  if (!branch_out) return;
  const Tensor product = execution.scratch->take(type, {tokens, local_});
  gated_linear_unit_forward(execution, first(stash.expansion), second(stash.expansion), activation_, product);
  TokenSum sum(context_, branch_out, tokens, *execution.scratch);
  sum.add_up([&](const Execution& where, IndexRange rows, const Tensor& values) {
    linear_forward(where, product.slice(0, rows.begin, rows.end), parameters.weight(contract_), values);
  });
  sum.finish();
}

void GatedLinearUnitMixer::differentiate(Stash& stash, std::int64_t tokens, Arena& kept, TokenGather& d_out) {
  const Execution& execution = context_.execution;
  const DType type = context_.parameters->precision().parameters;
  stash.d_out = d_out.whole();
  stash.d_expansion = kept.take(type, {tokens, 2 * local_});
  stash.product = kept.take(type, {tokens, local_});
  stash.normed = kept.take(type, stash.sum.shape());
  const Tensor& d_product = stash.product;   // written where its gradient was read
  linear_backward_input(execution, stash.d_out, context_.parameters->weight(contract_), d_product);
  gated_linear_unit_backward(execution, d_product, first(stash.expansion), second(stash.expansion), activation_,
                             first(stash.d_expansion), second(stash.d_expansion), stash.product);
}

void GatedLinearUnitMixer::differentiate_input(const Stash& stash, TokenSum& d_normed, bool beside) {
  d_normed.add_up(
      [&](const Execution& where, IndexRange rows, const Tensor& values) {
        linear_backward_input(where, stash.d_expansion.slice(0, rows.begin, rows.end), context_.parameters->weight(expand_), values);
      },
      beside);
}

void GatedLinearUnitMixer::backward_input(int slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out,
                                          TokenGather& d_in) {
  Stash& stash = stashes_[static_cast<std::size_t>(slot)];
  const std::int64_t tokens = micro_batch.shape.tokens();
  differentiate(stash, tokens, kept, d_out);
  const Arena::Frame frame(*context_.execution.scratch);
  TokenSum d_normed(context_, stash.normed, tokens, *context_.execution.scratch);
  differentiate_input(stash, d_normed, false);
  d_normed.finish();
  residual_norm_backward(context_.execution, stash.normed, stash.sum, stash.inverse_rms, d_out.part(), d_in.part(), stash.normed);
  d_in.start();
}

void GatedLinearUnitMixer::backward_weight(int slot) {
  const Stash& stash = stashes_[static_cast<std::size_t>(slot)];
  add_weight_gradient(context_, context_.execution, contract_, stash.d_out, stash.product);
  const Arena::Frame frame(*context_.execution.scratch);
  TokenGather normed(context_, stash.normed, stash.d_expansion.size(0), *context_.execution.scratch);
  add_weight_gradient(context_, context_.execution, expand_, stash.d_expansion, normed.whole());
}

void GatedLinearUnitMixer::backward(int slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out, TokenGather& d_in) {
  const Execution& execution = context_.execution;
  Stash& stash = stashes_[static_cast<std::size_t>(slot)];
  const std::int64_t tokens = micro_batch.shape.tokens();
  differentiate(stash, tokens, kept, d_out);
  const Arena::Frame frame(*execution.scratch);
  NormedInput normed(context_, stash.sum, stash.inverse_rms, epsilon_, stash.normed, tokens);
  TokenSum d_normed(context_, stash.normed, tokens, *execution.scratch);
  differentiate_input(stash, d_normed, normed.travels());
  add_weight_gradient(context_, execution, contract_, stash.d_out, stash.product);
  d_normed.finish();
  residual_norm_backward(execution, stash.normed, stash.sum, stash.inverse_rms, d_out.part(), d_in.part(), normed.to_write());
  d_in.start();
  add_weight_gradient(context_, context_.beside_communication(), expand_, stash.d_expansion, normed.whole());
}

}  // namespace fulmen
