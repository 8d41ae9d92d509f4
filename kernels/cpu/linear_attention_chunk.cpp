// Chunks, decay tables, and the loading of rows for linear attention.
#include "kernels/cpu/linear_attention_chunk.h"

#include <algorithm>
#include <cmath>

#include <omp.h>

#include "kernels/cpu/vector_math.h"

namespace fulmen::cpu {
namespace {

// A head's rows lie a whole token apart, further than hardware prefetches: fetches a row some rows ahead.
template <class T>
FULMEN_INLINE void prefetch_row(const T* row, std::int64_t width) {
  constexpr std::int64_t line = 64 / sizeof(T);
  for (std::int64_t j = 0; j < width; j += line) __builtin_prefetch(row + j);
}
inline constexpr std::int64_t rows_ahead = 8;

template <Activation activation, class T>
FULMEN_VECTORIZED void activate_rows(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t width,
                                     T* to, std::int64_t to_stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
    if (i + rows_ahead < rows) prefetch_row(from + rows_ahead * from_stride, width);
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) to[j] = activate<activation>(from[j]);
    from += from_stride, to += to_stride;
  }
}

template <Activation activation, class T>
FULMEN_VECTORIZED void differentiate_rows(const T* from, std::int64_t from_stride, std::int64_t rows,
                                          std::int64_t width, T* to, T* derivatives, std::int64_t to_stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
    if (i + rows_ahead < rows) prefetch_row(from + rows_ahead * from_stride, width);
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) {
      const Activated<T> activated = activate_with_derivative<activation>(from[j]);
      to[j] = activated.value;
      derivatives[j] = activated.derivative;
    }
    from += from_stride, to += to_stride, derivatives += to_stride;
  }
}

template <class T>
FULMEN_VECTORIZED void scale_rows_vectorized(T* x, std::int64_t stride, std::int64_t rows, std::int64_t width,
                                             const T* factors) {
  for (std::int64_t i = 0; i < rows; ++i) {
    const T factor = factors[i];
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) x[i * stride + j] *= factor;
  }
}

template <class T>
FULMEN_VECTORIZED void sine_cosine_range(const double* angles, std::int64_t count, T* cosines, T* sines) {
#pragma omp simd
  for (std::int64_t j = 0; j < count; ++j) {
    const SineCosine both = sine_cosine(angles[j]);
    cosines[j] = static_cast<T>(both.cosine);
    sines[j] = static_cast<T>(both.sine);
  }
}

template <class T>
FULMEN_VECTORIZED void expand_rows(const T* x, std::int64_t x_stride, const T* cosines, const T* sines,
                                   std::int64_t rows, std::int64_t width, T* to, std::int64_t to_stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) {
      to[i * to_stride + j] = x[i * x_stride + j] * cosines[i * width + j];
      to[i * to_stride + width + j] = x[i * x_stride + j] * sines[i * width + j];
    }
  }
}

template <class T>
FULMEN_VECTORIZED void rotate_back(T* d, std::int64_t d_stride, const T* x, const T* cosines, const T* sines,
                                   const std::int64_t* positions, std::int64_t position_stride, std::int64_t rows,
                                   std::int64_t width, double* d_theta) {
  for (std::int64_t i = 0; i < rows; ++i) {
    const auto position = static_cast<double>(positions[i * position_stride]);
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) {
      const T d_cosine = d[j], d_sine = d[width + j];
      const double d_angle = static_cast<double>(d_sine) * static_cast<double>(cosines[j]) -
                             static_cast<double>(d_cosine) * static_cast<double>(sines[j]);
      d_theta[j] += position * static_cast<double>(x[j]) * d_angle;
      d[j] = d_cosine * cosines[j] + d_sine * sines[j];
    }
    d += d_stride, x += width, cosines += width, sines += width;
  }
}

}  // namespace

AttentionShape::AttentionShape(const LinearAttentionInputs& inputs)
    : batch(inputs.query.size(0)),
      length(inputs.query.size(1)),
      heads(inputs.query.size(2)),
      key_width(inputs.query.size(3)),
      value_width(inputs.value.size(3)),
      state_width(inputs.theta ? 2 * key_width : key_width) {
  const bool wide = inputs.query.dtype() == DType::fp64;
  key_stride = wide ? padded_columns<double>(state_width) : padded_columns<float>(state_width);
  value_stride = wide ? padded_columns<double>(value_width) : padded_columns<float>(value_width);
}

int attention_threads(const AttentionShape& shape) {
  constexpr std::int64_t least_products = 1 << 19;  // per thread, some 10 microseconds
  const std::int64_t tasks = shape.batch * shape.heads;
  const std::int64_t per_token =
      chunk_tokens * (shape.state_width + shape.value_width) + 2 * shape.state_width * shape.value_width;
  const std::int64_t useful = tasks * shape.length * per_token / least_products;
  return static_cast<int>(std::clamp<std::int64_t>(std::min(useful, tasks), 1, omp_get_max_threads()));
}

