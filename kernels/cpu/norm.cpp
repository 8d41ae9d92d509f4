// SimpleRMSNorm on the CPU: a row is read once from memory, its second pass finds it in the cache.
#include "kernels/norm.h"

#include <cmath>

#include "kernels/cpu/column_sums.h"
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

// d_sum = d_residual + inverse_rms * d_normed - coefficient * sum, and normed = sum * inverse_rms.
template <bool past_the_norm, bool again, class T>
FULMEN_VECTORIZED void norm_gradient_row(const T* d_normed, const T* sum, const T* d_residual, T inverse_rms,
                                         T coefficient, T* d_sum, T* normed, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) {
    const T total = sum[j], gradient = inverse_rms * d_normed[j] - coefficient * total;
    d_sum[j] = past_the_norm ? d_residual[j] + gradient : gradient;
    if constexpr (again) normed[j] = total * inverse_rms;
  }
}

template <Activation activation, bool gained, class T>
FULMEN_VECTORIZED void gate_row(const T* x, const T* gate, const T* gain, T inverse_rms, T* y, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) {
    const T value = activate<activation>(gate[j]) * (x[j] * inverse_rms);
    y[j] = gained ? value * gain[j] : value;
  }
}

template <Activation activation, bool gained, class T>
FULMEN_VECTORIZED T gated_dot_row(const T* d_y, const T* x, const T* gate, const T* gain, std::int64_t width) {
  T dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t j = 0; j < width; ++j) {
    const T upstream = gained ? d_y[j] * gain[j] : d_y[j];
    dot += upstream * activate<activation>(gate[j]) * x[j];
  }
  return dot;
}

// With n = x * inverse_rms: d_x = inverse_rms * (d_y act(gate) gain - n mean_dot), d_gate = d_y n gain act'(gate),
// d_gain += d_y act(gate) n, y = act(gate) n gain.
template <Activation activation, bool again, bool gained, class T>
FULMEN_VECTORIZED void gated_norm_gradient_row(const T* d_y, const T* x, const T* gate, const T* gain, T inverse_rms,
                                               T mean_dot, T* d_x, T* d_gate, T* y, T* d_gain, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) {
    const T normed = x[j] * inverse_rms;
    const T upstream = gained ? d_y[j] * gain[j] : d_y[j];
    const Activated<T> activated = activate_with_derivative<activation>(gate[j]);
    if constexpr (gained) d_gain[j] += d_y[j] * activated.value * normed;
    d_x[j] = inverse_rms * (upstream * activated.value - normed * mean_dot);
    d_gate[j] = upstream * normed * activated.derivative;
    if constexpr (again) y[j] = gained ? activated.value * normed * gain[j] : activated.value * normed;
  }
}

// Calls f with each flag as a compile-time constant.
template <class F>
void with_flags(bool first, bool second, F&& f) {
  if (first)
    second ? f.template operator()<true, true>() : f.template operator()<true, false>();
  else
    second ? f.template operator()<false, true>() : f.template operator()<false, false>();
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
                            const Tensor& d_residual, const Tensor& d_sum, const Tensor& normed) {
  const std::int64_t width = sum.size(1);
  dispatch_fp32_fp64(sum.dtype(), [&]<class T>(T) {
    parallel_rows(sum.size(0), width, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        const T inverse = inverse_rms.as<T>()[row];
        const T dot = dot_row(row_of<T>(d_normed, row), row_of<T>(sum, row), width) * inverse;
        const auto gradient = [&]<bool past_the_norm, bool again>() {
          norm_gradient_row<past_the_norm, again>(
              row_of<T>(d_normed, row), row_of<T>(sum, row), past_the_norm ? row_of<T>(d_residual, row) : nullptr,
              inverse, inverse * inverse * dot / static_cast<T>(width), row_of<T>(d_sum, row),
              again ? row_of<T>(normed, row) : nullptr, width);
        };
        if (d_residual && normed)
          gradient.template operator()<true, true>();
        else if (d_residual)
          gradient.template operator()<true, false>();
        else if (normed)
          gradient.template operator()<false, true>();
        else
          gradient.template operator()<false, false>();
      }
    });
  });
}

