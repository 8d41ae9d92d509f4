// Linear attention on any GPU, for any widths and dtypes (fp32, fp64, bf16): the chunk form as batched matrix products.
#pragma once

#include "kernels/linear_attention.h"

namespace fulmen::cuda {

void linear_attention_forward_plain(const Execution& execution, const LinearAttentionInputs& inputs,
                                    const LinearAttentionOutputs& outputs);
void linear_attention_backward_plain(const Execution& execution, const LinearAttentionInputs& inputs,
                                     const LinearAttentionGradients& gradients);

}  // namespace fulmen::cuda
