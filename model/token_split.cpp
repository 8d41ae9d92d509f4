// How the residual stream lies on the tensor ranks.
#include "model/token_split.h"

#include <algorithm>
#include <array>

#include "kernels/elementwise.h"
#include "model/model_context.h"

namespace fulmen {

namespace {

ProfileScope communication(const ModelContext& context) {
  return ProfileScope::communication(context.execution.profiler, "tensor communication");
}

void wait(const ModelContext& context, Pending& pending) {
  if (pending.complete()) return;
  const ProfileScope scope = communication(context);
  pending.wait(context.execution.stream);
}

// Tokens that tensor rank `owner` holds of a split stream; the last may hold fewer than others, and as few as none.
IndexRange rows_of(const Tensor& part, std::int64_t tokens, int owner) {
  const std::int64_t begin = std::min(owner * part.size(0), tokens);
  return {begin, std::min(begin + part.size(0), tokens)};
}

// Sends to the next rank in the ring and receives from the previous rank, overlapped with what follows.
Pending pass_on(const ModelContext& context, const Tensor& sent, const Tensor& received) {
  Communicator& ranks = *context.tensor;
  const std::array<Transfer, 2> transfers = {{
      {Transfer::Direction::send, (ranks.rank() + 1) % ranks.size(), sent},
      {Transfer::Direction::receive, (ranks.rank() + ranks.size() - 1) % ranks.size(), received},
  }};
  return ranks.start_exchange(transfers, context.execution.stream);
}

}  // namespace

std::int64_t residual_rows(const ModelContext& context, std::int64_t tokens) {
  if (!context.split_tokens) return tokens;
  const std::int64_t ranks = context.tensor->size();
  return (tokens + ranks - 1) / ranks;
}

TokenGather::TokenGather(const ModelContext& context, const Tensor& part, std::int64_t tokens, Arena& arena)
    : part_(part) {
  if (!context.split_tokens) {
    whole_ = part;
    return;
  }
  context_ = &context;
  padded_ = arena.take(part.dtype(), {part.size(0) * context.tensor->size(), part.size(1)});
  whole_ = padded_.slice(0, 0, tokens);
}

TokenGather::TokenGather(const ModelContext& context, DType dtype, std::int64_t width, std::int64_t tokens,
                         Arena& arena) {
  const std::int64_t rows = residual_rows(context, tokens);
  if (!context.split_tokens) {
    whole_ = part_ = arena.take(dtype, {rows, width});
    return;
  }
  context_ = &context;
  padded_ = arena.take(dtype, {rows * context.tensor->size(), width});
  whole_ = padded_.slice(0, 0, tokens);
  part_ = padded_.slice(0, context.tensor->rank() * rows, (context.tensor->rank() + 1) * rows);
}

void TokenGather::start() {
  if (context_ == nullptr || !context_->overlap_tensor) return;
  pending_ = context_->tensor->start_all_gather(part_, padded_, context_->execution.stream);
  gathered_ = true;
}

const Tensor& TokenGather::whole() {
  FULMEN_CHECK(whole_, "all tokens of a part that is not gathered");
  if (context_ == nullptr) return whole_;
  if (gathered_) {
    wait(*context_, pending_);
    return whole_;
  }
  const ProfileScope scope = communication(*context_);
  context_->tensor->all_gather(part_, padded_, context_->execution.stream);
  gathered_ = true;
  return whole_;
}

void multiply_gathered(const ModelContext& context, const Tensor& part, std::int64_t tokens,
                       const RowsOfProduct& product) {
  Arena& scratch = *context.execution.scratch;
  if (!context.split_tokens || !context.overlap_tensor) {
    const Arena::Frame frame(scratch);
    TokenGather gather(context, part, tokens, scratch);
    return product(context.execution, {0, tokens}, gather.whole());
  }
  const Arena::Frame frame(scratch);
  const std::array<Tensor, 2> received = {scratch.take(part.dtype(), part.shape()),
                                          scratch.take(part.dtype(), part.shape())};
  const int ranks = context.tensor->size(), rank = context.tensor->rank();
  Tensor current = part;
  for (int step = 0; step < ranks; ++step) {
    const Tensor& next = received[static_cast<std::size_t>(step % 2)];
    Pending pending;
    if (step + 1 < ranks) pending = pass_on(context, current, next);
    const IndexRange rows = rows_of(part, tokens, (rank - step + ranks) % ranks);
    if (rows.size() > 0)
      product(pending.complete() ? context.execution : context.beside_communication(), rows,
              current.slice(0, 0, rows.size()));
    wait(context, pending);
    current = next;
  }
}

void TokenSum::add_up(const RowsOfProduct& product, bool beside) {
  if (context_.split_tokens && context_.overlap_tensor) return add_up_in_ring(product, beside);
  product(beside ? context_.beside_communication() : context_.execution, {0, tokens_}, partial());
  add_up_partial();
}

const Tensor& TokenSum::partial() {
  if (partial_) return partial_;
  if (!context_.split_tokens) {
    partial_ = part_;
    return partial_;
  }
  padded_ = arena_.take(part_.dtype(), {part_.size(0) * context_.tensor->size(), part_.size(1)});
  partial_ = padded_.slice(0, 0, tokens_);
  if (tokens_ < padded_.size(0)) fill_zero(context_.execution, padded_.slice(0, tokens_, padded_.size(0)));
  return partial_;
}

void TokenSum::add_up_partial() {
  Communicator& ranks = *context_.tensor;
  if (ranks.size() == 1) return;
  const Stream stream = context_.execution.stream;
  if (context_.overlap_tensor) {
    pending_ = padded_ ? ranks.start_reduce_scatter(padded_, part_, ReduceOp::sum, stream)
                       : ranks.start_all_reduce(part_, ReduceOp::sum, stream);
    return;
  }
  const ProfileScope scope = communication(context_);
  if (padded_)
    ranks.reduce_scatter(padded_, part_, ReduceOp::sum, stream);
  else
    ranks.all_reduce(part_, ReduceOp::sum, stream);
}

// The sum of a part begins at the rank after its owner and ends there.
void TokenSum::add_up_in_ring(const RowsOfProduct& product, bool beside) {
  const int ranks = context_.tensor->size(), rank = context_.tensor->rank();
  std::array<Tensor, 2> sums, received;
  for (auto* tensors : {&sums, &received})
    for (Tensor& tensor : *tensors) tensor = arena_.take(part_.dtype(), part_.shape());
  Pending pending;
  for (int step = 0; step < ranks; ++step) {
    const bool last = step + 1 == ranks;
    const Tensor& sum = last ? part_ : sums[static_cast<std::size_t>(step % 2)];
    const IndexRange rows = rows_of(part_, tokens_, (rank + 2 * ranks - 1 - step) % ranks);
    if (rows.size() > 0)
      product(beside || step > 0 ? context_.beside_communication() : context_.execution, rows,
              sum.slice(0, 0, rows.size()));
    if (rows.size() < sum.size(0)) fill_zero(context_.execution, sum.slice(0, rows.size(), sum.size(0)));
    if (step > 0) {
      wait(context_, pending);
      add(context_.execution, sum, received[static_cast<std::size_t>((step - 1) % 2)], sum);
    }
    if (!last) pending = pass_on(context_, sum, received[static_cast<std::size_t>(step % 2)]);
  }
}

void TokenSum::finish() { wait(context_, pending_); }

}  // namespace fulmen
