// How the residual stream lies on the tensor ranks: whole on each, or, with parallel.tensor_sequence_split, as equal parts of
// a micro-batch's tokens (Megatron's sequence parallelism, arXiv 2205.05198). Split, the norms and additions between products
// work on 1/T of the tokens; the tokens are gathered before a product that the ranks share by columns, and the sums of their
// partial outputs are scattered. Tokens that the ranks do not divide are filled up with rows that nothing reads.
#pragma once

#include "framework/execution.h"
#include "parallel/communicator.h"

namespace fulmen {

struct ModelContext;

// Rows of the residual stream that this rank holds of a micro-batch of `tokens`.
std::int64_t residual_rows(const ModelContext& context, std::int64_t tokens);

// All `tokens` of the residual-like `part` [residual rows, width]: gathered into memory from `arena`, or the part itself where
// it is whole.
Tensor gather_tokens(const ModelContext& context, const Tensor& part, std::int64_t tokens, Arena& arena);

// A sum over the tensor ranks of partial [tokens, width], of which this rank wants `part` [residual rows, width].
class TokenSum {
 public:
  // Takes memory for the partial from `arena`, or where the residual stream is whole, lets it be the part's.
  TokenSum(const ModelContext& context, const Tensor& part, std::int64_t tokens, Arena& arena);

  // To be written with this rank's share of the sum.
  const Tensor& partial() const { return partial_; }
  // Makes `part` the sum.
  void reduce() const;
  // The same, behind the work that follows until finish().
  void start();
  void finish();

 private:
  const ModelContext& context_;
  Tensor part_, padded_, partial_;   // padded_: partial_ and rows of zeros, where the stream is split
  Pending pending_;
};

}  // namespace fulmen
