// Cross entropy, a row of logits at a time: two passes forward, one backward.
#include "kernels/cross_entropy.h"

#include <cmath>
#include <limits>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

namespace fulmen::cpu {
namespace {

template <class T>
FULMEN_VECTORIZED T maximum_of(const T* logits, std::int64_t valid) {
  T maximum = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : maximum)
  for (std::int64_t j = 0; j < valid; ++j) maximum = logits[j] > maximum ? logits[j] : maximum;
  return maximum;
}

template <class T>
FULMEN_VECTORIZED T sum_of_exponentials(const T* logits, T maximum, std::int64_t valid) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < valid; ++j) sum += exponential(logits[j] - maximum);
  return sum;
}

template <class T>
FULMEN_VECTORIZED void probabilities(const T* logits, T maximum, T factor, T* out, std::int64_t valid) {
#pragma omp simd
  for (std::int64_t j = 0; j < valid; ++j) out[j] = factor * exponential(logits[j] - maximum);
}

// The target's column here, or -1 when another rank holds it.
std::int64_t local_column(std::int32_t target, std::int64_t first, std::int64_t valid) {
  const std::int64_t column = target - first;
  return column >= 0 && column < valid ? column : -1;
}

}  // namespace

void cross_entropy_local(const Execution&, const Tensor& logits, const Tensor& targets, std::int64_t first,
                         std::int64_t valid, const Tensor& maximum, const Tensor& exp_sum, const Tensor& target_logit) {
  dispatch_fp32_fp64(logits.dtype(), [&]<class T>(T) {
    parallel_rows(logits.size(0), logits.size(1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const T* const row = logits.as<T>() + t * logits.stride(0);
        const T row_maximum = maximum_of(row, valid);
        const std::int64_t column = local_column(targets.as<std::int32_t>()[t], first, valid);
        maximum.as<T>()[t] = row_maximum;
        exp_sum.as<T>()[t] = sum_of_exponentials(row, row_maximum, valid);
        target_logit.as<T>()[t] = column < 0 ? T(0) : row[column];
      }
    });
  });
}

void cross_entropy_rescale(const Execution&, const Tensor& local_maximum, const Tensor& global_maximum,
                           const Tensor& exp_sum) {
  dispatch_fp32_fp64(exp_sum.dtype(), [&]<class T>(T) {
    for (std::int64_t t = 0; t < exp_sum.size(0); ++t)
      exp_sum.as<T>()[t] *= std::exp(local_maximum.as<T>()[t] - global_maximum.as<T>()[t]);
  });
}

void cross_entropy_losses(const Execution&, const Tensor& maximum, const Tensor& exp_sum, const Tensor& target_logit,
                          const Tensor& weights, const Tensor& losses) {
  dispatch_fp32_fp64(maximum.dtype(), [&]<class T>(T) {
    for (std::int64_t t = 0; t < losses.size(0); ++t) {
      const double weight = weights.as<float>()[t];
      const double margin = static_cast<double>(maximum.as<T>()[t]) - static_cast<double>(target_logit.as<T>()[t]);
      losses.as<double>()[t] =
          weight == 0 ? 0.0 : weight * (std::log(static_cast<double>(exp_sum.as<T>()[t])) + margin);
    }
  });
}

void cross_entropy_backward(const Execution&, const Tensor& logits, const Tensor& targets, const Tensor& weights,
                            std::int64_t first, std::int64_t valid, const Tensor& maximum, const Tensor& exp_sum,
                            const Tensor& scale, const Tensor& d_logits) {
  const std::int64_t columns = logits.size(1);
  dispatch_fp32_fp64(logits.dtype(), [&]<class T>(T) {
    parallel_rows(logits.size(0), columns, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const T* const row = logits.as<T>() + t * logits.stride(0);
        T* const d_row = d_logits.as<T>() + t * d_logits.stride(0);
        const double weight = weights.as<float>()[t];
        if (weight == 0) {
          std::fill(d_row, d_row + columns, T(0));
          continue;
        }
        const T factor = static_cast<T>(*scale.as<double>() * weight);
        probabilities(row, maximum.as<T>()[t], factor / exp_sum.as<T>()[t], d_row, valid);
        std::fill(d_row + valid, d_row + columns, T(0));
        const std::int64_t column = local_column(targets.as<std::int32_t>()[t], first, valid);
        if (column >= 0) d_row[column] -= factor;
      }
    });
  });
}

}  // namespace fulmen::cpu
