// Rotary position embedding, on a GPU. See kernels/rotation.h.
#pragma once

#include "kernels/rotation.h"

namespace fulmen::cuda {

void rotate(const Execution& execution, const fulmen::Rotation& rotation, const Tensor& positions, bool inverse,
            const Tensor& x);

}  // namespace fulmen::cuda
