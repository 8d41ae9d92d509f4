// The end of the last stage: final norm, output projection (the embedding, tied) and cross entropy, in chunks of tokens so
// that the logits of a whole batch never exist. With a gradient wanted, each chunk's logits become their own gradient at
// once, so that they are computed once only.
#pragma once

#include <vector>

#include "model/model_config.h"
#include "model/sublayer.h"

namespace fulmen {

class LanguageHead {
 public:
  LanguageHead(const ModelConfig& config, const ModelContext& context);

  void prepare(const BatchShape& shape, int slots);
  // Adds the sum of the micro-batch's weighted losses, in nats, to loss_sum (fp64 [1]). With `gradient`, also adds to the
  // projection's gradient and keeps that of the normed hidden state.
  void forward(int slot, const MicroBatch& micro_batch, const Tensor& residual, const Tensor& branch, bool gradient,
               const Tensor& loss_sum);
  // d_in [tokens, hidden]: the gradient of residual and branch.
  void backward_input(int slot, const Tensor& d_in);

  // The final norm alone, of residual + branch: what forward() starts with and logits() reads.
  void normalize(int slot, const Tensor& residual, const Tensor& branch);
  // This rank's columns of the slot's logits: [tokens, columns()], those past vocabulary().size() being padding.
  void logits(int slot, const Tensor& out) const;

  // The slot's normed hidden state, [tokens, hidden].
  Tensor normed(int slot) const { return stashes_[static_cast<std::size_t>(slot)].normed; }
  std::int64_t columns() const { return columns_; }
  IndexRange vocabulary() const { return rows_; }

 private:
  struct Stash {
    OwnedTensor sum, normed, d_normed;   // [tokens, hidden]
    OwnedTensor inverse_rms;             // [tokens]
  };

  void chunk(Stash& stash, const MicroBatch& micro_batch, std::int64_t begin, std::int64_t end, bool gradient,
             const Tensor& losses);

  const ModelContext& context_;
  ParameterId projection_;
  std::int64_t hidden_, columns_;        // columns_: local rows of the matrix, padding included
  IndexRange rows_;                      // of the vocabulary, on this rank
  double epsilon_;
  std::vector<Stash> stashes_;
};

}  // namespace fulmen
