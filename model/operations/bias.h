// A bias behind products, as an operation of branches.
#pragma once

#include "model/local_operation.h"

namespace fulmen {

// Inputs: matrices [tokens, width] each, then the bias [sum of the widths]. Results: matrix + its part of the bias, in
// place of each.
class AddBias final : public LocalOperation {
 public:
  explicit AddBias(std::size_t matrices) : matrices_(matrices) {}

  std::vector<Port> outputs(Widths in) const override;
  Costs costs(std::int64_t length, Widths in) const override;
  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const override;
  void backward(const Pass& pass, const BackwardTensors& tensors) const override;

 private:
  std::size_t matrices_;
};

}  // namespace fulmen