template <class T>
DecayTable<T>::DecayTable(T* memory, double slope) : powers_(memory), causal_(memory + 2 * chunk_tokens) {
  for (std::int64_t n = 0; n <= chunk_tokens; ++n)
    powers_[n] = static_cast<T>(std::exp(-slope * static_cast<double>(n)));
  for (std::int64_t n = 0; n < chunk_tokens; ++n) causal_[-n] = powers_[n];
  std::fill(causal_ + 1, causal_ + 2 * chunk_tokens + 1, T(0));
}

template <class T>
void load_rows(Activation activation, const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t width,
               T* to, T* derivatives, std::int64_t to_stride) {
  dispatch_activation(activation, [&]<Activation act>() {
    if (derivatives == nullptr) {
      activate_rows<act>(from, from_stride, rows, width, to, to_stride);
    } else {
      differentiate_rows<act>(from, from_stride, rows, width, to, derivatives, to_stride);
    }
  });
}

template <class T>
void scale_rows(T* x, std::int64_t stride, std::int64_t rows, std::int64_t width, const T* factors) {
  scale_rows_vectorized(x, stride, rows, width, factors);
}

template <class T>
void lrpe_tables(const std::int64_t* positions, std::int64_t position_stride, const double* theta, std::int64_t rows,
                 std::int64_t width, double* angles, T* cosines, T* sines) {
  double largest = 0;
  for (std::int64_t i = 0; i < rows; ++i) {
    const auto position = static_cast<double>(positions[i * position_stride]);
    for (std::int64_t j = 0; j < width; ++j) {
      angles[i * width + j] = position * theta[j];
      largest = std::max(largest, std::abs(angles[i * width + j]));
    }
  }
  if (largest <= largest_angle) return sine_cosine_range(angles, rows * width, cosines, sines);
  for (std::int64_t j = 0; j < rows * width; ++j) {
    cosines[j] = static_cast<T>(std::cos(angles[j]));
    sines[j] = static_cast<T>(std::sin(angles[j]));
  }
}

template <class T>
void lrpe_expand(const T* x, std::int64_t x_stride, const T* cosines, const T* sines, std::int64_t rows,
                 std::int64_t width, T* to, std::int64_t to_stride) {
  expand_rows(x, x_stride, cosines, sines, rows, width, to, to_stride);
}

template <class T>
void lrpe_backward(T* d, std::int64_t d_stride, const T* x, const T* cosines, const T* sines,
                   const std::int64_t* positions, std::int64_t position_stride, std::int64_t rows, std::int64_t width,
                   double* d_theta) {
  rotate_back(d, d_stride, x, cosines, sines, positions, position_stride, rows, width, d_theta);
}

void add_theta_gradients(const AttentionShape& shape, const double* shares, double* d_theta) {
  const std::int64_t elements = shape.heads * shape.key_width;
  for (std::int64_t row = 0; row < shape.batch; ++row)
    for (std::int64_t j = 0; j < elements; ++j) d_theta[j] += shares[row * elements + j];
}

template class DecayTable<float>;
template class DecayTable<double>;
template void load_rows(Activation, const float*, std::int64_t, std::int64_t, std::int64_t, float*, float*,
                        std::int64_t);
template void load_rows(Activation, const double*, std::int64_t, std::int64_t, std::int64_t, double*, double*,
                        std::int64_t);
template void scale_rows(float*, std::int64_t, std::int64_t, std::int64_t, const float*);
template void scale_rows(double*, std::int64_t, std::int64_t, std::int64_t, const double*);
template void lrpe_tables(const std::int64_t*, std::int64_t, const double*, std::int64_t, std::int64_t, double*, float*,
                          float*);
template void lrpe_tables(const std::int64_t*, std::int64_t, const double*, std::int64_t, std::int64_t, double*,
                          double*, double*);
template void lrpe_expand(const float*, std::int64_t, const float*, const float*, std::int64_t, std::int64_t, float*,
                          std::int64_t);
template void lrpe_expand(const double*, std::int64_t, const double*, const double*, std::int64_t, std::int64_t,
                          double*, std::int64_t);
template void lrpe_backward(float*, std::int64_t, const float*, const float*, const float*, const std::int64_t*,
                            std::int64_t, std::int64_t, std::int64_t, double*);
template void lrpe_backward(double*, std::int64_t, const double*, const double*, const double*, const std::int64_t*,
                            std::int64_t, std::int64_t, std::int64_t, double*);

}  // namespace fulmen::cpu
