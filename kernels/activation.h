// Elementwise nonlinearities that kernels apply in passing.
#pragma once

#include <cstdint>

namespace fulmen {

enum class Activation : std::uint8_t {
  none,          // x
  silu,          // x * sigmoid(x)
  sigmoid,       // 1 / (1 + exp(-x))
  gelu_tanh,     // x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))   (GPT-2's form of GELU)
  squared_relu,  // max(x, 0)^2
};

// Whether the gates of gated linear units, gated norms and linear attention know it. activation_function.h has all.
constexpr bool is_gate_activation(Activation activation) { return activation <= Activation::sigmoid; }

}  // namespace fulmen
