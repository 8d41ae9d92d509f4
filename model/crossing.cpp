// Decoding of operations that read tokens in front of their own.
#include "model/crossing.h"

#include "kernels/elementwise.h"

namespace fulmen {

std::vector<StateSpec> HaloCore::states(std::int64_t batch, std::int64_t length, Widths in) const {
  (void)length;
  return {{PortType::activation, {batch, halo(), in.front()}}};
}

void HaloCore::step(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors states) const {
  const Tensor& before = states[0];
  forward_after(pass, in, before, out, kept);
  for (std::int64_t i = 0; i + 1 < halo(); ++i) copy(pass.execution, before.select(1, i + 1), before.select(1, i));
  copy(pass.execution, in[0], before.select(1, halo() - 1));
}

}  // namespace fulmen
