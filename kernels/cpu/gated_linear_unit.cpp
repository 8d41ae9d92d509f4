// The product of a gated linear unit, one vectorised pass per row.
#include "kernels/gated_linear_unit.h"

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

namespace fulmen::cpu {
namespace {

template <Activation activation, class T>
FULMEN_VECTORIZED void forward_row(const T* a, const T* b, T* y, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) y[j] = activate<activation>(a[j]) * b[j];
}

// y may be null.
template <Activation activation, class T>
FULMEN_VECTORIZED void backward_row(const T* d_y, const T* a, const T* b, T* d_a, T* d_b, T* y, std::int64_t width) {
  if (y == nullptr) {
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) {
      const Activated<T> activated = activate_with_derivative<activation>(a[j]);
      const T upstream = d_y[j], other = b[j];
      d_a[j] = upstream * other * activated.derivative;
      d_b[j] = upstream * activated.value;
    }
  } else {
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) {
      const Activated<T> activated = activate_with_derivative<activation>(a[j]);
      const T upstream = d_y[j], other = b[j];
      d_a[j] = upstream * other * activated.derivative;
      d_b[j] = upstream * activated.value;
      y[j] = activated.value * other;
    }
  }
}

}  // namespace

void gated_linear_unit_forward(const Execution&, const Tensor& a, const Tensor& b, Activation activation,
                               const Tensor& y) {
  dispatch_fp32_fp64(a.dtype(), [&]<class T>(T) {
    dispatch_activation(activation, [&]<Activation act>() {
      parallel_rows(a.size(0), a.size(1), [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t row = first; row < last; ++row)
          forward_row<act>(a.as<T>() + row * a.stride(0), b.as<T>() + row * b.stride(0), y.as<T>() + row * y.stride(0),
                           a.size(1));
      });
    });
  });
}

void gated_linear_unit_backward(const Execution&, const Tensor& d_y, const Tensor& a, const Tensor& b,
                                Activation activation, const Tensor& d_a, const Tensor& d_b, const Tensor& y) {
  dispatch_fp32_fp64(a.dtype(), [&]<class T>(T) {
    dispatch_activation(activation, [&]<Activation act>() {
      parallel_rows(a.size(0), a.size(1), [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t row = first; row < last; ++row)
          backward_row<act>(d_y.as<T>() + row * d_y.stride(0), a.as<T>() + row * a.stride(0),
                            b.as<T>() + row * b.stride(0), d_a.as<T>() + row * d_a.stride(0),
                            d_b.as<T>() + row * d_b.stride(0), y ? y.as<T>() + row * y.stride(0) : nullptr, a.size(1));
      });
    });
  });
}

}  // namespace fulmen::cpu
