// Tensors other than the residual stream that layers hand to later layers.
#include "model/carried.h"

#include <algorithm>

#include "kernels/elementwise.h"

namespace fulmen {

void CarriedTensors::prepare(const BatchShape& shape, int slots, DType dtype, const Execution& execution) {
  tokens_ = shape.tokens();
  for (std::vector<OwnedTensor>* tensors : {&values_, &gradients_}) {
    tensors->clear();
    for (int slot = 0; slot < slots; ++slot)
      for (const CarriedSpec& spec : specs_)
        tensors->emplace_back(execution.device, dtype, Shape{tokens_, spec.width}, MemoryKind::activations,
                              *execution.ledger);
  }
}

std::size_t CarriedTensors::index(int slot, const std::string& name) const {
  const auto found = std::ranges::find(specs_, name, &CarriedSpec::name);
  FULMEN_CHECK(found != specs_.end(), "no tensor {} is carried through this stage", name);
  return static_cast<std::size_t>(slot) * specs_.size() + static_cast<std::size_t>(found - specs_.begin());
}

std::int64_t CarriedTensors::elements(bool CarriedSpec::*crosses) const {
  std::int64_t sum = 0;
  for (const CarriedSpec& spec : specs_)
    if (spec.*crosses) sum += tokens_ * spec.width;
  return sum;
}

namespace {

// Calls f(tensor, part) for the parts of `whole`, end to end, that belong to the tensors which cross.
template <class F>
void for_each_part(const std::vector<CarriedSpec>& specs, bool CarriedSpec::*crosses, std::int64_t tokens,
                   const Tensor& whole, const F& f) {
  std::int64_t begin = 0;
  for (const CarriedSpec& spec : specs) {
    if (!(spec.*crosses)) continue;
    const std::int64_t end = begin + tokens * spec.width;
    f(spec.name, whole.slice(0, begin, end).reshape({tokens, spec.width}));
    begin = end;
  }
}

}  // namespace

void CarriedTensors::enter(const Execution& execution, int slot, const Tensor& from) const {
  for_each_part(specs_, &CarriedSpec::enters, tokens_, from,
                [&](const std::string& name, const Tensor& part) { copy(execution, part, value(slot, name)); });
}

void CarriedTensors::leave(const Execution& execution, int slot, const Tensor& to) const {
  for_each_part(specs_, &CarriedSpec::leaves, tokens_, to,
                [&](const std::string& name, const Tensor& part) { copy(execution, value(slot, name), part); });
}

void CarriedTensors::begin_backward(const Execution& execution, int slot, const Tensor& from) const {
  for (const CarriedSpec& spec : specs_)
    if (!spec.leaves) fill_zero(execution, gradient(slot, spec.name));
  for_each_part(specs_, &CarriedSpec::leaves, tokens_, from,
                [&](const std::string& name, const Tensor& part) { copy(execution, part, gradient(slot, name)); });
}

void CarriedTensors::end_backward(const Execution& execution, int slot, const Tensor& to) const {
  for_each_part(specs_, &CarriedSpec::enters, tokens_, to,
                [&](const std::string& name, const Tensor& part) { copy(execution, gradient(slot, name), part); });
}

}  // namespace fulmen
