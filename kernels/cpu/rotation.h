// Rotary position embedding, on the CPU. See kernels/rotation.h.
#pragma once

#include "kernels/rotation.h"

namespace fulmen::cpu {

void rotate(const Execution& execution, const fulmen::Rotation& rotation, const Tensor& positions, bool inverse,
            const Tensor& x);

}  // namespace fulmen::cpu
