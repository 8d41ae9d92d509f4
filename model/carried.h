// Tensors other than the residual stream that layers hand to later layers. The branch that carries them writes them
// once. Any branch behind it reads them, also on another stage of the pipeline. Their gradients collect what all
// readers give.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "framework/execution.h"
#include "model/micro_batch.h"

namespace fulmen {

struct CarriedSpec {
  std::string name;
  std::int64_t width = 0;  // columns on this rank, of the activation dtype
  bool enters = false;     // comes from the stage before
  bool leaves = false;     // goes to the stage behind
};

// The carried tensors of a stage's micro-batches in flight.
class CarriedTensors {
 public:
  explicit CarriedTensors(std::vector<CarriedSpec> specs) : specs_(std::move(specs)) {}

  void prepare(const BatchShape& shape, int slots, DType dtype, const Execution& execution);
  bool empty() const { return specs_.empty(); }

  Tensor value(int slot, const std::string& name) const { return values_[index(slot, name)]; }  // [tokens, width]
  Tensor gradient(int slot, const std::string& name) const { return gradients_[index(slot, name)]; }

  // Elements that cross the border in front of the stage, and behind it.
  std::int64_t entering_elements() const { return elements(&CarriedSpec::enters); }
  std::int64_t leaving_elements() const { return elements(&CarriedSpec::leaves); }
  // Between what crosses, [elements], null where nothing does, and the tensors of a slot.
  void enter(const Execution& execution, int slot, const Tensor& from) const;
  void leave(const Execution& execution, int slot, const Tensor& to) const;
  // The same of gradients, which are zero where nothing comes back from behind.
  void begin_backward(const Execution& execution, int slot, const Tensor& from) const;
  void end_backward(const Execution& execution, int slot, const Tensor& to) const;

 private:
  std::size_t index(int slot, const std::string& name) const;
  std::int64_t elements(bool CarriedSpec::*crosses) const;

  std::vector<CarriedSpec> specs_;
  std::int64_t tokens_ = 0;
  std::vector<OwnedTensor> values_, gradients_;  // by slot, then by tensor
};

}  // namespace fulmen
