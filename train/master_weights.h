// The weights that an optimiser updates: the model's own, or a wider copy where the model computes in bf16.
#pragma once

#include <vector>

#include "model/parameter_store.h"

namespace fulmen {

class MasterWeights {
 public:
  // Starts as what the weights are.
  MasterWeights(ParameterStore& parameters, const Execution& execution);

  // One flat tensor per parameter group, in the precision's master dtype (fp64 in wide groups): what checkpoints hold.
  std::vector<Tensor> flat() const;
  // The group's weights that follow its master by rounding; null where they are the same memory.
  Tensor rounded(std::size_t group) const;
  // After the master was set: rounds it to the weights.
  void round(const Execution& execution);

 private:
  ParameterStore& parameters_;
  std::vector<OwnedTensor> copies_;   // per group; null where the weights are wide enough themselves
};

}  // namespace fulmen
