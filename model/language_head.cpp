// Final norm, output projection and cross entropy.
#include "model/language_head.h"

#include <algorithm>

#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "model/token_embedding.h"

namespace fulmen {

namespace {

// What the logits of a chunk may take. On the CPU they are still in a cache when their gradient is formed. On a GPU the
// chunk is to be large enough to fill it: 4096 tokens of 64000 bf16 logits.
constexpr std::int64_t cpu_chunk_bytes = std::int64_t{8} << 20, gpu_chunk_bytes = std::int64_t{512} << 20;
constexpr std::int64_t cpu_chunk_unit = 64, gpu_chunk_unit = 256;   // tokens; a chunk on a GPU is a multiple of it

std::int64_t chunk_tokens(Device device, std::int64_t tokens, std::int64_t columns, DType dtype) {
  const std::int64_t row_bytes = std::max<std::int64_t>(1, columns) * static_cast<std::int64_t>(size_of(dtype));
  if (device.kind == DeviceKind::cpu) return std::min(tokens, std::max(cpu_chunk_unit, cpu_chunk_bytes / row_bytes));
  return std::min(tokens, std::max<std::int64_t>(1, gpu_chunk_bytes / row_bytes / gpu_chunk_unit) * gpu_chunk_unit);
}

}  // namespace

LanguageHead::LanguageHead(const ModelConfig& config, const ModelContext& context)
    : context_(context), hidden_(config.hidden), epsilon_(config.norm_epsilon) {
  projection_ = context.parameters->id(tied_embedding_name);
  const LocalLayout& layout = context.parameters->layout(projection_);
  columns_ = layout.rows;
  rows_ = layout.segments.front().indices;
}

void LanguageHead::prepare(const BatchShape& shape, int slots) {
  const DType type = context_.parameters->precision().parameters;
  const auto allocate = [&](DType dtype, const Shape& s) {
    return OwnedTensor(context_.execution.device, dtype, s, MemoryKind::activations, *context_.execution.ledger);
  };
  stashes_.clear();
  stashes_.resize(static_cast<std::size_t>(slots));
  for (Stash& stash : stashes_) {
    stash.sum = allocate(type, {shape.tokens(), hidden_});
    stash.normed = allocate(type, {shape.tokens(), hidden_});
    stash.d_normed = allocate(type, {shape.tokens(), hidden_});
    stash.inverse_rms = allocate(accumulation_dtype(type), {shape.tokens()});
  }
}

void LanguageHead::normalize(int slot, const Tensor& residual, const Tensor& branch) {
  Stash& stash = stashes_[static_cast<std::size_t>(slot)];
  add_and_normalize(context_, residual, branch, epsilon_, stash.sum, stash.normed, stash.inverse_rms);
}

void LanguageHead::forward(int slot, const MicroBatch& micro_batch, const Tensor& residual, const Tensor& branch,
                           bool gradient, const Tensor& loss_sum) {
  const Execution& execution = context_.execution;
  Stash& stash = stashes_[static_cast<std::size_t>(slot)];
  normalize(slot, residual, branch);
  const std::int64_t tokens = micro_batch.shape.tokens();
  const Arena::Frame frame(*execution.scratch);
  const Tensor losses = execution.scratch->take(DType::fp64, {tokens});
  const std::int64_t step = chunk_tokens(execution.device, tokens, columns_, context_.parameters->precision().parameters);
  for (std::int64_t begin = 0; begin < tokens; begin += step)
    chunk(stash, micro_batch, begin, std::min(tokens, begin + step), gradient, losses);
  add_sum(execution, losses, loss_sum);
}

void LanguageHead::chunk(Stash& stash, const MicroBatch& micro_batch, std::int64_t begin, std::int64_t end, bool gradient,
                         const Tensor& losses) {
  const Execution& execution = context_.execution;
  const ParameterStore& parameters = *context_.parameters;
  const DType type = parameters.precision().parameters;
  const DType wide = accumulation_dtype(type);
  const std::int64_t tokens = end - begin;
  const auto part = [&](const Tensor& whole) { return whole.slice(0, begin, end); };
  const Arena::Frame frame(*execution.scratch);

  const Tensor logits = execution.scratch->take(type, {tokens, columns_});
  const Tensor maximum = execution.scratch->take(wide, {tokens});
  const Tensor sums = execution.scratch->take(wide, {2, tokens});   // of exponentials, and the target's logit
  const Tensor exp_sum = sums.select(0, 0), target_logit = sums.select(0, 1);
  linear_forward(execution, part(stash.normed), parameters.weight(projection_), logits);
  cross_entropy_local(execution, logits, part(micro_batch.targets), rows_.begin, rows_.size(), maximum, exp_sum, target_logit);
  Tensor global_maximum = maximum;
  if (context_.tensor->size() > 1) {
    global_maximum = execution.scratch->take(wide, {tokens});
    copy(execution, maximum, global_maximum);
    context_.tensor->all_reduce(global_maximum, ReduceOp::max, execution.stream);
    cross_entropy_rescale(execution, maximum, global_maximum, exp_sum);
    context_.sum_over_tensor(sums);
  }
  cross_entropy_losses(execution, global_maximum, exp_sum, target_logit, part(micro_batch.weights), part(losses));
  if (!gradient) return;
  cross_entropy_backward(execution, logits, part(micro_batch.targets), part(micro_batch.weights), rows_.begin, rows_.size(),
                         global_maximum, exp_sum, micro_batch.loss_scale, logits);
  linear_backward_input(execution, logits, parameters.weight(projection_), part(stash.d_normed));
  add_weight_gradient(context_, projection_, logits, part(stash.normed));
}

void LanguageHead::backward_input(int slot, const Tensor& d_in) {
  Stash& stash = stashes_[static_cast<std::size_t>(slot)];
  context_.sum_over_tensor(stash.d_normed);
  residual_norm_backward(context_.execution, stash.d_normed, stash.sum, stash.inverse_rms, {}, d_in, {});
}

void LanguageHead::logits(int slot, const Tensor& out) const {
  linear_forward(context_.execution, normed(slot), context_.parameters->weight(projection_), out);
}

}  // namespace fulmen
