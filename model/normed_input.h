// The normed input of a branch in its backward pass, where the weight gradients of the products behind the norm read
// all of its tokens.
#pragma once

#include "model/residual_norm.h"
#include "model/token_split.h"

namespace fulmen {

class NormedInput {
 public:
  // The backward pass of the norm writes it again, to `part` [residual rows, hidden]. The tensor ranks may hold parts
  // of the tokens that overlap with products on their way. Then it is made at once from the norm's input, with another
  // pass over memory, and sent. Memory is taken from the scratch arena.
  NormedInput(const ModelContext& context, const ResidualNorm& norm, const Tensor& sum, const Tensor& statistics,
              const Tensor& part, std::int64_t tokens);

  bool travels() const { return early_; }
  // The output of the backward pass of the norm, if any.
  Tensor to_write() const { return early_ ? Tensor() : gather_.part(); }
  // [tokens, hidden], once it is written.
  const Tensor& whole() { return gather_.whole(); }

 private:
  bool early_;
  TokenGather gather_;
};

}  // namespace fulmen
