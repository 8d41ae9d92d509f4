// Matrix products on the CPU: oneDNN in fp32, OpenBLAS in fp64. See kernels/gemm.h.
#pragma once

#include "kernels/gemm.h"

namespace fulmen::cpu {

// Not to be called inside a parallel region: both libraries bring threads of their own.
void gemm(const Execution& execution, const Tensor& a, const Tensor& b, const Tensor& c, const GemmOptions& options);

}  // namespace fulmen::cpu
