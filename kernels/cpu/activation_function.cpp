// The activation after a bias, one vectorised pass per row.
#include "kernels/activation_function.h"

#include "kernels/cpu/column_sums.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

namespace fulmen::cpu {
namespace {

// bias may be null.
template <Activation activation, class T>
FULMEN_VECTORIZED void forward_row(const T* x, const T* bias, T* y, std::int64_t width) {
  if (bias == nullptr) {
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) y[j] = activate<activation>(x[j]);
  } else {
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) y[j] = activate<activation>(x[j] + bias[j]);
  }
}

// Each of the results may be null. Everything of a position is read before anything is written there. x is null for no
// activation alone.
template <Activation activation, class T>
FULMEN_VECTORIZED void backward_row(const T* d_y, const T* x, const T* bias, T* d_x, T* d_bias, T* y,
                                    std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) {
    const T upstream = d_y[j];
    const T argument = (x != nullptr ? x[j] : T(0)) + (bias != nullptr ? bias[j] : T(0));
    const Activated<T> activated = activate_with_derivative<activation>(argument);
    const T gradient = upstream * activated.derivative;
    if (d_bias != nullptr) d_bias[j] += gradient;
    if (d_x != nullptr) d_x[j] = gradient;
    if (y != nullptr) y[j] = activated.value;
  }
}

template <class T>
T* row_of(const Tensor& x, std::int64_t row) {
  return x ? x.as<T>() + row * x.stride(0) : nullptr;
}

}  // namespace

void activation_function_forward(const Execution&, const Tensor& x, const Tensor& bias, Activation activation,
                                 const Tensor& y) {
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    dispatch_every_activation(activation, [&]<Activation act>() {
      parallel_rows(x.size(0), x.size(1), [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t row = first; row < last; ++row)
          forward_row<act>(row_of<T>(x, row), bias.as<T>(), row_of<T>(y, row), x.size(1));
      });
    });
  });
}

void activation_function_backward(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& bias,
                                  Activation activation, const Tensor& d_x, const Tensor& d_bias, const Tensor& y) {
  const std::int64_t tokens = d_y.size(0), width = d_y.size(1);
  dispatch_fp32_fp64(d_y.dtype(), [&]<class T>(T) {
    dispatch_every_activation(activation, [&]<Activation act>() {
      const auto rows = [&](std::int64_t first, std::int64_t last, T* sums) {
        for (std::int64_t row = first; row < last; ++row)
          backward_row<act>(row_of<T>(d_y, row), row_of<T>(x, row), bias.as<T>(), row_of<T>(d_x, row), sums,
                            row_of<T>(y, row), width);
      };
      if (d_bias)
        add_column_sums<T>(execution, tokens, width, {d_bias}, rows);
      else
        parallel_rows(tokens, width, [&](std::int64_t first, std::int64_t last) { rows(first, last, nullptr); });
    });
  });
}

}  // namespace fulmen::cpu
