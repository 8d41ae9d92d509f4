// Final norm, output projection and cross entropy.
#include "model/language_head.h"

#include <algorithm>

#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "model/token_split.h"

namespace fulmen {

namespace {

// The most bytes that the logits of a chunk may take. On the CPU they are still in a cache when their gradient is
// formed. On a GPU a chunk is 8192 tokens of 64000 bf16 logits. It is large enough to fill the GPU, and few chunks read
// and write the gradient of the matrix.
constexpr std::int64_t cpu_chunk_bytes = std::int64_t{8} << 20, gpu_chunk_bytes = std::int64_t{1} << 30;
constexpr std::int64_t cpu_chunk_unit = 64, gpu_chunk_unit = 256;  // tokens; a chunk on a GPU is a multiple of it

std::int64_t chunk_tokens(Device device, std::int64_t tokens, std::int64_t columns, DType dtype) {
  const std::int64_t row_bytes = std::max<std::int64_t>(1, columns) * static_cast<std::int64_t>(size_of(dtype));
  if (device.kind == DeviceKind::cpu) return std::min(tokens, std::max(cpu_chunk_unit, cpu_chunk_bytes / row_bytes));
  return std::min(tokens, std::max<std::int64_t>(1, gpu_chunk_bytes / row_bytes / gpu_chunk_unit) * gpu_chunk_unit);
}

}  // namespace

LanguageHead::LanguageHead(const ModelConfig& config, const ModelContext& context)
    : context_(context), norm_(context, config.head().norm), hidden_(config.hidden) {
  projection_ = context.parameters->id(config.head().projection);
  const LocalLayout& layout = context.parameters->layout(projection_);
  columns_ = layout.rows;
  rows_ = layout.segments.front().indices;
}

void LanguageHead::prepare(const BatchShape& shape, int slots) {
  kept_.clear();
  for (int slot = 0; slot < slots; ++slot)
    kept_.emplace_back(context_.execution.device, context_.parameters->precision().parameters,
                       Shape{residual_rows(context_, shape.tokens()), hidden_}, MemoryKind::activations,
                       *context_.execution.ledger);
}

void LanguageHead::normalize(int slot, const ResidualStream& stream) {
  const Execution& execution = context_.execution;
  const Tensor& residual = stream.residual;
  const Arena::Frame frame(*execution.scratch);
  const Tensor sum = execution.scratch->take(residual.dtype(), residual.shape());
  const Tensor statistics =
      execution.scratch->take(accumulation_dtype(residual.dtype()), norm_.statistics_shape(residual.size(0)));
  norm_.forward(stream, sum, normed(slot), statistics);
}

void LanguageHead::forward(int slot, const MicroBatch& micro_batch, const ResidualStream& stream, bool gradient,
                           const Tensor& loss_sum) {
  const Tensor& residual = stream.residual;
  const Execution& execution = context_.execution;
  const DType type = context_.parameters->precision().parameters;
  const std::int64_t tokens = micro_batch.shape.tokens();
  const Arena::Frame frame(*execution.scratch);
  const Tensor sum = execution.scratch->take(type, residual.shape());
  const Tensor statistics = execution.scratch->take(accumulation_dtype(type), norm_.statistics_shape(residual.size(0)));
  const Tensor normed_part = gradient ? execution.scratch->take(type, residual.shape()) : normed(slot);
  const Tensor losses = execution.scratch->take(DType::fp64, {tokens});
  norm_.forward(stream, sum, normed_part, statistics);

  TokenGather normed_hidden(context_, normed_part, tokens, *execution.scratch);
  std::optional<TokenSum> d_normed;
  if (gradient) d_normed.emplace(context_, d_in(slot), tokens, *execution.scratch);
  const std::int64_t step = chunk_tokens(execution.device, tokens, columns_, type);
  for (std::int64_t begin = 0; begin < tokens; begin += step)
    chunk(micro_batch, begin, std::min(tokens, begin + step), normed_hidden.whole(), losses,
          d_normed ? d_normed->partial() : Tensor());
  add_sum(execution, losses, loss_sum);
  if (!gradient) return;
  d_normed->add_up_partial();
  d_normed->finish();
  norm_.backward(d_in(slot), sum, statistics, {}, d_in(slot), {});
}

void LanguageHead::chunk(const MicroBatch& micro_batch, std::int64_t begin, std::int64_t end, const Tensor& normed,
                         const Tensor& losses, const Tensor& d_normed) {
  const Execution& execution = context_.execution;
  const ParameterStore& parameters = *context_.parameters;
  const DType type = parameters.precision().parameters;
  const DType wide = accumulation_dtype(type);
  const std::int64_t tokens = end - begin;
  const auto part = [&](const Tensor& whole) { return whole.slice(0, begin, end); };
  const Arena::Frame frame(*execution.scratch);

  const Tensor logits = execution.scratch->take(type, {tokens, columns_});
  linear_forward(execution, part(normed), parameters.weight(projection_), logits);
  if (context_.tensor->size() == 1) {
    cross_entropy(execution, logits, part(micro_batch.targets), part(micro_batch.weights), rows_.size(),
                  micro_batch.loss_scale, part(losses), d_normed ? logits : Tensor());
    if (d_normed) backward(logits, part(normed), part(d_normed));
    return;
  }
  const Tensor maximum = execution.scratch->take(wide, {tokens});
  const Tensor sums = execution.scratch->take(wide, {2, tokens});  // of exponentials, and the target's logit
  const Tensor exp_sum = sums.select(0, 0), target_logit = sums.select(0, 1);
  cross_entropy_local(execution, logits, part(micro_batch.targets), rows_.begin, rows_.size(), maximum, exp_sum,
                      target_logit);
  const Tensor global_maximum = execution.scratch->take(wide, {tokens});
  copy(execution, maximum, global_maximum);
  context_.tensor->all_reduce(global_maximum, ReduceOp::max, execution.stream);
  cross_entropy_rescale(execution, maximum, global_maximum, exp_sum);
  context_.sum_over_tensor(sums);
  cross_entropy_losses(execution, global_maximum, exp_sum, target_logit, part(micro_batch.weights), part(losses));
  if (!d_normed) return;
  cross_entropy_backward(execution, logits, part(micro_batch.targets), part(micro_batch.weights), rows_.begin,
                         rows_.size(), global_maximum, exp_sum, micro_batch.loss_scale, logits);
  backward(logits, part(normed), part(d_normed));
}

void LanguageHead::backward(const Tensor& d_logits, const Tensor& normed, const Tensor& d_normed) {
  linear_backward_input(context_.execution, d_logits, context_.parameters->weight(projection_), d_normed);
  add_weight_gradient(context_, context_.execution, projection_, d_logits, normed);
}

void LanguageHead::logits(int slot, const Tensor& out) const {
  FULMEN_CHECK(!context_.split_tokens, "logits of a split residual stream");
  linear_forward(context_.execution, normed(slot), context_.parameters->weight(projection_), out);
}

}  // namespace fulmen
