// The product of a gated linear unit (kernels/gated_linear_unit.h) as an operation of branches.
#pragma once

#include "kernels/activation.h"
#include "model/local_operation.h"

namespace fulmen {

// Inputs: a, b [tokens, width]. Result: act(a) * b.
class GatedLinearUnit final : public LocalOperation {
 public:
  explicit GatedLinearUnit(Activation activation) : activation_(activation) {}

  std::vector<Port> outputs(Widths in) const override;
  Costs costs(std::int64_t length, Widths in) const override;
  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const override;
  void backward(const Pass& pass, const BackwardTensors& tensors) const override;

 private:
  Activation activation_;
};

}  // namespace fulmen
