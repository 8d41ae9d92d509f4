// The end of the last stage: final norm, output projection and cross entropy. It works in chunks of tokens, so that the
// logits of a whole batch never exist. With a gradient wanted, each chunk's logits become their own gradient at once.
// So they are computed once only. Only the gradient of a micro-batch's hidden state is kept.
#pragma once

#include <optional>
#include <vector>

#include "model/micro_batch.h"
#include "model/model_config.h"
#include "model/model_context.h"
#include "model/token_split.h"

namespace fulmen {

class LanguageHead {
 public:
  LanguageHead(const ModelConfig& config, const ModelContext& context);

  void prepare(const BatchShape& shape, int slots);
  // Adds the sum of the micro-batch's weighted losses, in nats, to loss_sum (fp64 [1]). With `gradient`, also adds to
  // the projection's gradient and keeps the gradient of the stream's sum. Without it keeps the normed hidden state.
  void forward(int slot, const MicroBatch& micro_batch, const ResidualStream& stream, bool gradient,
               const Tensor& loss_sum);
  // [tokens, hidden]: the gradient of the sum of the stream, after a forward with `gradient`.
  Tensor d_in(int slot) const { return kept_[static_cast<std::size_t>(slot)]; }

  // The final norm alone, of the stream's sum: what logits() reads.
  void normalize(int slot, const ResidualStream& stream);
  // This rank's columns of the slot's logits: [tokens, columns()], those past vocabulary().size() being padding.
  void logits(int slot, const Tensor& out) const;

  // The slot's normed hidden state, [residual rows, hidden], after normalize or a forward without `gradient`.
  Tensor normed(int slot) const { return kept_[static_cast<std::size_t>(slot)]; }
  std::int64_t columns() const { return columns_; }
  IndexRange vocabulary() const { return rows_; }

 private:
  // Tokens [begin, end). normed [tokens, hidden]; d_normed alike, this rank's share of its gradient, or null.
  void chunk(const MicroBatch& micro_batch, std::int64_t begin, std::int64_t end, const Tensor& normed,
             const Tensor& losses, const Tensor& d_normed);
  // The products of a chunk's backward pass.
  void backward(const Tensor& d_logits, const Tensor& normed, const Tensor& d_normed);

  const ModelContext& context_;
  ResidualNorm norm_;
  ParameterId projection_;
  std::int64_t hidden_, columns_;  // columns_: local rows of the matrix, padding included
  IndexRange rows_;                // of the vocabulary, on this rank
  std::vector<OwnedTensor> kept_;  // per slot [tokens, hidden]: normed, or d_in once the gradient is known
};

}  // namespace fulmen
