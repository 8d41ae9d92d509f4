// A norm of each head by itself, with gain and gate (kernels/head_norm.h), as an operation of branches.
#pragma once

#include "kernels/head_norm.h"
#include "model/local_operation.h"

namespace fulmen {

struct HeadNormOptions {
  std::int64_t group_width = 0;
  double epsilon = 1e-6;
  bool gated = false, gain = false;  // inputs behind x, in this order
  bool zero_centred = false;
  Activation gate_activation = Activation::silu;
  GatePlace gate_place = GatePlace::after_norm;
  Keep keep = Keep::remade;  // of the result: remade where a product alone reads it
};

// Inputs: x [tokens, width], the gate [tokens, width], the gain [group width] or [width]. Result: [tokens, width].
class HeadNormOperation final : public LocalOperation {
 public:
  explicit HeadNormOperation(const HeadNormOptions& options) : options_(options) {}

  std::vector<Port> outputs(Widths in) const override;
  Costs costs(std::int64_t length, Widths in) const override;
  std::vector<KeptTensor> kept(const PassShape& where, Widths in) const override;
  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const override;
  void backward(const Pass& pass, const BackwardTensors& tensors) const override;

 private:
  HeadNorm norm(Tensors in) const;
  std::size_t gain_place() const { return options_.gated ? 2 : 1; }

  HeadNormOptions options_;
};

}  // namespace fulmen
