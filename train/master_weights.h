// The weights that an optimiser updates: the model's own, or a wider copy where the model computes in bf16; of each
// bucket this rank's part.
#pragma once

#include <vector>

#include "model/parameter_store.h"

namespace fulmen {

class MasterWeights {
 public:
  // Starts as what the weights are.
  MasterWeights(ParameterStore& parameters, const Execution& execution);

  // In the precision's master dtype (fp64 where a group's key asks): what checkpoints hold.
  const FlatParts& flat() const { return master_; }
  // The part of a bucket's weights that follows its master by rounding; null where they are the same memory.
  Tensor rounded(std::size_t bucket) const;
  // After the master was set: rounds it to the weights.
  void round(const Execution& execution);

 private:
  std::vector<OwnedTensor> copies_;  // per group; null where the weights are wide enough themselves
  FlatParts weights_, master_;
};

}  // namespace fulmen
