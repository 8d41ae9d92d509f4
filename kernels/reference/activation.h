// Activations by their definitions, in double precision.
#pragma once

#include <cmath>
#include <numbers>

#include "kernels/activation.h"

namespace fulmen::reference {

inline double gelu_argument(double x) { return std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x); }

inline double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::silu: return x / (1.0 + std::exp(-x));
    case Activation::sigmoid: return 1.0 / (1.0 + std::exp(-x));
    case Activation::gelu_tanh: return 0.5 * x * (1.0 + std::tanh(gelu_argument(x)));
    case Activation::squared_relu: return x > 0 ? x * x : 0.0;
  }
  return x;
}

inline double activation_derivative(Activation activation, double x) {
  const double s = 1.0 / (1.0 + std::exp(-x));
  switch (activation) {
    case Activation::none: return 1.0;
    case Activation::silu: return s * (1.0 + x * (1.0 - s));
    case Activation::sigmoid: return s * (1.0 - s);
    case Activation::gelu_tanh: {
      const double t = std::tanh(gelu_argument(x));
      const double slope = std::sqrt(2.0 / std::numbers::pi) * (1.0 + 3.0 * 0.044715 * x * x);
      return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope;
    }
    case Activation::squared_relu: return x > 0 ? 2.0 * x : 0.0;
  }
  return 1.0;
}

}  // namespace fulmen::reference
