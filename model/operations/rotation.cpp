// Rotary position embedding as an operation.
#include "model/operations/rotation.h"

namespace fulmen {

std::vector<Port> RotateHeads::outputs(Widths in) const {
  std::vector<Port> ports;
  for (std::size_t i = 0; i < options_.scales.size(); ++i)
    ports.push_back({.width = in[i], .in_place_of = static_cast<int>(i)});
  return ports;
}

// A pass over memory: products and attention are what the time of a pass is made of.
Costs RotateHeads::costs(std::int64_t length, Widths in) const {
  (void)length, (void)in;
  return {};
}

void RotateHeads::rotate_all(const Pass& pass, const Tensor& frequencies, bool inverse, Tensors matrices) const {
  const Tensor positions = pass.micro_batch.positions.flatten();
  for (std::size_t i = 0; i < options_.scales.size(); ++i)
    rotate(pass.execution, {options_.head_width, options_.pairs, frequencies, options_.scales[i]}, positions, inverse,
           matrices[i]);
}

void RotateHeads::forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const {
  (void)kept;
  rotate_all(pass, in[options_.scales.size()], false, out);
}

void RotateHeads::backward(const Pass& pass, const BackwardTensors& tensors) const {
  rotate_all(pass, tensors.in[options_.scales.size()], true, tensors.d_in);
}

}  // namespace fulmen
