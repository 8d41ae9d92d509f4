// A bias behind products as an operation.
#include "model/operations/bias.h"

#include "kernels/activation_function.h"

namespace fulmen {

std::vector<Port> AddBias::outputs(Widths in) const {
  std::vector<Port> ports;
  for (std::size_t i = 0; i < matrices_; ++i) ports.push_back({.width = in[i], .in_place_of = static_cast<int>(i)});
  return ports;
}

// A pass over memory: products and attention are what the time of a pass is made of.
Costs AddBias::costs(std::int64_t length, Widths in) const {
  (void)length, (void)in;
  return {};
}

void AddBias::forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const {
  (void)kept;
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < matrices_; ++i) {
    const std::int64_t end = begin + out[i].size(1);
    activation_function_forward(pass.execution, out[i], in[matrices_].flatten().slice(0, begin, end), Activation::none,
                                out[i]);
    begin = end;
  }
}

void AddBias::backward(const Pass& pass, const BackwardTensors& tensors) const {
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < matrices_; ++i) {
    const std::int64_t end = begin + tensors.d_out[i].size(1);
    activation_function_backward(pass.execution, tensors.d_out[i], {},
                                 tensors.in[matrices_].flatten().slice(0, begin, end), Activation::none, {},
                                 tensors.d_in[matrices_].flatten().slice(0, begin, end), {});
    begin = end;
  }
}

}  // namespace fulmen
