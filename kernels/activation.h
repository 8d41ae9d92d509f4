// Elementwise nonlinearities that kernels apply in passing.
#pragma once

#include <cstdint>

namespace fulmen {

enum class Activation : std::uint8_t {
  none,     // x
  silu,     // x * sigmoid(x)
  sigmoid,  // 1 / (1 + exp(-x))
};

}  // namespace fulmen
