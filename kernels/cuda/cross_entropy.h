// The cross entropy in one pass, on a GPU.
#pragma once

#include "kernels/cross_entropy.h"

namespace fulmen::cuda {

// As fulmen::cross_entropy. False, and nothing done, where a block cannot hold a row.
bool cross_entropy(const Execution& execution, const Tensor& logits, const Tensor& targets, const Tensor& weights,
                   std::int64_t valid, const Tensor& scale, const Tensor& losses, const Tensor& d_logits);

}  // namespace fulmen::cuda
