// The weights that an optimiser updates.
#include "train/master_weights.h"

#include "kernels/elementwise.h"

namespace fulmen {

MasterWeights::MasterWeights(ParameterStore& parameters, const Execution& execution) : parameters_(parameters) {
  const DType master = parameters.precision().master();
  for (const ParameterGroup& group : parameters.groups()) {
    copies_.emplace_back();
    if (size_of(group.weights.view().dtype()) >= size_of(master)) continue;
    copies_.back() = OwnedTensor(execution.device, master, {group.elements}, MemoryKind::optimizer, *execution.ledger);
    copy(execution, group.weights, copies_.back());
  }
}

std::vector<Tensor> MasterWeights::flat() const {
  std::vector<Tensor> flat = parameters_.flat_weights();
  for (std::size_t i = 0; i < flat.size(); ++i)
    if (copies_[i].view()) flat[i] = copies_[i];
  return flat;
}

Tensor MasterWeights::rounded(std::size_t group) const {
  return copies_[group].view() ? parameters_.groups()[group].weights.view() : Tensor();
}

void MasterWeights::round(const Execution& execution) {
  for (std::size_t i = 0; i < copies_.size(); ++i)
    if (copies_[i].view()) copy(execution, copies_[i], parameters_.groups()[i].weights);
}

}  // namespace fulmen
