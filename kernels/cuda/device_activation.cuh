// Activations and their derivatives on the device, to 1e-6 relative in fp32.
#pragma once

#include "framework/error.h"
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

// GELU in its tanh form is x sigmoid(2 u), u = gelu_slope (x + gelu_cubic x^3).
inline constexpr double gelu_slope = 0.79788456080286535588;  // sqrt(2 / pi)
inline constexpr double gelu_cubic = 0.044715;

template <class T>
__device__ __forceinline__ Sigmoid<T> gelu_sigmoid(T x) {
  return sigmoid(T(2.0 * gelu_slope) * (x + T(gelu_cubic) * x * x * x));
}

template <Activation activation, class T>
__device__ __forceinline__ T activate(T x) {
  if constexpr (activation == Activation::silu) return x * sigmoid(x).value;
  if constexpr (activation == Activation::sigmoid) return sigmoid(x).value;
  if constexpr (activation == Activation::gelu_tanh) return x * gelu_sigmoid(x).value;
  if constexpr (activation == Activation::squared_relu) return (x < T(0) ? T(0) : x * x);
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
  } else if constexpr (activation == Activation::squared_relu) {
    const T above = x < T(0) ? T(0) : x;  // NaN stays NaN
    return {above * above, T(2) * above};
  } else if constexpr (activation == Activation::gelu_tanh) {
    const Sigmoid<T> s = gelu_sigmoid(x);
    const T slope = T(2.0 * gelu_slope) * (T(1) + T(3.0 * gelu_cubic) * x * x);
    return {x * s.value, s.value + x * s.value * s.complement * slope};
  } else {
    const Sigmoid<T> s = sigmoid(x);
    if constexpr (activation == Activation::sigmoid) return {s.value, s.value * s.complement};
    const T value = x * s.value;
    return {value, s.value + value * s.complement};
  }
}

// A gate's activation, known at compile time or chosen at run time. With the choice at run time every thread takes the
// same branch, and there are fewer kernels.
template <Activation activation>
struct FixedGate {
  template <class A>
  __device__ __forceinline__ A value(A x) const {
    return activate<activation>(x);
  }
  template <class A>
  __device__ __forceinline__ Activated<A> with_derivative(A x) const {
    return activate_with_derivative<activation>(x);
  }
};

struct RuntimeGate {
  Activation activation;

  template <class A>
  __device__ __forceinline__ A value(A x) const {
    if (activation == Activation::none) return x;
    const A s = sigmoid(x).value;
    return activation == Activation::silu ? x * s : s;
  }
  template <class A>
  __device__ __forceinline__ Activated<A> with_derivative(A x) const {
    if (activation == Activation::none) return {x, A(1)};
    if (activation == Activation::silu) return activate_with_derivative<Activation::silu>(x);
    return activate_with_derivative<Activation::sigmoid>(x);
  }
};

// Calls f with the activation as a compile-time constant: f.template operator()<activation>(). For gates.
template <class F>
void dispatch_activation(Activation activation, F&& f) {
  FULMEN_CHECK(is_gate_activation(activation), "activation {} is none of a gate", static_cast<int>(activation));
  if (activation == Activation::silu) return f.template operator()<Activation::silu>();
  if (activation == Activation::sigmoid) return f.template operator()<Activation::sigmoid>();
  f.template operator()<Activation::none>();
}

// The same for all of them.
template <class F>
void dispatch_every_activation(Activation activation, F&& f) {
  if (activation == Activation::gelu_tanh) return f.template operator()<Activation::gelu_tanh>();
  if (activation == Activation::squared_relu) return f.template operator()<Activation::squared_relu>();
  dispatch_activation(activation, f);
}

}  // namespace fulmen::cuda
