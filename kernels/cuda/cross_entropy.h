// Cross entropy over a split vocabulary, on a GPU. See kernels/cross_entropy.h.
#pragma once

#include "framework/execution.h"

namespace fulmen::cuda {

void cross_entropy_local(const Execution& execution, const Tensor& logits, const Tensor& targets, std::int64_t first,
                         std::int64_t valid, const Tensor& maximum, const Tensor& exp_sum, const Tensor& target_logit);
void cross_entropy_rescale(const Execution& execution, const Tensor& local_maximum, const Tensor& global_maximum,
                           const Tensor& exp_sum);
void cross_entropy_losses(const Execution& execution, const Tensor& maximum, const Tensor& exp_sum,
                          const Tensor& target_logit, const Tensor& weights, const Tensor& losses);
void cross_entropy_backward(const Execution& execution, const Tensor& logits, const Tensor& targets,
                            const Tensor& weights, std::int64_t first, std::int64_t valid, const Tensor& maximum,
                            const Tensor& exp_sum, const Tensor& scale, const Tensor& d_logits);
// False, and nothing done, where a block cannot hold a row.
bool cross_entropy(const Execution& execution, const Tensor& logits, const Tensor& targets, const Tensor& weights,
                   std::int64_t valid, const Tensor& scale, const Tensor& losses, const Tensor& d_logits);

}  // namespace fulmen::cuda
