// Softmax attention without tensor cores: any width up to 256, any dtype, any card.
#pragma once

#include "kernels/softmax_attention.h"

namespace fulmen::cuda {

inline constexpr std::int64_t plain_attention_width = 256;  // of keys and of values, at most

void softmax_attention_forward_plain(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                                     const Tensor& output, const Tensor& log_sum_exp);
void softmax_attention_backward_plain(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                                      const SoftmaxAttentionGradients& gradients);

// to += from, both [batch, length, heads, width] with unit inner stride; `to` in the accumulation dtype.
void add_narrow_heads(const Execution& execution, const Tensor& from, const Tensor& to);

}  // namespace fulmen::cuda
