// A mixture of experts (kernels/experts.h) as operations of branches.
#pragma once

#include "model/crossing.h"

namespace fulmen {

// Inputs: logits [tokens, experts]. Results, in the accumulation dtype: the weights of the chosen experts, which sum
// to 1, all others 0; and the probabilities. [tokens, experts] each.
class Router final : public LocalOperation {
 public:
  explicit Router(std::int64_t chosen) : chosen_(chosen) {}

  std::vector<Port> outputs(Widths in) const override;
  Costs costs(std::int64_t length, Widths in) const override;
  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const override;
  void backward(const Pass& pass, const BackwardTensors& tensors) const override;

 private:
  std::int64_t chosen_;
};

// The loss that keeps experts equally busy (Switch Transformers, arXiv 2101.03961, equation 4), a sample at a time:
//   E sum_e f_e P_e,  f_e = choices of e / tokens,  P_e = the mean probability of e.
// Inputs: the weights and the probabilities of a router.
class RouterLoss final : public LossOperation {
 public:
  std::int64_t statistics(Widths in) const override { return 2 * in[0] + 1; }
  void summarise(const Pass& pass, Tensors in, const Tensor& sums) const override;
  void add_loss(const Pass& pass, const Tensor& sums, double scale, const Tensor& loss) const override;
  void backward(const Pass& pass, Tensors in, const Tensor& sums, double scale, Tensors d_in) const override;
};

// Gated linear units with SiLU, of which each token passes through those that a router chose:
//   y_t = sum_e w_te D_e (silu(G_e x_t) * (U_e x_t)).
// Inputs: x [tokens, hidden], the weights w [tokens, experts], the stacks G|U [experts, 2 inner, hidden] and D
// [experts, hidden, inner]. Result: [tokens, hidden], this tensor rank's share.
class Experts final : public OwnedOperation {
 public:
  Experts(std::int64_t experts, std::int64_t chosen) : experts_(experts), chosen_(chosen) {}

  std::int64_t items() const override { return experts_; }
  std::vector<Port> outputs(Widths in) const override;
  Costs costs(std::int64_t length, Widths in) const override;
  void forward_owned(const Execution& execution, IndexRange owned, Tensors in, Tensors out) const override;
  void backward_owned(const Execution& execution, IndexRange owned, const BackwardTensors& tensors) const override;

 private:
  std::int64_t experts_, chosen_;
};

}  // namespace fulmen
