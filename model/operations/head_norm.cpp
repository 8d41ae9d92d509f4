// A norm of each head by itself as an operation.
#include "model/operations/head_norm.h"

namespace fulmen {

std::vector<Port> HeadNormOperation::outputs(Widths in) const { return {{.width = in[0], .keep = options_.keep}}; }

// A pass over memory: products and attention are what the time of a pass is made of.
Costs HeadNormOperation::costs(std::int64_t length, Widths in) const {
  (void)length, (void)in;
  return {};
}

std::vector<KeptTensor> HeadNormOperation::kept(const PassShape& where, Widths in) const {
  // Results that the backward pass makes again do not run again before it.
  const Keep keep = options_.keep == Keep::remade ? Keep::products : options_.keep;
  return {{PortType::accumulation, {where.shape.tokens(), in[0] / options_.group_width}, keep}};
}

HeadNorm HeadNormOperation::norm(Tensors in) const {
  HeadNorm norm;
  norm.group_width = options_.group_width;
  norm.epsilon = options_.epsilon;
  norm.zero_centred = options_.zero_centred;
  norm.gate_activation = options_.gate_activation;
  norm.gate_place = options_.gate_place;
  if (options_.gated) norm.gate = in[1];
  if (options_.gain) norm.gain = in[gain_place()].flatten();
  return norm;
}

void HeadNormOperation::forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const {
  head_norm_forward(pass.execution, norm(in), in[0], out[0], kept[0]);
}

void HeadNormOperation::backward(const Pass& pass, const BackwardTensors& tensors) const {
  HeadNormGradients gradients;
  gradients.d_x = tensors.d_in[0];
  if (options_.gated) gradients.d_gate = tensors.d_in[1];
  if (options_.gain) gradients.d_gain = tensors.d_in[gain_place()].flatten();
  if (options_.keep == Keep::remade) gradients.y = tensors.out[0];
  head_norm_backward(pass.execution, norm(tensors.in), tensors.d_out[0], tensors.in[0], tensors.kept[0], gradients);
}

}  // namespace fulmen
