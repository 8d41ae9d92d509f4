// Decays and rates that tokens choose (kernels/token_gate.h) as an operation of branches.
#pragma once

#include "kernels/token_gate.h"
#include "model/local_operation.h"

namespace fulmen {

struct TokenGateOptions {
  GateForm form = GateForm::sigmoid;
  double divisor = 1.0;
  bool bias = false;  // an input behind x; behind it the logarithms of the rates of GateForm::negative_softplus
};

// Inputs: x [tokens, width], perhaps the bias [width], perhaps the rates' logarithms [groups]. Both are at least fp32
// (gate_vector). Result: [tokens, width], accumulation dtype.
class TokenGateOperation final : public LocalOperation {
 public:
  explicit TokenGateOperation(const TokenGateOptions& options) : options_(options) {}

  std::vector<Port> outputs(Widths in) const override;
  Costs costs(std::int64_t length, Widths in) const override;
  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const override;
  void backward(const Pass& pass, const BackwardTensors& tensors) const override;

 private:
  TokenGate gate(Tensors in) const;
  std::size_t rate_place() const { return options_.bias ? 2 : 1; }
  bool has_rate() const { return options_.form == GateForm::negative_softplus; }

  TokenGateOptions options_;
};

}  // namespace fulmen
