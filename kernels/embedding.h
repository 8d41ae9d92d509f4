// Token embedding with a vocabulary that may be split over tensor ranks.
#pragma once

#include "framework/execution.h"
#include "kernels/backends.h"

namespace fulmen {

// out [tokens, width] = scale * weight[token - first] for tokens in [first, first + weight rows), else 0. Under a split
// vocabulary the outputs of the ranks are summed. tokens int32 [tokens]; weight [local rows, width].
void embedding_forward(const Execution& execution, const Tensor& tokens, const Tensor& weight, std::int64_t first,
                       double scale, const Tensor& out);
FULMEN_BACKENDS(embedding_forward);

// The positions of tokens, sorted by token, and of one token as they come (framework/stable_order.h).
struct TokenOrder {
  Tensor positions;              // int32 [tokens]
  std::int64_t distinct = 0;     // how many different tokens there are, by which the profiler counts rows
  std::int64_t longest_run = 0;  // how many positions the most frequent token has, at most
};

// d_weight[token - first] += scale * d_out. The tokens alone decide the order of each row's terms, so the result is
// reproducible. On the CPU it is the order of the positions.
void embedding_backward(const Execution& execution, const Tensor& tokens, const TokenOrder& order, const Tensor& d_out,
                        std::int64_t first, double scale, const Tensor& d_weight);
FULMEN_BACKENDS(embedding_backward);

}  // namespace fulmen
