// TransNormerLLM's channel mixer.
#include "model/gated_linear_unit_mixer.h"

#include "kernels/gated_linear_unit.h"
#include "kernels/gemm.h"

namespace fulmen {

namespace {

std::string prefix_of(std::int64_t layer) { return fmt::format("model.layers.{}.channel_mixer.", layer); }

}  // namespace

std::vector<ParameterDeclaration> GatedLinearUnitMixer::declare(const ModelConfig& config, std::int64_t layer) {
  const std::string prefix = prefix_of(layer);
  const Initializer normal = normal_initializer(config.initializer_std);
  // l1 and l2 read the same input, so they are one product: two logical tensors in one fused weight.
  ParameterDeclaration expand =
      declare_weight(prefix + "l1.weight", {config.glu, config.hidden}, normal, 0, config.glu);
  expand.name = prefix + "l1_l2";
  expand.segments.push_back({prefix + "l2.weight", 0, config.glu, config.glu});
  expand.tensors.push_back({prefix + "l2.weight", {config.glu, config.hidden}, normal});
  return {expand, declare_weight(prefix + "l3.weight", {config.hidden, config.glu}, normal, 1, config.glu)};
}

GatedLinearUnitMixer::GatedLinearUnitMixer(const ModelConfig& config, std::int64_t layer, const ModelContext& context)
    : NormedSublayer(config, context) {
  expand_ = context.parameters->id(prefix_of(layer) + "l1_l2");
  contract_ = context.parameters->id(prefix_of(layer) + "l3.weight");
  local_ = context.parameters->layout(contract_).columns;
}

void GatedLinearUnitMixer::prepare(int slots) {
  prepare_norms(slots);
  stashes_.clear();
  stashes_.resize(static_cast<std::size_t>(slots));
}

std::vector<StashTensor> GatedLinearUnitMixer::stash(int slot, const BatchShape& shape) {
  const DType type = context_.parameters->precision().parameters;
  return with_norm(slot, shape, {{&stash_of(slot).expansion, type, {shape.tokens(), 2 * local_}, Keep::products}});
}

void GatedLinearUnitMixer::forward(int slot, const MicroBatch& micro_batch, const Tensor& residual,
                                   const Tensor& branch, const Tensor& branch_out) {
  const Execution& execution = context_.execution;
  const ParameterStore& parameters = *context_.parameters;
  const DType type = parameters.precision().parameters;
  const std::int64_t tokens = micro_batch.shape.tokens();
  const Stash& stash = stash_of(slot);
  const Arena::Frame frame(*execution.scratch);

  multiply_normed(
      slot, micro_batch, residual, branch, [&](const Execution& where, IndexRange rows, const Tensor& values) {
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

void GatedLinearUnitMixer::differentiate(int slot, const MicroBatch& micro_batch, Arena& kept) {
  const Execution& execution = context_.execution;
  const DType type = context_.parameters->precision().parameters;
  const std::int64_t tokens = micro_batch.shape.tokens();
  Stash& stash = stash_of(slot);
  stash.d_expansion = kept.take(type, {tokens, 2 * local_});
  stash.product = kept.take(type, {tokens, local_});
  const Tensor& d_product = stash.product;  // written where its gradient was read
  linear_backward_input(execution, d_branch_out(slot), context_.parameters->weight(contract_), d_product);
  gated_linear_unit_backward(execution, d_product, first(stash.expansion), second(stash.expansion), activation_,
                             first(stash.d_expansion), second(stash.d_expansion), stash.product);
}

void GatedLinearUnitMixer::differentiate_normed(int slot, TokenSum& d_normed, bool beside) {
  const Tensor& d_expansion = stash_of(slot).d_expansion;
  d_normed.add_up(
      [&](const Execution& where, IndexRange rows, const Tensor& values) {
        linear_backward_input(where, d_expansion.slice(0, rows.begin, rows.end), context_.parameters->weight(expand_),
                              values);
      },
      beside);
}

void GatedLinearUnitMixer::add_output_gradients(int slot) {
  add_weight_gradient(context_, context_.execution, contract_, d_branch_out(slot), stash_of(slot).product);
}

void GatedLinearUnitMixer::add_input_gradients(int slot, const Execution& execution, const Tensor& normed) {
  add_weight_gradient(context_, execution, expand_, stash_of(slot).d_expansion, normed);
}

}  // namespace fulmen
