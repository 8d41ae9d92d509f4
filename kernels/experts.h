// Mixture of experts (GShard, arXiv 2006.16668; Mixtral, arXiv 2401.04088): choosing experts for tokens, and bringing
// the tokens of an expert together and back. Nothing is dropped, and every sum has a fixed order.
#pragma once

#include "framework/execution.h"
#include "kernels/backends.h"

namespace fulmen {

// p = softmax(logits) of each row. The `chosen` largest (of equals the first) get the weights p_e / sum of the chosen
// p, all others 0. A row with a NaN has NaN for all its p, and for the weights of its first `chosen` experts: so its
// token's result is NaN. logits [tokens, experts]; probabilities, weights alike in the accumulation dtype, contiguous.
void router_forward(const Execution& execution, const Tensor& logits, std::int64_t chosen, const Tensor& probabilities,
                    const Tensor& weights);
FULMEN_BACKENDS(router_forward);
// d_logits from the gradients of probabilities and weights; either may be null. With s the sum of the chosen p:
//   d_p_e = d_probabilities_e + (d_weights_e - sum_j d_weights_j w_j) / s for chosen e,
//   d_logits_e = p_e (d_p_e - sum_j d_p_j p_j).
void router_backward(const Execution& execution, const Tensor& probabilities, const Tensor& weights,
                     const Tensor& d_probabilities, const Tensor& d_weights, const Tensor& d_logits);
FULMEN_BACKENDS(router_backward);

// Tokens sorted by the expert that has a weight other than 0 for them, and for each expert in their own order. The
// places of an expert begin at a multiple of `alignment`. Places left between experts belong to no token. So products
// of an expert's places have few different sizes, which a GPU's library prepares for once.
struct ExpertOrder {
  Tensor tokens;   // int32 [places]: the token at each place, -1 for no token
  Tensor experts;  // int32 [places]: its expert, counted from the first owned
  Tensor places;   // int32 [tokens, chosen]: the places of a token, by expert; -1 where it has fewer
  Tensor offsets;  // int64 [owned experts + 1]: where the places of each expert begin
};
// The most places that there can be.
inline std::int64_t most_expert_places(std::int64_t tokens, std::int64_t chosen, std::int64_t owned,
                                       std::int64_t alignment) {
  return tokens * chosen + owned * (alignment - 1);
}
// weights [tokens, experts], contiguous, at most `chosen` of a row other than 0. Experts [first, first + owned) count.
void order_by_expert(const Execution& execution, const Tensor& weights, std::int64_t first, std::int64_t chosen,
                     std::int64_t alignment, const ExpertOrder& order);
FULMEN_BACKENDS(order_by_expert);

// y[i] = x[tokens[i]] for the rows of y, 0 where there is no token. x [tokens, width], y [places, width], unit inner
// stride.
void gather_rows(const Execution& execution, const Tensor& x, const Tensor& tokens, const Tensor& y);
FULMEN_BACKENDS(gather_rows);
// out[t] = the sum of y at the places of t, in their order. places int32 [tokens, chosen].
void combine_rows(const Execution& execution, const Tensor& y, const Tensor& places, const Tensor& out);
FULMEN_BACKENDS(combine_rows);

// The weight that a place's token has for its expert is w. forward: x *= w of each row.
// x [places, width], unit inner stride.
void weigh_rows(const Execution& execution, const ExpertOrder& order, const Tensor& weights, std::int64_t first,
                const Tensor& x);
FULMEN_BACKENDS(weigh_rows);
// With y = w x: d_weights[token, expert] = d_y . x for every place; then d_y *= w and x *= w.
void weigh_rows_backward(const Execution& execution, const ExpertOrder& order, const Tensor& weights,
                         std::int64_t first, const Tensor& d_y, const Tensor& x, const Tensor& d_weights);
FULMEN_BACKENDS(weigh_rows_backward);

}  // namespace fulmen
