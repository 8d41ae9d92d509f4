// Activations and their derivatives on the device, to 1e-6 relative in fp32.
#pragma once

#include "kernels/activation.h"

namespace fulmen::cuda {

// 2^x, to 2 units in the last place; results below the normal numbers are zero. NaN stays NaN.
__device__ __forceinline__ float exponential2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float exponential(float x) { return exponential2(x * 1.44269504088896341f); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

__device__ __forceinline__ float reciprocal(float x) { return __fdividef(1.0f, x); }
__device__ __forceinline__ double reciprocal(double x) { return 1.0 / x; }

// sigmoid(x) and 1 - sigmoid(x), neither by subtraction. The clamp keeps the exponential finite; NaN passes it.
template <class T>
struct Sigmoid {
  T value, complement;
};

template <class T>
__device__ __forceinline__ Sigmoid<T> sigmoid(T x) {
  constexpr T limit = sizeof(T) == sizeof(float) ? T(87) : T(700);
  const T e = exponential(x < -limit ? limit : -x);
  const T value = reciprocal(T(1) + e);
  return {value, e * value};
}

template <Activation activation, class T>
__device__ __forceinline__ T activate(T x) {
  if constexpr (activation == Activation::silu) return x * sigmoid(x).value;
  if constexpr (activation == Activation::sigmoid) return sigmoid(x).value;
  return x;
}

// An activation's value and its derivative.
template <class T>
struct Activated {
  T value, derivative;
};

template <Activation activation, class T>
__device__ __forceinline__ Activated<T> activate_with_derivative(T x) {
  if constexpr (activation == Activation::none) {
    return {x, T(1)};
  } else {
    const Sigmoid<T> s = sigmoid(x);
    if constexpr (activation == Activation::sigmoid) return {s.value, s.value * s.complement};
    const T value = x * s.value;
    return {value, s.value + value * s.complement};
  }
}

// Calls f with the activation as a compile-time constant: f.template operator()<activation>().
template <class F>
void dispatch_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::none: return f.template operator()<Activation::none>();
    case Activation::silu: return f.template operator()<Activation::silu>();
    case Activation::sigmoid: return f.template operator()<Activation::sigmoid>();
  }
}

}  // namespace fulmen::cuda
