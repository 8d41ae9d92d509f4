// Rotary position embedding (kernels/rotation.h) as an operation of branches.
#pragma once

#include <vector>

#include "kernels/rotation.h"
#include "model/local_operation.h"

namespace fulmen {

struct RotationOptions {
  std::int64_t head_width = 0;
  RotationPairs pairs = RotationPairs::halves;
  std::vector<double> scales;  // of each matrix: as many as there are
};

// Inputs: matrices [tokens, heads * head width], then the frequencies. Results: each of the matrices rotated, in place.
class RotateHeads final : public LocalOperation {
 public:
  explicit RotateHeads(RotationOptions options) : options_(std::move(options)) {}

  std::vector<Port> outputs(Widths in) const override;
  Costs costs(std::int64_t length, Widths in) const override;
  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const override;
  void backward(const Pass& pass, const BackwardTensors& tensors) const override;

 private:
  void rotate_all(const Pass& pass, const Tensor& frequencies, bool inverse, Tensors matrices) const;

  RotationOptions options_;
};

}  // namespace fulmen
