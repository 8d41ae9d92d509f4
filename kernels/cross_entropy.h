// Cross entropy over a vocabulary that may be split over tensor ranks, in two steps with the ranks' combination
// between:
//   loss_t = log(sum_j exp(l_tj)) - l_t,target
// The model calls these on one chunk of tokens at a time, so that the logits of a whole batch never exist.
#pragma once

#include "framework/execution.h"
#include "kernels/backends.h"

namespace fulmen {

// Local part. logits [tokens, columns] hold vocabulary columns [first, first + valid); columns past `valid` are padding
// and count as minus infinity. targets int32 [tokens].
//   maximum [tokens] = max over valid columns (minus infinity when valid = 0)
//   exp_sum [tokens] = sum of exp(l - maximum) over valid columns
//   target_logit [tokens] = l at the target if it is among these columns, else 0
// The three are in the accumulation dtype.
void cross_entropy_local(const Execution& execution, const Tensor& logits, const Tensor& targets, std::int64_t first,
                         std::int64_t valid, const Tensor& maximum, const Tensor& exp_sum, const Tensor& target_logit);
FULMEN_BACKENDS(cross_entropy_local);

// exp_sum *= exp(local_maximum - global_maximum): what makes the ranks' sums addable.
void cross_entropy_rescale(const Execution& execution, const Tensor& local_maximum, const Tensor& global_maximum,
                           const Tensor& exp_sum);
FULMEN_BACKENDS(cross_entropy_rescale);

// losses [tokens], fp64: weights * (log(exp_sum) + maximum - target_logit). weights fp32 [tokens] (0 masks a target:
// its loss is exactly 0 whatever its logits).
void cross_entropy_losses(const Execution& execution, const Tensor& maximum, const Tensor& exp_sum,
                          const Tensor& target_logit, const Tensor& weights, const Tensor& losses);
FULMEN_BACKENDS(cross_entropy_losses);

// d_logits = scale[0] * weights * (exp(l - maximum) / exp_sum - [column is the target]); 0 in padded columns and in
// rows of weight 0. d_logits may alias logits. scale fp64 [1] lies in device memory, so that a captured step can be
// replayed.
void cross_entropy_backward(const Execution& execution, const Tensor& logits, const Tensor& targets,
                            const Tensor& weights, std::int64_t first, std::int64_t valid, const Tensor& maximum,
                            const Tensor& exp_sum, const Tensor& scale, const Tensor& d_logits);
FULMEN_BACKENDS(cross_entropy_backward);

// For a rank that has the whole vocabulary: the losses of cross_entropy_losses and the gradient of
// cross_entropy_backward together. So a GPU reads the logits once. d_logits may alias logits; null: the losses alone,
// the same to the bit as where the gradient takes the place of the logits.
void cross_entropy(const Execution& execution, const Tensor& logits, const Tensor& targets, const Tensor& weights,
                   std::int64_t valid, const Tensor& scale, const Tensor& losses, const Tensor& d_logits);

}  // namespace fulmen
