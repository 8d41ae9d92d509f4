// TransNormerLLM's channel mixer, the simple gated linear unit (SGLU): y = l3(l1(x) * l2(x)), without an activation.
#pragma once

#include <vector>

#include "kernels/activation.h"
#include "model/model_config.h"
#include "model/normed_sublayer.h"

namespace fulmen {

class GatedLinearUnitMixer final : public NormedSublayer {
 public:
  static std::vector<ParameterDeclaration> declare(const ModelConfig& config, std::int64_t layer);

  GatedLinearUnitMixer(const ModelConfig& config, std::int64_t layer, const ModelContext& context);

  void prepare(int slots) override;
  std::vector<StashTensor> stash(int slot, const BatchShape& shape) override;
  void forward(int slot, const MicroBatch& micro_batch, const Tensor& residual, const Tensor& branch,
               const Tensor& branch_out) override;

 private:
  struct Stash {
    Tensor expansion;             // [tokens, 2 local]: l1(x) | l2(x)
    Tensor d_expansion, product;  // kept for backward_weight
  };

  void differentiate(int slot, const MicroBatch& micro_batch, Arena& kept) override;
  void differentiate_normed(int slot, TokenSum& d_normed, bool beside) override;
  void add_output_gradients(int slot) override;
  void add_input_gradients(int slot, const Execution& execution, const Tensor& normed) override;

  Stash& stash_of(int slot) { return stashes_[static_cast<std::size_t>(slot)]; }
  // The two halves of an expansion.
  Tensor first(const Tensor& expansion) const { return expansion.slice(1, 0, local_); }
  Tensor second(const Tensor& expansion) const { return expansion.slice(1, local_, 2 * local_); }

  std::int64_t local_;  // this rank's part of the inner width
  Activation activation_ = Activation::none;
  ParameterId expand_, contract_;
  std::vector<Stash> stashes_;
};

}  // namespace fulmen
