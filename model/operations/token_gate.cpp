// Numbers that tokens choose as an operation.
#include "model/operations/token_gate.h"

namespace fulmen {

std::vector<Port> TokenGateOperation::outputs(Widths in) const {
  return {{.type = PortType::accumulation, .width = in[0], .keep = Keep::all}};
}

// A pass over memory: products and attention are what the time of a pass is made of.
Costs TokenGateOperation::costs(std::int64_t length, Widths in) const {
  (void)length, (void)in;
  return {};
}

TokenGate TokenGateOperation::gate(Tensors in) const {
  TokenGate gate{.form = options_.form, .divisor = options_.divisor};
  if (options_.bias) gate.bias = in[1].flatten();
  if (has_rate()) gate.log_rate = in[rate_place()].flatten();
  return gate;
}

void TokenGateOperation::forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const {
  (void)kept;
  token_gate_forward(pass.execution, gate(in), in[0], out[0]);
}

void TokenGateOperation::backward(const Pass& pass, const BackwardTensors& tensors) const {
  TokenGateGradients gradients{.d_x = tensors.d_in[0], .d_bias = {}, .d_log_rate = {}};
  if (options_.bias) gradients.d_bias = tensors.d_in[1].flatten();
  if (has_rate()) gradients.d_log_rate = tensors.d_in[rate_place()].flatten();
  token_gate_backward(pass.execution, gate(tensors.in), tensors.d_out[0], tensors.in[0], gradients);
}

}  // namespace fulmen
