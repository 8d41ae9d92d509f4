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
  void backward_input(int slot, const MicroBatch& micro_batch, Arena& kept, const Tensor& d_out, const Tensor& d_in) override;
  void backward_weight(int slot) override;
  void backward(int slot, const MicroBatch& micro_batch, Arena& kept, const Tensor& d_out, const Tensor& d_in) override;

 private:
  struct Stash {
    Tensor sum;                       // [residual rows, hidden]
    Tensor inverse_rms;               // [residual rows]
    Tensor expansion;                 // [tokens, 2 local]: l1(x) | l2(x)
    Tensor d_out, d_expansion, product, normed;   // kept for backward_weight
  };

  // The steps of backward_input: memory for what backward_weight needs, this rank's share of the normed input's gradient
  // [tokens, hidden], and what follows once that is summed.
  void prepare_backward(Stash& stash, std::int64_t tokens, Arena& kept, const Tensor& d_out);
  void differentiate(Stash& stash, const Tensor& d_normed);
  void differentiate_norm(Stash& stash, const Tensor& d_out, const Tensor& d_in);
  void add_input_gradient(const Stash& stash);

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
