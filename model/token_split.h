// How the residual stream lies on the tensor ranks. It is whole on each, or with parallel.tensor_sequence_split split
// into equal parts of a micro-batch's tokens (Megatron's sequence parallelism, arXiv 2205.05198). Split, the norms and
// additions between products work on 1/T of the tokens. The tokens are gathered before a product that the ranks share
// by columns. The sums of their partial outputs are scattered. Tokens that the ranks do not divide are filled up with
// rows that nothing reads.
//
// With parallel.overlap: tensor, products and parts of the tokens go round the ranks in a ring. While one part's rows
// are multiplied, the next part travels, or the sum so far of the part before.
#pragma once

#include <functional>

#include "framework/execution.h"
#include "parallel/communicator.h"
#include "parallel/placement.h"

namespace fulmen {

struct ModelContext;

// Rows of the residual stream that this rank holds of a micro-batch of `tokens`.
std::int64_t residual_rows(const ModelContext& context, std::int64_t tokens);

// The residual-like `part` [residual rows, width] of this rank, and all tokens of it once they are asked for.
class TokenGather {
 public:
  // Takes memory for the whole from `arena`, where there is more of it than the part.
  TokenGather(const ModelContext& context, const Tensor& part, std::int64_t tokens, Arena& arena);
  // Takes memory from `arena` for the part, too, in its place in the whole.
  TokenGather(const ModelContext& context, DType dtype, std::int64_t width, std::int64_t tokens, Arena& arena);
  // Nobody will ask for more than the part.
  explicit TokenGather(const Tensor& part) : part_(part) {}

  const Tensor& part() const { return part_; }
  // The part is about to be written anew.
  void reset() { gathered_ = false; }
  // The part is written: with overlap the others' travel behind what follows.
  void start();
  // [tokens, width]. Gathers what was not started.
  const Tensor& whole();

 private:
  const ModelContext* context_ = nullptr;  // null: the whole is not wanted, or is the part
  Tensor part_, padded_, whole_;           // padded_: whole_ and the rows that nothing reads
  Pending pending_;
  bool gathered_ = false;  // or under way
};

// Rows [begin, end) of a product, given where they lie.
using RowsOfProduct = std::function<void(const Execution& execution, IndexRange rows, const Tensor& values)>;

// Calls product(execution, rows, values) for runs of rows that make up all `tokens` of `part` [residual rows, width].
// values [rows, width] are the part's rows there, gathered from the ranks. Memory is taken from the scratch arena.
void multiply_gathered(const ModelContext& context, const Tensor& part, std::int64_t tokens,
                       const RowsOfProduct& product);

// A sum over the tensor ranks of partial results [tokens, width], of which this rank wants `part` [residual rows,
// width].
class TokenSum {
 public:
  // Memory is taken from `arena`.
  TokenSum(const ModelContext& context, const Tensor& part, std::int64_t tokens, Arena& arena)
      : context_(context), part_(part), tokens_(tokens), arena_(arena) {}

  // Calls product(execution, rows, values) for runs of rows that make up all tokens, and sums over the ranks. Each call
  // is to write this rank's share of the sum to values [rows, width]. With overlap, the sum of a whole stream goes on
  // behind what follows. `beside`: other communication of the group overlaps.
  void add_up(const RowsOfProduct& product, bool beside = false);
  // The same for a share that is written at once, to partial(), and in any order.
  const Tensor& partial();
  void add_up_partial();
  // Makes `part` the sum.
  void finish();
  const Tensor& part() const { return part_; }

 private:
  void add_up_in_ring(const RowsOfProduct& product, bool beside);

  const ModelContext& context_;
  Tensor part_;
  std::int64_t tokens_;
  Arena& arena_;
  Tensor padded_, partial_;  // padded_: partial_ and rows of zeros, where the stream is split
  Pending pending_;
};

}  // namespace fulmen
