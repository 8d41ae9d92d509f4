// Arithmetic on single elements in the plain path of linear attention and its decoding step: activations, LRPE's
// rotation, powers of the decay.
#pragma once

#include "kernels/cuda/device_activation.cuh"
#include "kernels/cuda/device_angle.cuh"
#include "kernels/cuda/device_vector.cuh"

namespace fulmen::cuda {

// A strided tensor [batch, length, heads, width] of unit inner stride, as a kernel takes it.
template <class T>
struct HeadsView {
  HeadsView() = default;
  explicit HeadsView(const Tensor& x)
      : data(pointer_to<T>(x)), row_stride(x.stride(0)), token_stride(x.stride(1)), head_stride(x.stride(2)) {}

  __device__ T* at(std::int64_t row, std::int64_t token, std::int64_t head) const {
    return data + row * row_stride + token * token_stride + head * head_stride;
  }

  T* data = nullptr;
  std::int64_t row_stride = 0, token_stride = 0, head_stride = 0;
};

// The rotation of queries and keys: angle = position * theta. Null theta for none.
struct Rotation {
  Rotation(const Tensor& theta, const Tensor& positions) {
    if (!theta) return;
    theta_data = theta.as<double>();
    positions_data = positions.as<std::int64_t>();
    row_stride = positions.stride(0), token_stride = positions.stride(1);
  }

  __device__ double position(std::int64_t row, std::int64_t token) const {
    return static_cast<double>(positions_data[row * row_stride + token * token_stride]);
  }

  const double* theta_data = nullptr;            // [heads, key width]
  const std::int64_t* positions_data = nullptr;  // [batch, length]
  std::int64_t row_stride = 0, token_stride = 0;
};

// Activations chosen at run time: every thread takes the same branch, and there are fewer kernels.
template <class A>
__device__ A activated(Activation activation, A x) {
  if (activation == Activation::silu) return activate<Activation::silu>(x);
  if (activation == Activation::sigmoid) return activate<Activation::sigmoid>(x);
  return x;
}

template <class A>
__device__ A activation_derivative(Activation activation, A x) {
  if (activation == Activation::silu) return activate_with_derivative<Activation::silu>(x).derivative;
  if (activation == Activation::sigmoid) return activate_with_derivative<Activation::sigmoid>(x).derivative;
  return A(1);
}

// exp(-slope)^steps for steps >= 0, which never exceeds 1.
template <class A>
__device__ A decay_power(double slope, int steps) {
  return static_cast<A>(exp(-slope * static_cast<double>(steps)));
}

}  // namespace fulmen::cuda
