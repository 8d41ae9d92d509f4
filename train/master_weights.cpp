// The weights that an optimiser updates.
#include "train/master_weights.h"

#include "kernels/elementwise.h"

namespace fulmen {

MasterWeights::MasterWeights(ParameterStore& parameters, const Execution& execution)
    : weights_(parameters.flat_weights()), master_(weights_) {
  const DType master = parameters.precision().master();
  std::vector<Tensor> flat;
  for (std::size_t g = 0; g < parameters.groups().size(); ++g) {
    const std::int64_t elements = parameters.part_elements(g);
    copies_.emplace_back();
    if (parameters.precision().copies_weights_of(parameters.groups()[g].key))
      copies_.back() = OwnedTensor(execution.device, master, {elements}, MemoryKind::optimizer, *execution.ledger);
    flat.push_back(copies_.back());
  }
  for (std::size_t b = 0; b < master_.size(); ++b)
    if (flat[parameters.shard_map().buckets()[b].group]) master_[b] = parameters.part_in(flat, b);
  for (std::size_t b = 0; b < master_.size(); ++b)
    if (rounded(b)) copy(execution, weights_[b], master_[b]);
}

Tensor MasterWeights::rounded(std::size_t bucket) const {
  return weights_[bucket].data() == master_[bucket].data() ? Tensor() : weights_[bucket];
}

void MasterWeights::round(const Execution& execution) {
  for (std::size_t b = 0; b < master_.size(); ++b)
    if (const Tensor weights = rounded(b)) copy(execution, master_[b], weights);
}

}  // namespace fulmen
