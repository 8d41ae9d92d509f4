// How the residual stream lies on the tensor ranks.
#include "model/token_split.h"

#include "kernels/elementwise.h"
#include "model/sublayer.h"

namespace fulmen {

std::int64_t residual_rows(const ModelContext& context, std::int64_t tokens) {
  if (!context.split_tokens) return tokens;
  const std::int64_t ranks = context.tensor->size();
  return (tokens + ranks - 1) / ranks;
}

Tensor gather_tokens(const ModelContext& context, const Tensor& part, std::int64_t tokens, Arena& arena) {
  if (!context.split_tokens) return part;
  const Tensor padded = arena.take(part.dtype(), {part.size(0) * context.tensor->size(), part.size(1)});
  const ProfileScope scope = ProfileScope::communication(context.execution.profiler, "tensor communication");
  context.tensor->all_gather(part, padded, context.execution.stream);
  return padded.slice(0, 0, tokens);
}

TokenSum::TokenSum(const ModelContext& context, const Tensor& part, std::int64_t tokens, Arena& arena)
    : context_(context), part_(part), partial_(part) {
  if (!context.split_tokens) return;
  padded_ = arena.take(part.dtype(), {part.size(0) * context.tensor->size(), part.size(1)});
  partial_ = padded_.slice(0, 0, tokens);
  if (tokens < padded_.size(0)) fill_zero(context.execution, padded_.slice(0, tokens, padded_.size(0)));
}

void TokenSum::reduce() const {
  if (!padded_) return context_.sum_over_tensor(part_);
  const ProfileScope scope = ProfileScope::communication(context_.execution.profiler, "tensor communication");
  context_.tensor->reduce_scatter(padded_, part_, ReduceOp::sum, context_.execution.stream);
}

void TokenSum::start() {
  if (context_.tensor->size() == 1) return;
  const Stream stream = context_.execution.stream;
  pending_ = padded_ ? context_.tensor->start_reduce_scatter(padded_, part_, ReduceOp::sum, stream)
                     : context_.tensor->start_all_reduce(part_, ReduceOp::sum, stream);
}

void TokenSum::finish() {
  const ProfileScope scope = ProfileScope::communication(context_.execution.profiler, "tensor communication");
  pending_.wait(context_.execution.stream);
}

}  // namespace fulmen
