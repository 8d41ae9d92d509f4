// The norm in front of a sublayer, and the order of its backward pass.
#include "model/normed_sublayer.h"

#include "kernels/norm.h"
#include "model/normed_input.h"

namespace fulmen {

NormedSublayer::NormedSublayer(const ModelConfig& config, const ModelContext& context)
    : context_(context), hidden_(config.hidden), epsilon_(config.norm_epsilon) {}

void NormedSublayer::prepare_norms(int slots) {
  norms_.clear();
  norms_.resize(static_cast<std::size_t>(slots));
}

std::vector<StashTensor> NormedSublayer::with_norm(int slot, const BatchShape& shape, std::vector<StashTensor> list) {
  const DType type = context_.parameters->precision().parameters;
  const std::int64_t rows = residual_rows(context_, shape.tokens());
  list.insert(list.begin(), {{&norm(slot).sum, type, {rows, hidden_}, Keep::products},
                             {&norm(slot).inverse_rms, accumulation_dtype(type), {rows}, Keep::products}});
  return list;
}

void NormedSublayer::multiply_normed(int slot, const MicroBatch& micro_batch, const Tensor& residual,
                                     const Tensor& branch, const RowsOfProduct& product) {
  const Norm& norm = this->norm(slot);
  const Tensor normed = context_.execution.scratch->take(norm.sum.dtype(), norm.sum.shape());
  add_and_normalize(context_, residual, branch, epsilon_, norm.sum, normed, norm.inverse_rms);
  multiply_gathered(context_, normed, micro_batch.shape.tokens(), product);
}

void NormedSublayer::begin_backward(int slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out) {
  Norm& norm = this->norm(slot);
  norm.tokens = micro_batch.shape.tokens();
  // Gathered once for both halves. Of the normed input, which would have to be kept for as long, parts are: they are
  // gathered again.
  norm.d_out = d_out.whole();
  norm.normed = kept.take(norm.sum.dtype(), norm.sum.shape());
  differentiate(slot, micro_batch, kept);
}

void NormedSublayer::backward_input(int slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out,
                                    TokenGather& d_in) {
  begin_backward(slot, micro_batch, kept, d_out);
  const Norm& norm = this->norm(slot);
  const Arena::Frame frame(*context_.execution.scratch);
  TokenSum d_normed(context_, norm.normed, norm.tokens, *context_.execution.scratch);
  differentiate_normed(slot, d_normed, false);
  d_normed.finish();
  residual_norm_backward(context_.execution, norm.normed, norm.sum, norm.inverse_rms, d_out.part(), d_in.part(),
                         norm.normed);
  d_in.start();
}

void NormedSublayer::backward_weight(int slot) {
  const Norm& norm = this->norm(slot);
  add_output_gradients(slot);
  const Arena::Frame frame(*context_.execution.scratch);
  TokenGather normed(context_, norm.normed, norm.tokens, *context_.execution.scratch);
  add_input_gradients(slot, context_.execution, normed.whole());
}

void NormedSublayer::backward(int slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out,
                              TokenGather& d_in) {
  begin_backward(slot, micro_batch, kept, d_out);
  const Norm& norm = this->norm(slot);
  const Arena::Frame frame(*context_.execution.scratch);
  NormedInput normed(context_, norm.sum, norm.inverse_rms, epsilon_, norm.normed, norm.tokens);
  TokenSum d_normed(context_, norm.normed, norm.tokens, *context_.execution.scratch);
  differentiate_normed(slot, d_normed, normed.travels());
  add_output_gradients(slot);
  d_normed.finish();
  residual_norm_backward(context_.execution, norm.normed, norm.sum, norm.inverse_rms, d_out.part(), d_in.part(),
                         normed.to_write());
  d_in.start();
  add_input_gradients(slot, context_.beside_communication(), normed.whole());
}

}  // namespace fulmen
