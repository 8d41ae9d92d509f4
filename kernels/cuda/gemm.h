// Matrix products on a GPU, through cuBLASLt. See kernels/gemm.h.
#pragma once

#include "kernels/gemm.h"

namespace fulmen::cuda {

// Any of the GPU's dtypes; c may be wider than a and b (fp32 gradients of bf16 products).
void gemm(const Execution& execution, const Tensor& a, const Tensor& b, const Tensor& c, const GemmOptions& options);

}  // namespace fulmen::cuda
