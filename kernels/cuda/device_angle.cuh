// Sine and cosine of angles that may be many turns, on the device.
#pragma once

#include <type_traits>

namespace fulmen::cuda {

template <class A>
struct SineCosine {
  A sine, cosine;
};

// The angle is reduced modulo 2 pi in fp64, in two parts, before fp32 would lose the phase.
template <class A>
__device__ SineCosine<A> sine_cosine(double angle) {
  SineCosine<A> result;
  if constexpr (std::is_same_v<A, double>) {
    sincos(angle, &result.sine, &result.cosine);
  } else {
    constexpr double two_pi = 6.283185307179586, two_pi_rest = 2.4492935982947064e-16;
    const double turns = rint(angle * (1.0 / two_pi));
    const double rest = fma(-turns, two_pi_rest, fma(-turns, two_pi, angle));
    sincosf(static_cast<float>(rest), &result.sine, &result.cosine);
  }
  return result;
}

}  // namespace fulmen::cuda
