// A norm over all heads together, and a gate (kernels/norm.h), as an operation of branches.
#pragma once

#include "kernels/activation.h"
#include "model/local_operation.h"

namespace fulmen {

// Inputs: x [tokens, width], the sums of its squares by head [tokens, heads], the gate [tokens, width], and perhaps a
// gain [width]. Result: act(gate) * x / sqrt(mean over the whole width of x^2 + epsilon) * gain.
class GatedNorm final : public SpanningOperation {
 public:
  // width: over all tensor ranks.
  GatedNorm(std::int64_t width, double epsilon, Activation gate_activation)
      : width_(width), epsilon_(epsilon), gate_activation_(gate_activation) {}

  std::vector<Port> outputs(Widths in) const override;
  Costs costs(std::int64_t length, Widths in) const override;
  std::vector<KeptTensor> kept(const PassShape& where, Widths in) const override;
  void forward_sums(const Pass& pass, Tensors in, const Tensor& sums) const override;
  void forward_with(const Pass& pass, Tensors in, const Tensor& sums, Tensors out, Tensors kept) const override;
  void backward_sums(const Pass& pass, const BackwardTensors& tensors, const Tensor& sums) const override;
  void backward_with(const Pass& pass, const BackwardTensors& tensors, const Tensor& sums) const override;

 private:
  std::int64_t width_;
  double epsilon_;
  Activation gate_activation_;
};

}  // namespace fulmen
