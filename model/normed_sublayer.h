// A sublayer behind one norm, f(normed) with normed = norm(residual + branch), whatever f is: it begins with products
// of the normed tokens and ends with products whose outputs are summed over the tensor ranks. Here are the norm's own
// tensors and the order of the backward pass, which is what lets communication of the tensor ranks go on behind
// products; f is in the derived classes, in the pieces that this order takes apart.
#pragma once

#include <vector>

#include "model/model_config.h"
#include "model/sublayer.h"
#include "model/token_split.h"

namespace fulmen {

class NormedSublayer : public Sublayer {
 public:
  Tensor sum(int slot) const final { return norm(slot).sum; }
  void backward_input(int slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out,
                      TokenGather& d_in) final;
  void backward_weight(int slot) final;
  void backward(int slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out, TokenGather& d_in) final;

 protected:
  NormedSublayer(const ModelConfig& config, const ModelContext& context);

  // To be called by prepare and stash of the derived class; with_norm puts the tensors of the norm in front of those of
  // f.
  void prepare_norms(int slots);
  std::vector<StashTensor> with_norm(int slot, const BatchShape& shape, std::vector<StashTensor> list);

  // The beginning of forward: the sum and its norm, then product(execution, rows, values) for runs of rows that make up
  // all tokens, values [rows, hidden] being the normed ones.
  void multiply_normed(int slot, const MicroBatch& micro_batch, const Tensor& residual, const Tensor& branch,
                       const RowsOfProduct& product);
  // [tokens, hidden]: the gradient of the branch's output, from differentiate to the end of backward_weight.
  const Tensor& d_branch_out(int slot) const { return norm(slot).d_out; }

  // The gradients of the first products' outputs, in memory from `kept`, and of all parameters that no matrix product
  // reads.
  virtual void differentiate(int slot, const MicroBatch& micro_batch, Arena& kept) = 0;
  // This rank's share of the gradient of the normed tokens, to be added up by `d_normed`; `beside`: with other
  // communication of the tensor group under way.
  virtual void differentiate_normed(int slot, TokenSum& d_normed, bool beside) = 0;
  // Gradients of the weights whose products do not read the normed tokens, and of those whose do: normed [tokens,
  // hidden].
  virtual void add_output_gradients(int slot) = 0;
  virtual void add_input_gradients(int slot, const Execution& execution, const Tensor& normed) = 0;

  const ModelContext& context_;
  const std::int64_t hidden_;
  const double epsilon_;

 private:
  struct Norm {
    Tensor sum;          // [residual rows, hidden]
    Tensor inverse_rms;  // [residual rows]
    Tensor d_out;        // [tokens, hidden]
    Tensor normed;       // [residual rows, hidden], kept for backward_weight; holds its gradient for a while
    std::int64_t tokens = 0;
  };

  const Norm& norm(int slot) const { return norms_[static_cast<std::size_t>(slot)]; }
  Norm& norm(int slot) { return norms_[static_cast<std::size_t>(slot)]; }
  void begin_backward(int slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out);

  std::vector<Norm> norms_;
};

}  // namespace fulmen
