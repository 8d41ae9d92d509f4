// Products of narrower factors kept in fp64, on a GPU.
#pragma once

#include "framework/execution.h"

namespace fulmen::cuda {

// wide = narrow, or wide += narrow. narrow fp32 [m, n], contiguous; wide fp64 [m, n], unit inner stride, any row
// stride.
void widen(const Execution& execution, const Tensor& narrow, bool accumulate, const Tensor& wide);

}  // namespace fulmen::cuda
