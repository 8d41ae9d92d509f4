// Chooses the path of linear attention on a GPU.
#include "kernels/cuda/linear_attention.h"

#ifdef FULMEN_HOPPER
#include "kernels/cuda/hopper/linear_attention.h"
#endif
#include "kernels/cuda/linear_attention_plain.h"

namespace fulmen::cuda {

void linear_attention_forward(const Execution& execution, const LinearAttentionInputs& inputs,
                              const LinearAttentionOutputs& outputs) {
#ifdef FULMEN_HOPPER
  if (hopper::takes(inputs, outputs)) return hopper::linear_attention_forward(execution, inputs, outputs);
#endif
  linear_attention_forward_plain(execution, inputs, outputs);
}

void linear_attention_backward(const Execution& execution, const LinearAttentionInputs& inputs,
                               const LinearAttentionGradients& gradients) {
#ifdef FULMEN_HOPPER
  if (hopper::takes(inputs, gradients)) return hopper::linear_attention_backward(execution, inputs, gradients);
#endif
  linear_attention_backward_plain(execution, inputs, gradients);
}

}  // namespace fulmen::cuda
