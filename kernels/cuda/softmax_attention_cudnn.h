// Softmax attention through cuDNN: bf16, whole rows without documents, or blocks of keys that every query sees.
#pragma once

#include "kernels/softmax_attention.h"

namespace fulmen::cuda {

// Whether cuDNN takes the call. All else takes the path of our own: other dtypes, and positions and documents, whose
// borders differ from batch to batch. So do widths that are no multiple of 8 or above 256 (128 before Hopper). So do
// addresses and strides that are no multiple of 16 bytes. So do `deterministic` runs: cuDNN sums the gradient of
// queries in no fixed order.
bool cudnn_takes(const Execution& execution, const SoftmaxAttentionInputs& inputs, const Tensor& output);
bool cudnn_takes(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                 const SoftmaxAttentionGradients& gradients);

// Plans are made at the first call of a shape, which takes up to seconds, and kept for the life of the process.
void softmax_attention_forward_cudnn(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                                     const Tensor& output, const Tensor& log_sum_exp);
void softmax_attention_backward_cudnn(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                                      const SoftmaxAttentionGradients& gradients);

}  // namespace fulmen::cuda
