// Elementary functions without branches or calls, so that loops over them vectorise: exp, the sigmoid family, sine and
// cosine. float is good to 1.5e-7, double to 1e-15, relative.
#pragma once

#include <bit>
#include <cstdint>

#include "framework/error.h"
#include "kernels/activation.h"
#include "kernels/cpu/vectorize.h"

namespace fulmen::cpu {

template <class T>
FULMEN_INLINE T clamp_below(T x, T low) {
  return x < low ? low : x;
}  // NaN stays NaN
template <class T>
FULMEN_INLINE T clamp_above(T x, T high) {
  return x > high ? high : x;
}

// exp(x) = 2^n exp(r), |r| <= ln(2) / 2, for -88 <= x <= 88.3; zero at the lower end.
// Coefficients: S. Moshier, Cephes, expf.
FULMEN_INLINE float exponential_in_range(float x) {
  constexpr float round_to_integer = 12582912.0f;  // 1.5 * 2^23: adding it leaves n in the low bits
  const float shifted = x * 1.44269504088896341f + round_to_integer;
  const float n = shifted - round_to_integer;
  float r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const std::int32_t exponent = std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(round_to_integer);
  return p * std::bit_cast<float>((exponent + 127) << 23);
}

// As above for -709.1 <= x <= 709. The Taylor series to r^13 leaves 4e-18.
FULMEN_INLINE double exponential_in_range(double x) {
  constexpr double round_to_integer = 6755399441055744.0;  // 1.5 * 2^52
  const double shifted = x * 1.4426950408889634074 + round_to_integer;
  const double n = shifted - round_to_integer;
  double r = x - n * 6.93147180369123816490e-01;
  r = r - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * (r * r) + r + 1.0;
  const std::int64_t exponent = std::bit_cast<std::int64_t>(shifted) - std::bit_cast<std::int64_t>(round_to_integer);
  return p * std::bit_cast<double>((exponent + 1023) << 52);
}

// exp(x) for x up to 88.3 (float) or 709 (double); zero where it would not be a normal number.
FULMEN_INLINE float exponential(float x) { return exponential_in_range(clamp_below(x, -88.0f)); }
FULMEN_INLINE double exponential(double x) { return exponential_in_range(clamp_below(x, -709.1)); }

// sigmoid(x) and 1 - sigmoid(x), neither by subtraction.
template <class T>
struct Sigmoid {
  T value, complement;
};

template <class T>
FULMEN_INLINE Sigmoid<T> sigmoid(T x) {
  constexpr T limit = sizeof(T) == sizeof(float) ? T(87) : T(700);
  const T e = exponential_in_range(-clamp_above(clamp_below(x, -limit), limit));
  const T value = T(1) / (T(1) + e);
  return {value, e * value};
}

// GELU in its tanh form is x sigmoid(2 u), u = gelu_slope (x + gelu_cubic x^3).
inline constexpr double gelu_slope = 0.79788456080286535588;  // sqrt(2 / pi)
inline constexpr double gelu_cubic = 0.044715;

template <class T>
FULMEN_INLINE Sigmoid<T> gelu_sigmoid(T x) {
  return sigmoid(T(2.0 * gelu_slope) * (x + T(gelu_cubic) * x * x * x));
}

template <Activation activation, class T>
FULMEN_INLINE T activate(T x) {
  if constexpr (activation == Activation::silu) return x * sigmoid(x).value;
  if constexpr (activation == Activation::sigmoid) return sigmoid(x).value;
  if constexpr (activation == Activation::gelu_tanh) return x * gelu_sigmoid(x).value;
  if constexpr (activation == Activation::squared_relu) return clamp_below(x, T(0)) * clamp_below(x, T(0));
  return x;
}

// An activation's value and its derivative.
template <class T>
struct Activated {
  T value, derivative;
};

template <Activation activation, class T>
FULMEN_INLINE Activated<T> activate_with_derivative(T x) {
  if constexpr (activation == Activation::none) {
    return {x, T(1)};
  } else if constexpr (activation == Activation::squared_relu) {
    const T above = clamp_below(x, T(0));
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

// Angles that sine_cosine reduces exactly; larger angles go to the C library.
inline constexpr double largest_angle = 1e6;

struct SineCosine {
  double sine, cosine;
};

// For |x| <= largest_angle. Reduction by pi/2 in three parts and the kernels of fdlibm (Sun Microsystems, 1993).
FULMEN_INLINE SineCosine sine_cosine(double x) {
  constexpr double round_to_integer = 6755399441055744.0;
  const double shifted = x * 6.36619772367581382433e-01 + round_to_integer;
  const double n = shifted - round_to_integer;
  double r = x - n * 1.57079632673412561417e+00;
  r = r - n * 6.07710050630396597660e-11;
  r = r - n * 2.02226624879595063154e-21;
  const double z = r * r;
  double s = 1.58969099521155010221e-10;
  s = s * z - 2.50507602534068634195e-08;
  s = s * z + 2.75573137070700676789e-06;
  s = s * z - 1.98412698298579493134e-04;
  s = s * z + 8.33333333332248946124e-03;
  s = s * z - 1.66666666666666324348e-01;
  s = r + r * z * s;
  double c = -1.13596475577881948265e-11;
  c = c * z + 2.08757232129817482790e-09;
  c = c * z - 2.75573143513906633035e-07;
  c = c * z + 2.48015872894767294178e-05;
  c = c * z - 1.38888888888741095749e-03;
  c = c * z + 4.16666666666666019037e-02;
  c = 1.0 - (0.5 * z - z * z * c);
  const std::int64_t quadrant = std::bit_cast<std::int64_t>(shifted) - std::bit_cast<std::int64_t>(round_to_integer);
  const bool swapped = (quadrant & 1) != 0;
  const double sine = swapped ? c : s;
  const double cosine = swapped ? s : c;
  return {(quadrant & 2) != 0 ? -sine : sine, ((quadrant + 1) & 2) != 0 ? -cosine : cosine};
}

}  // namespace fulmen::cpu
