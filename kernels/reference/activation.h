// Activations by their definitions, in double precision.
#pragma once

#include <cmath>

#include "kernels/activation.h"

namespace fulmen::reference {

inline double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::silu: return x / (1.0 + std::exp(-x));
    case Activation::sigmoid: return 1.0 / (1.0 + std::exp(-x));
  }
  return x;
}

inline double activation_derivative(Activation activation, double x) {
  const double s = 1.0 / (1.0 + std::exp(-x));
  switch (activation) {
    case Activation::none: return 1.0;
    case Activation::silu: return s * (1.0 + x * (1.0 - s));
    case Activation::sigmoid: return s * (1.0 - s);
  }
  return 1.0;
}

}  // namespace fulmen::reference
