// The loss that keeps experts equally busy (Switch Transformers, arXiv 2101.03961, equation 4), from sums over samples.
#pragma once

#include "framework/execution.h"
#include "kernels/backends.h"

namespace fulmen {

// weights, probabilities [batch * length, experts], contiguous, accumulation dtype, as router_forward writes them.
// sums [batch, 2 experts + 1], fp64: of each sample's tokens here, how often each expert was chosen, its probabilities
// summed, and the tokens.
void router_loss_sums(const Execution& execution, const Tensor& weights, const Tensor& probabilities,
                      const Tensor& sums);
FULMEN_BACKENDS(router_loss_sums);
// loss [1], fp64: += scale * the sum over the samples of experts * sum_e chosen_e / tokens * probabilities_e / tokens.
void router_loss_add(const Execution& execution, const Tensor& sums, double scale, const Tensor& loss);
FULMEN_BACKENDS(router_loss_add);
// d_probabilities = scale * experts * chosen_e / tokens^2 of the token's sample.
void router_loss_backward(const Execution& execution, const Tensor& sums, double scale, const Tensor& d_probabilities);
FULMEN_BACKENDS(router_loss_backward);

}  // namespace fulmen
