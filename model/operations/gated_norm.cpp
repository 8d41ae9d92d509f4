// The gated norm over all heads as an operation.
#include "model/operations/gated_norm.h"

#include "kernels/norm.h"

namespace fulmen {

namespace {

Tensor gain_of(Tensors tensors) { return tensors.size() > 3 ? tensors[3].flatten() : Tensor(); }

}  // namespace

std::vector<Port> GatedNorm::outputs(Widths in) const { return {{.width = in[0], .keep = Keep::remade}}; }

// A pass over memory: products and attention are what a pass's time is made of.
Costs GatedNorm::costs(std::int64_t length, Widths in) const {
  (void)length, (void)in;
  return {};
}

// 1 / the root, which the backward pass reads.
std::vector<KeptTensor> GatedNorm::kept(const PassShape& where, Widths in) const {
  (void)in;
  return {{PortType::accumulation, {where.shape.tokens()}, Keep::products}};
}

void GatedNorm::forward_sums(const Pass& pass, Tensors in, const Tensor& sums) const {
  sum_rows(pass.execution, in[1], sums);
}

void GatedNorm::forward_with(const Pass& pass, Tensors in, const Tensor& sums, Tensors out, Tensors kept) const {
  const Tensor squares = sums ? sums.reshape({sums.size(0), 1}) : in[1];
  gated_norm_forward(pass.execution, in[0], squares, width_, epsilon_, in[2], gate_activation_, out[0], kept[0],
                     gain_of(in));
}

void GatedNorm::backward_sums(const Pass& pass, const BackwardTensors& tensors, const Tensor& sums) const {
  gated_norm_backward_dot(pass.execution, tensors.d_out[0], tensors.in[0], tensors.kept[0], tensors.in[2],
                          gate_activation_, sums, gain_of(tensors.in));
}

void GatedNorm::backward_with(const Pass& pass, const BackwardTensors& tensors, const Tensor& sums) const {
  gated_norm_backward(pass.execution, tensors.d_out[0], tensors.in[0], tensors.kept[0], tensors.in[2], gate_activation_,
                      sums, width_, tensors.d_in[0], tensors.d_in[2], tensors.out[0], gain_of(tensors.in),
                      gain_of(tensors.d_in));
}

}  // namespace fulmen
