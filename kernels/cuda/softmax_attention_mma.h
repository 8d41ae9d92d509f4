// Softmax attention in bf16 on the tensor cores of any card since Ampere, with documents and positions; heads of up to
// 128 columns. Sums have a fixed order.
#pragma once

#include "kernels/softmax_attention.h"

namespace fulmen::cuda {

// Whether this path takes the call: bf16, widths that 8 divides, addresses and strides that 16 bytes divide.
bool mma_takes(const Execution& execution, const SoftmaxAttentionInputs& inputs, const Tensor& output);
bool mma_takes(const Execution& execution, const SoftmaxAttentionInputs& inputs,
               const SoftmaxAttentionGradients& gradients);

void softmax_attention_forward_mma(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                                   const Tensor& output, const Tensor& log_sum_exp);
void softmax_attention_backward_mma(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                                    const SoftmaxAttentionGradients& gradients);

}  // namespace fulmen::cuda
