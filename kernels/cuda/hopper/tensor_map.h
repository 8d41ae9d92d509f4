// Tensor maps: how the copy engine finds tiles of a tensor.
#pragma once

#include <cuda.h>

#include "framework/tensor.h"

namespace fulmen::cuda::hopper {

// Whether the copy engine can reach a bf16 tensor [batch, length, heads, width]. It wants unit inner stride, and
// address and other strides in multiples of 16 bytes.
bool can_be_mapped(const Tensor& x);

// Boxes of 64 tokens x 64 columns of one head, swizzled in 128 bytes. Reads past the length give zeros, writes there
// nothing. Throws InternalError when the driver refuses.
CUtensorMap map_heads(const Tensor& x);

}  // namespace fulmen::cuda::hopper
