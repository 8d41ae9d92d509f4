// SimpleRMSNorm on the CPU: a row is read once from memory, its second pass finds it in the cache.
#include "kernels/cpu/norm.h"

#include <cmath>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

namespace fulmen::cpu {
namespace {

// A row of a matrix, whatever its row stride.
template <class T>
T* row_of(const Tensor& x, std::int64_t row) {
  return x.as<T>() + row * x.stride(0);
}

template <class T>
FULMEN_VECTORIZED T sum_of_squares(const T* x, std::int64_t width) {
  T squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t j = 0; j < width; ++j) squares += x[j] * x[j];
  return squares;
}

template <class T>
FULMEN_VECTORIZED T add_and_square(const T* residual, const T* branch, T* sum, std::int64_t width) {
  T squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t j = 0; j < width; ++j) {
    const T x = residual[j] + branch[j];
    sum[j] = x;
    squares += x * x;
  }
  return squares;
}

template <class T>
FULMEN_VECTORIZED void multiply_row(const T* x, T factor, T* out, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) out[j] = x[j] * factor;
}

template <class T>
FULMEN_VECTORIZED T dot_row(const T* a, const T* b, std::int64_t width) {
  T dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t j = 0; j < width; ++j) dot += a[j] * b[j];
  return dot;
}

template <class T>
FULMEN_VECTORIZED T sum_row(const T* x, std::int64_t width) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < width; ++j) sum += x[j];
  return sum;
}

// d_sum = d_residual + inverse_rms * d_normed - coefficient * sum. d_residual may be null.
template <class T>
FULMEN_VECTORIZED void norm_gradient_row(const T* d_normed, const T* sum, const T* d_residual, T inverse_rms,
                                         T coefficient, T* d_sum, std::int64_t width) {
  if (d_residual == nullptr) {
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) d_sum[j] = inverse_rms * d_normed[j] - coefficient * sum[j];
  } else {
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j)
      d_sum[j] = d_residual[j] + (inverse_rms * d_normed[j] - coefficient * sum[j]);
  }
}

template <Activation activation, class T>
FULMEN_VECTORIZED void gate_row(const T* x, const T* gate, T inverse_rms, T* y, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) y[j] = activate<activation>(gate[j]) * (x[j] * inverse_rms);
}

template <Activation activation, class T>
FULMEN_VECTORIZED T gated_dot_row(const T* d_y, const T* x, const T* gate, std::int64_t width) {
  T dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t j = 0; j < width; ++j) dot += d_y[j] * activate<activation>(gate[j]) * x[j];
  return dot;
}

// With n = x * inverse_rms: d_x = inverse_rms * (d_y act(gate) - n mean_dot), d_gate = d_y n act'(gate).
template <Activation activation, class T>
FULMEN_VECTORIZED void gated_norm_gradient_row(const T* d_y, const T* x, const T* gate, T inverse_rms, T mean_dot,
                                               T* d_x, T* d_gate, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) {
    const T normed = x[j] * inverse_rms;
    const T upstream = d_y[j];
    const Activated<T> activated = activate_with_derivative<activation>(gate[j]);
    d_x[j] = inverse_rms * (upstream * activated.value - normed * mean_dot);
    d_gate[j] = upstream * normed * activated.derivative;
  }
}

template <class T>
T inverse_root(T square_sum, std::int64_t width, double epsilon) {
  return T(1) / std::sqrt(square_sum / static_cast<T>(width) + static_cast<T>(epsilon));
}

}  // namespace

void residual_norm_forward(const Execution&, const Tensor& residual, const Tensor& branch, double epsilon,
                           const Tensor& sum, const Tensor& normed, const Tensor& inverse_rms) {
  const std::int64_t width = residual.size(1);
  dispatch_fp32_fp64(residual.dtype(), [&]<class T>(T) {
    parallel_rows(residual.size(0), width, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        const T* total = row_of<T>(residual, row);
        T squares = 0;
        if (branch) {
          T* const sum_row = row_of<T>(sum, row);
          squares = add_and_square(total, row_of<T>(branch, row), sum_row, width);
          total = sum_row;
        } else {
          squares = sum_of_squares(total, width);
        }
        const T inverse = inverse_root(squares, width, epsilon);
        inverse_rms.as<T>()[row] = inverse;
        multiply_row(total, inverse, row_of<T>(normed, row), width);
      }
    });
  });
}

