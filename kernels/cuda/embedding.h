// Token embedding, on a GPU. See kernels/embedding.h.
#pragma once

#include "kernels/embedding.h"

namespace fulmen::cuda {

void embedding_forward(const Execution& execution, const Tensor& tokens, const Tensor& weight, std::int64_t first,
                       double scale, const Tensor& out);
void embedding_backward(const Execution& execution, const Tensor& tokens, const TokenOrder& order, const Tensor& d_out,
                        std::int64_t first, double scale, const Tensor& d_weight);

}  // namespace fulmen::cuda
