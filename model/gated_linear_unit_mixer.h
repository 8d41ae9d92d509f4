// TransNormerLLM's channel mixer, the simple gated linear unit (SGLU): y = l3(l1(x) * l2(x)), without an activation.
#pragma once

#include <vector>

#include "kernels/activation.h"
#include "model/model_config.h"
#include "model/sublayer.h"
#include "model/token_split.h"

namespace fulmen {

class GatedLinearUnitMixer final : public Sublayer {
 public:
  static std::vector<ParameterDeclaration> declare(const ModelConfig& config, std::int64_t layer);

  GatedLinearUnitMixer(const ModelConfig& config, std::int64_t layer, const ModelContext& context);

  void prepare(int slots) override;
  std::vector<StashTensor> stash(int slot, const BatchShape& shape) override;
  void forward(int slot, const MicroBatch& micro_batch, const Tensor& residual, const Tensor& branch,
               const Tensor& branch_out) override;
  Tensor sum(int slot) const override { return stashes_[static_cast<std::size_t>(slot)].sum; }
  void backward_input(int slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out, TokenGather& d_in) override;
  void backward_weight(int slot) override;
  void backward(int slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out, TokenGather& d_in) override;

 private:
  struct Stash {
    Tensor sum;                       // [residual rows, hidden]
    Tensor inverse_rms;               // [residual rows]
    Tensor expansion;                 // [tokens, 2 local]: l1(x) | l2(x)
    Tensor d_out, d_expansion, product, normed;   // kept for backward_weight
  };

  // The steps of backward_input: the gradient of the expansion, in memory that is kept for backward_weight; and that of the
  // normed input, to be summed over the tensor ranks, `beside`: with other communication under way.
  void differentiate(Stash& stash, std::int64_t tokens, Arena& kept, TokenGather& d_out);
  void differentiate_input(const Stash& stash, TokenSum& d_normed, bool beside);

  // The two halves of an expansion.
  Tensor first(const Tensor& expansion) const { return expansion.slice(1, 0, local_); }
  Tensor second(const Tensor& expansion) const { return expansion.slice(1, local_, 2 * local_); }

  const ModelContext& context_;
  std::int64_t hidden_, local_;       // local_: this rank's part of the inner width
  double epsilon_;
  Activation activation_ = Activation::none;
  ParameterId expand_, contract_;
  std::vector<Stash> stashes_;
};

}  // namespace fulmen