void residual_norm_backward(const Execution&, const Tensor& d_normed, const Tensor& sum, const Tensor& inverse_rms,
                            const Tensor& d_residual, const Tensor& d_sum) {
  const std::int64_t width = sum.size(1);
  dispatch_fp32_fp64(sum.dtype(), [&]<class T>(T) {
    parallel_rows(sum.size(0), width, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        const T inverse = inverse_rms.as<T>()[row];
        const T dot = dot_row(row_of<T>(d_normed, row), row_of<T>(sum, row), width) * inverse;
        norm_gradient_row(row_of<T>(d_normed, row), row_of<T>(sum, row),
                          d_residual ? row_of<T>(d_residual, row) : static_cast<const T*>(nullptr), inverse,
                          inverse * inverse * dot / static_cast<T>(width), row_of<T>(d_sum, row), width);
      }
    });
  });
}

void norm_apply(const Execution&, const Tensor& sum, const Tensor& inverse_rms, const Tensor& normed) {
  const std::int64_t width = sum.size(1);
  dispatch_fp32_fp64(sum.dtype(), [&]<class T>(T) {
    parallel_rows(sum.size(0), width, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row)
        multiply_row(row_of<T>(sum, row), inverse_rms.as<T>()[row], row_of<T>(normed, row), width);
    });
  });
}

void sum_rows(const Execution&, const Tensor& values, const Tensor& row_sums) {
  const std::int64_t width = values.size(1);
  dispatch_fp32_fp64(values.dtype(), [&]<class T>(T) {
    parallel_rows(values.size(0), width, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row)
        row_sums.as<T>()[row] = sum_row(row_of<T>(values, row), width);
    });
  });
}

void gated_norm_forward(const Execution&, const Tensor& x, const Tensor& square_sum, std::int64_t width, double epsilon,
                        const Tensor& gate, Activation gate_activation, const Tensor& y, const Tensor& inverse_rms) {
  const std::int64_t local_width = x.size(1);
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    dispatch_activation(gate_activation, [&]<Activation activation>() {
      parallel_rows(x.size(0), local_width, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t row = first; row < last; ++row) {
          const T inverse = inverse_root(square_sum.as<T>()[row], width, epsilon);
          inverse_rms.as<T>()[row] = inverse;
          gate_row<activation>(row_of<T>(x, row), row_of<T>(gate, row), inverse, row_of<T>(y, row), local_width);
        }
      });
    });
  });
}

void gated_norm_backward_dot(const Execution&, const Tensor& d_y, const Tensor& x, const Tensor& inverse_rms,
                             const Tensor& gate, Activation gate_activation, const Tensor& dot) {
  const std::int64_t local_width = x.size(1);
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    dispatch_activation(gate_activation, [&]<Activation activation>() {
      parallel_rows(x.size(0), local_width, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t row = first; row < last; ++row) {
          const T sum =
              gated_dot_row<activation>(row_of<T>(d_y, row), row_of<T>(x, row), row_of<T>(gate, row), local_width);
          dot.as<T>()[row] = inverse_rms.as<T>()[row] * sum;
        }
      });
    });
  });
}

void gated_norm_backward(const Execution&, const Tensor& d_y, const Tensor& x, const Tensor& inverse_rms,
                         const Tensor& gate, Activation gate_activation, const Tensor& dot, std::int64_t width,
                         const Tensor& d_x, const Tensor& d_gate) {
  const std::int64_t local_width = x.size(1);
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    dispatch_activation(gate_activation, [&]<Activation activation>() {
      parallel_rows(x.size(0), local_width, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t row = first; row < last; ++row)
          gated_norm_gradient_row<activation>(row_of<T>(d_y, row), row_of<T>(x, row), row_of<T>(gate, row),
                                              inverse_rms.as<T>()[row], dot.as<T>()[row] / static_cast<T>(width),
                                              row_of<T>(d_x, row), row_of<T>(d_gate, row), local_width);
      });
    });
  });
}

void gated_norm_apply(const Execution&, const Tensor& x, const Tensor& inverse_rms, const Tensor& gate,
                      Activation gate_activation, const Tensor& y) {
  const std::int64_t local_width = x.size(1);
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    dispatch_activation(gate_activation, [&]<Activation activation>() {
      parallel_rows(x.size(0), local_width, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t row = first; row < last; ++row)
          gate_row<activation>(row_of<T>(x, row), row_of<T>(gate, row), inverse_rms.as<T>()[row], row_of<T>(y, row),
                               local_width);
      });
    });
  });
}

}  // namespace fulmen::cpu
