// An activation behind a product with or without a bias (kernels/activation_function.h), as an operation of branches.
#pragma once

#include "kernels/activation.h"
#include "model/local_operation.h"

namespace fulmen {

// Inputs: x [tokens, width], and perhaps a bias [width]. Result: act(x + bias).
class ActivationFunction final : public LocalOperation {
 public:
  explicit ActivationFunction(Activation activation) : activation_(activation) {}

  std::vector<Port> outputs(Widths in) const override;
  Costs costs(std::int64_t length, Widths in) const override;
  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const override;
  void backward(const Pass& pass, const BackwardTensors& tensors) const override;

 private:
  Activation activation_;
};

}  // namespace fulmen