void sum_rows(const Execution&, const Tensor& values, const Tensor& row_sums) {
  const std::int64_t width = values.size(1);
  dispatch_fp32_fp64(values.dtype(), [&]<class T>(T) {
    parallel_rows(values.size(0), width, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) row_sums.as<T>()[row] = sum_row(row_of<T>(values, row), width);
    });
  });
}

void gated_norm_forward(const Execution&, const Tensor& x, const Tensor& square_sums, std::int64_t width,
                        double epsilon, const Tensor& gate, Activation gate_activation, const Tensor& y,
                        const Tensor& inverse_rms, const Tensor& gain) {
  const std::int64_t local_width = x.size(1);
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    dispatch_activation(gate_activation, [&]<Activation activation>() {
      const auto gate_rows = gain ? &gate_row<activation, true, T> : &gate_row<activation, false, T>;
      parallel_rows(x.size(0), local_width, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t row = first; row < last; ++row) {
          const T inverse = inverse_root(sum_row(row_of<T>(square_sums, row), square_sums.size(1)), width, epsilon);
          inverse_rms.as<T>()[row] = inverse;
          gate_rows(row_of<T>(x, row), row_of<T>(gate, row), gain.as<T>(), inverse, row_of<T>(y, row), local_width);
        }
      });
    });
  });
}

void gated_norm_backward_dot(const Execution&, const Tensor& d_y, const Tensor& x, const Tensor& inverse_rms,
                             const Tensor& gate, Activation gate_activation, const Tensor& dot, const Tensor& gain) {
  const std::int64_t local_width = x.size(1);
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    dispatch_activation(gate_activation, [&]<Activation activation>() {
      const auto dot_row = gain ? &gated_dot_row<activation, true, T> : &gated_dot_row<activation, false, T>;
      parallel_rows(x.size(0), local_width, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t row = first; row < last; ++row) {
          const T sum =
              dot_row(row_of<T>(d_y, row), row_of<T>(x, row), row_of<T>(gate, row), gain.as<T>(), local_width);
          dot.as<T>()[row] = inverse_rms.as<T>()[row] * sum;
        }
      });
    });
  });
}

void gated_norm_backward(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& inverse_rms,
                         const Tensor& gate, Activation gate_activation, const Tensor& dot, std::int64_t width,
                         const Tensor& d_x, const Tensor& d_gate, const Tensor& y, const Tensor& gain,
                         const Tensor& d_gain) {
  const std::int64_t local_width = x.size(1);
  const auto backward = [&]<class T, Activation activation, bool again, bool gained>() {
    const T* const gains = gain.as<T>();
    const auto rows = [&](std::int64_t first, std::int64_t last, T* gain_sums) {
      for (std::int64_t row = first; row < last; ++row) {
        const T *const upstream = row_of<T>(d_y, row), *const values = row_of<T>(x, row);
        const T* const gates = row_of<T>(gate, row);
        const T inverse = inverse_rms.as<T>()[row];
        const T sum = dot ? dot.as<T>()[row]
                          : inverse * gated_dot_row<activation, gained>(upstream, values, gates, gains, local_width);
        gated_norm_gradient_row<activation, again, gained>(
            upstream, values, gates, gains, inverse, sum / static_cast<T>(width), row_of<T>(d_x, row),
            row_of<T>(d_gate, row), again ? row_of<T>(y, row) : nullptr, gain_sums, local_width);
      }
    };
    if (gained)
      add_column_sums<T>(execution, x.size(0), local_width, {d_gain}, rows);
    else
      parallel_rows(x.size(0), local_width, [&](std::int64_t first, std::int64_t last) { rows(first, last, nullptr); });
  };
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    dispatch_activation(gate_activation, [&]<Activation activation>() {
      with_flags(!y.is_null(), !gain.is_null(),
                 [&]<bool again, bool gained>() { backward.template operator()<T, activation, again, gained>(); });
    });
  });
}

}  // namespace fulmen::cpu
