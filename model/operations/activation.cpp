// An activation behind a product as an operation.
#include "model/operations/activation.h"

#include "kernels/activation_function.h"

namespace fulmen {

namespace {

Tensor vector_of(Tensors tensors, std::size_t i) { return i < tensors.size() ? tensors[i].flatten() : Tensor(); }

}  // namespace

std::vector<Port> ActivationFunction::outputs(Widths in) const { return {{.width = in[0], .keep = Keep::remade}}; }

// A pass over memory: products and attention are what the time of a pass is made of.
Costs ActivationFunction::costs(std::int64_t length, Widths in) const {
  (void)length, (void)in;
  return {};
}

void ActivationFunction::forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const {
  (void)kept;
  activation_function_forward(pass.execution, in[0], vector_of(in, 1), activation_, out[0]);
}

void ActivationFunction::backward(const Pass& pass, const BackwardTensors& tensors) const {
  activation_function_backward(pass.execution, tensors.d_out[0], tensors.in[0], vector_of(tensors.in, 1), activation_,
                               tensors.d_in[0], vector_of(tensors.d_in, 1), tensors.out[0]);
}

}  // namespace fulmen
