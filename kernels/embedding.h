// Token embedding with a vocabulary that may be split over tensor ranks.
#pragma once

#include "framework/execution.h"

namespace fulmen {

// out [tokens, width] = scale * weight[token - first] for tokens in [first, first + weight rows), else 0: under a split
// vocabulary the outputs of the ranks are summed. tokens int32 [tokens]; weight [local rows, width].
void embedding_forward(const Execution& execution, const Tensor& tokens, const Tensor& weight, std::int64_t first,
                       double scale, const Tensor& out);
// d_weight[token - first] += scale * d_out, in token order whatever the number of threads (so it is reproducible).
void embedding_backward(const Execution& execution, const Tensor& tokens, const Tensor& d_out, std::int64_t first,
                        double scale, const Tensor& d_weight);

}  // namespace fulmen
