// Norms with a gain on the CPU: RMSNorm, its zero-centred form and LayerNorm. A row is read once from memory, its other
// passes find it in the cache.
#include <cmath>

#include "kernels/cpu/column_sums.h"
#include "kernels/cpu/parallel.h"
#include "kernels/norm.h"

namespace fulmen::cpu {
namespace {

template <class T>
FULMEN_VECTORIZED void add_rows(const T* a, const T* b, T* sum, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) sum[j] = a[j] + b[j];
}

template <class T>
FULMEN_VECTORIZED T mean_of(const T* x, std::int64_t width) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < width; ++j) sum += x[j];
  return sum / static_cast<T>(width);
}

template <class T>
FULMEN_VECTORIZED T mean_square_about(const T* x, T centre, std::int64_t width) {
  T squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t j = 0; j < width; ++j) squares += (x[j] - centre) * (x[j] - centre);
  return squares / static_cast<T>(width);
}

// How a row becomes its output: (x - mean) * inverse * (offset + gain) + bias. The mean is 0 but for LayerNorm, offset
// is 1 for a zero-centred gain.
template <class T>
struct Normed {
  T mean, inverse, offset;
  const T* gain;
  const T* bias;  // or null
};

template <bool biased, class T>
FULMEN_VECTORIZED void normed_row(const T* x, Normed<T> norm, T* out, std::int64_t width) {
  const T mean = norm.mean, inverse = norm.inverse, offset = norm.offset;
  const T *const gain = norm.gain, *const bias = norm.bias;
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) {
    const T scaled = (x[j] - mean) * inverse * (offset + gain[j]);
    out[j] = biased ? scaled + bias[j] : scaled;
  }
}

// The means over a row of d_n = d_normed * (offset + gain) and of d_n * n.
template <class T>
struct GradientMeans {
  T plain, with_normed;
};

template <class T>
FULMEN_VECTORIZED GradientMeans<T> gradient_means(const T* d_normed, const T* x, Normed<T> norm, std::int64_t width) {
  const T mean = norm.mean, inverse = norm.inverse, offset = norm.offset;
  const T* const gain = norm.gain;
  T plain = 0, with_normed = 0;
#pragma omp simd reduction(+ : plain, with_normed)
  for (std::int64_t j = 0; j < width; ++j) {
    const T d_n = d_normed[j] * (offset + gain[j]);
    plain += d_n;
    with_normed += d_n * ((x[j] - mean) * inverse);
  }
  return {plain / static_cast<T>(width), with_normed / static_cast<T>(width)};
}

// Every argument of a position is read before anything is written there: outputs may lie where inputs do.
template <bool past_the_norm, bool again, bool biased, class T>
FULMEN_VECTORIZED void gradient_row(const T* d_normed, const T* x, const T* d_residual, Normed<T> norm,
                                    GradientMeans<T> means, T* d_sum, T* normed, T* d_gain, T* d_bias,
                                    std::int64_t width) {
  const T mean = norm.mean, inverse = norm.inverse, offset = norm.offset;
  const T *const gain = norm.gain, *const bias = norm.bias;
  const T mean_plain = means.plain, mean_with_normed = means.with_normed;
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) {
    const T upstream = d_normed[j], factor = offset + gain[j], n = (x[j] - mean) * inverse;
    const T gradient = inverse * (upstream * factor - n * mean_with_normed - mean_plain);
    d_gain[j] += upstream * n;
    if constexpr (biased) d_bias[j] += upstream;
    d_sum[j] = past_the_norm ? d_residual[j] + gradient : gradient;
    if constexpr (again) normed[j] = biased ? n * factor + bias[j] : n * factor;
  }
}

template <class T>
T* row_of(const Tensor& x, std::int64_t row) {
  return x ? x.as<T>() + row * x.stride(0) : nullptr;
}

// A row's norm but for its statistics.
template <class T>
Normed<T> norm_of(const NormWeights& weights) {
  return {T(0), T(0), weights.kind == NormKind::zero_centred ? T(1) : T(0), weights.gain.as<T>(), weights.bias.as<T>()};
}

// Calls f with each flag as a compile-time constant.
template <class F>
void with_flags(bool first, bool second, F&& f) {
  if (first)
    second ? f.template operator()<true, true>() : f.template operator()<true, false>();
  else
    second ? f.template operator()<false, true>() : f.template operator()<false, false>();
}

}  // namespace

void weighted_norm_forward(const Execution&, const Tensor& residual, const Tensor& branch, const NormWeights& weights,
                           double epsilon, const Tensor& sum, const Tensor& normed, const Tensor& statistics) {
  const std::int64_t width = residual.size(1);
  const bool centred = weights.kind == NormKind::layer;
  dispatch_fp32_fp64(residual.dtype(), [&]<class T>(T) {
    parallel_rows(residual.size(0), width, [&](std::int64_t first, std::int64_t last) {
      Normed<T> norm = norm_of<T>(weights);
      for (std::int64_t row = first; row < last; ++row) {
        const T* total = row_of<T>(residual, row);
        if (branch) {
          add_rows(total, row_of<T>(branch, row), row_of<T>(sum, row), width);
          total = row_of<T>(sum, row);
        }
        if (centred) norm.mean = mean_of(total, width);
        norm.inverse = T(1) / std::sqrt(mean_square_about(total, norm.mean, width) + static_cast<T>(epsilon));
        T* const kept = row_of<T>(statistics, row);
        kept[0] = norm.inverse;
        if (centred) kept[1] = norm.mean;
        centred ? normed_row<true>(total, norm, row_of<T>(normed, row), width)
                : normed_row<false>(total, norm, row_of<T>(normed, row), width);
      }
    });
  });
}

void weighted_norm_backward(const Execution& execution, const Tensor& d_normed, const Tensor& sum,
                            const NormWeights& weights, const Tensor& statistics, const Tensor& d_residual,
                            const Tensor& d_sum, const Tensor& normed, const NormWeightGradients& gradients) {
  const std::int64_t width = sum.size(1);
  const bool centred = weights.kind == NormKind::layer;
  const auto backward = [&]<class T, bool past_the_norm, bool again>(std::int64_t row, Normed<T> norm, T* sums) {
    const T *const upstream = row_of<T>(d_normed, row), *const x = row_of<T>(sum, row);
    GradientMeans<T> means = gradient_means(upstream, x, norm, width);
    const auto write = [&]<bool biased>() {
      gradient_row<past_the_norm, again, biased>(upstream, x, row_of<T>(d_residual, row), norm, means,
                                                 row_of<T>(d_sum, row), row_of<T>(normed, row), sums, sums + width,
                                                 width);
    };
    if (centred) return write.template operator()<true>();
    means.plain = 0;
    write.template operator()<false>();
  };
  dispatch_fp32_fp64(sum.dtype(), [&]<class T>(T) {
    const auto block = [&](std::int64_t first, std::int64_t last, T* sums) {
      Normed<T> norm = norm_of<T>(weights);
      for (std::int64_t row = first; row < last; ++row) {
        const T* const kept = row_of<T>(statistics, row);
        norm.inverse = kept[0];
        if (centred) norm.mean = kept[1];
        with_flags(!d_residual.is_null(), !normed.is_null(), [&]<bool past_the_norm, bool again>() {
          backward.template operator()<T, past_the_norm, again>(row, norm, sums);
        });
      }
    };
    if (centred)
      add_column_sums<T>(execution, sum.size(0), width, {gradients.d_gain, gradients.d_bias}, block);
    else
      add_column_sums<T>(execution, sum.size(0), width, {gradients.d_gain}, block);
  });
}

}  // namespace fulmen::cpu
