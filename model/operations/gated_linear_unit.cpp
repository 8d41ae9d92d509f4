// The product of a gated linear unit as an operation.
#include "model/operations/gated_linear_unit.h"

#include "kernels/gated_linear_unit.h"

namespace fulmen {

std::vector<Port> GatedLinearUnit::outputs(Widths in) const { return {{.width = in[0], .keep = Keep::remade}}; }

Costs GatedLinearUnit::costs(std::int64_t length, Widths in) const {
  (void)length, (void)in;
  return {};
}

void GatedLinearUnit::forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const {
  (void)kept;
  gated_linear_unit_forward(pass.execution, in[0], in[1], activation_, out[0]);
}

void GatedLinearUnit::backward(const Pass& pass, const BackwardTensors& tensors) const {
  gated_linear_unit_backward(pass.execution, tensors.d_out[0], tensors.in[0], tensors.in[1], activation_,
                             tensors.d_in[0], tensors.d_in[1], tensors.out[0]);
}

}  // namespace fulmen
