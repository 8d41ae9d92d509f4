// Products of a few rows with a large matrix.
#include "kernels/cpu/matrix_vector.h"

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vectorize.h"

namespace fulmen::cpu {
namespace {

// Four rows of the matrix at a time, so that four sums are in flight.
template <class T>
FULMEN_VECTORIZED void four_dots(const T* weight, std::int64_t stride, const T* x, std::int64_t k, T* sums) {
  const T *w0 = weight, *w1 = weight + stride, *w2 = weight + 2 * stride, *w3 = weight + 3 * stride;
  T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (std::int64_t j = 0; j < k; ++j) {
    s0 += w0[j] * x[j];
    s1 += w1[j] * x[j];
    s2 += w2[j] * x[j];
    s3 += w3[j] * x[j];
  }
  sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

template <class T>
FULMEN_VECTORIZED T one_dot(const T* weight, const T* x, std::int64_t k) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < k; ++j) sum += weight[j] * x[j];
  return sum;
}

template <class T>
void multiply_rows(const Tensor& x, const Tensor& weight, const Tensor& y, std::int64_t first, std::int64_t last) {
  const std::int64_t k = weight.size(1), stride = weight.stride(0);
  // Groups of four start at multiples of four, so that a row's sum does not depend on the number of threads.
  for (std::int64_t n = first; n < last; n += 4) {
    const T* row = weight.as<T>() + n * stride;
    for (std::int64_t i = 0; i < x.size(0); ++i) {
      const T* values = x.as<T>() + i * x.stride(0);
      T* out = y.as<T>() + i * y.stride(0) + n;
      if (n + 4 <= last) {
        four_dots(row, stride, values, k, out);
        continue;
      }
      for (std::int64_t r = 0; n + r < last; ++r) out[r] = one_dot(row + r * stride, values, k);
    }
  }
}

}  // namespace

void few_rows_times_matrix(const Tensor& x, const Tensor& weight, const Tensor& y) {
  const std::int64_t n = weight.size(0);
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    parallel_rows((n + 3) / 4, 4 * weight.size(1), [&](std::int64_t first, std::int64_t last) {
      multiply_rows<T>(x, weight, y, 4 * first, std::min(4 * last, n));
    });
  });
}

}  // namespace fulmen::cpu
