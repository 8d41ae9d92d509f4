// Plain passes over memory: every loop is a vectorised range that threads share out.
#include "kernels/elementwise.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vectorize.h"

namespace fulmen::cpu {
namespace {

template <class T>
FULMEN_VECTORIZED void add_range(const T* a, const T* b, T* out, std::int64_t first, std::int64_t last) {
#pragma omp simd
  for (std::int64_t i = first; i < last; ++i) out[i] = a[i] + b[i];
}

template <class T>
FULMEN_VECTORIZED void add_scaled_range(const T* a, T a_scale, const T* b, T b_scale, T* out, std::int64_t first,
                                        std::int64_t last) {
#pragma omp simd
  for (std::int64_t i = first; i < last; ++i) out[i] = a_scale * a[i] + b_scale * b[i];
}

// Through a block of its own: out may be any of the parts.
template <class T>
FULMEN_VECTORIZED void sum_parts_range(std::span<const Tensor> parts, T* out, std::int64_t first, std::int64_t last) {
  constexpr std::int64_t block = 512;
  T sum[block];
  for (; first < last; first += block) {
    const std::int64_t count = std::min(block, last - first);
    std::copy_n(parts[0].as<T>() + first, count, sum);
    for (const Tensor& part : parts.subspan(1)) {
      const T* const values = part.as<T>() + first;
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) sum[i] += values[i];
    }
    std::copy_n(sum, count, out + first);
  }
}

template <class T>
FULMEN_VECTORIZED void scale_range(T* x, T factor, std::int64_t first, std::int64_t last) {
#pragma omp simd
  for (std::int64_t i = first; i < last; ++i) x[i] *= factor;
}

template <class From, class To>
FULMEN_VECTORIZED void convert_range(const From* from, To* to, std::int64_t elements) {
#pragma omp simd
  for (std::int64_t i = 0; i < elements; ++i) to[i] = static_cast<To>(from[i]);
}

template <class T>
FULMEN_VECTORIZED double sum_of_squares(const T* x, std::int64_t elements) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < elements; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

FULMEN_VECTORIZED double sum_of(const double* x, std::int64_t elements) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < elements; ++i) sum += x[i];
  return sum;
}

// total += block_sum(first, count) over fixed blocks of [0, elements), added in order: the same bits on any number of
// threads.
template <class BlockSum>
void add_in_blocks(const Execution& execution, std::int64_t elements, double& total, BlockSum&& block_sum) {
  constexpr std::int64_t block = 16384;
  const std::int64_t blocks = (elements + block - 1) / block;
  Arena::Frame frame(*execution.scratch);
  double* const sums = execution.scratch->take(DType::fp64, {blocks}).as<double>();
  if (execution.plans()) return;
  parallel_rows(blocks, block, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t b = first; b < last; ++b) sums[b] = block_sum(b * block, std::min(block, elements - b * block));
  });
  for (std::int64_t b = 0; b < blocks; ++b) total += sums[b];
}

// Element offset of the first element of inner row `row` (all dimensions but the last, in row-major order).
std::int64_t row_offset(const Tensor& x, std::int64_t row) {
  std::int64_t offset = 0;
  for (int d = x.rank() - 2; d >= 0; --d) {
    offset += row % x.size(d) * x.stride(d);
    row /= x.size(d);
  }
  return offset;
}

void copy_rows(const Tensor& from, const Tensor& to, std::int64_t first, std::int64_t last) {
  const std::int64_t width = from.size(-1);
  const auto source = [&](std::int64_t row) { return row_offset(from, row); };
  for (std::int64_t row = first; row < last; ++row) {
    if (from.dtype() == to.dtype()) {
      const std::size_t size = size_of(from.dtype());
      std::memcpy(static_cast<char*>(to.data()) + row_offset(to, row) * size,
                  static_cast<const char*>(from.data()) + source(row) * size, width * size);
    } else if (from.dtype() == DType::fp32) {
      convert_range(from.as<float>() + source(row), to.as<double>() + row_offset(to, row), width);
    } else {
      convert_range(from.as<double>() + source(row), to.as<float>() + row_offset(to, row), width);
    }
  }
}

}  // namespace

void fill_zero(const Execution&, const Tensor& x) {
  const std::size_t size = size_of(x.dtype());
  parallel_elements(x.elements(), [&](std::int64_t first, std::int64_t last) {
    std::memset(static_cast<char*>(x.data()) + first * size, 0, (last - first) * size);
  });
}

void add(const Execution&, const Tensor& a, const Tensor& b, const Tensor& out) {
  dispatch_fp32_fp64(a.dtype(), [&]<class T>(T) {
    parallel_elements(a.elements(), [&](std::int64_t first, std::int64_t last) {
      add_range(a.as<T>(), b.as<T>(), out.as<T>(), first, last);
    });
  });
}

void add_scaled(const Execution&, const Tensor& a, double a_scale, const Tensor& b, double b_scale, const Tensor& out) {
  dispatch_fp32_fp64(a.dtype(), [&]<class T>(T) {
    parallel_elements(a.elements(), [&](std::int64_t first, std::int64_t last) {
      add_scaled_range(a.as<T>(), static_cast<T>(a_scale), b.as<T>(), static_cast<T>(b_scale), out.as<T>(), first,
                       last);
    });
  });
}

void add_to(const Execution&, const Tensor& out, const Tensor& a) {
  const std::int64_t width = out.size(1);
  dispatch_fp32_fp64(out.dtype(), [&]<class T>(T) {
    parallel_rows(out.size(0), width, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        T* const sum = out.as<T>() + row * out.stride(0);
        add_range(sum, a.as<T>() + row * a.stride(0), sum, 0, width);
      }
    });
  });
}

void sum_parts(const Execution&, std::span<const Tensor> parts, const Tensor& out) {
  dispatch_fp32_fp64(out.dtype(), [&]<class T>(T) {
    parallel_elements(out.elements(),
                      [&](std::int64_t first, std::int64_t last) { sum_parts_range(parts, out.as<T>(), first, last); });
  });
}

void scale(const Execution&, const Tensor& x, double factor) {
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    parallel_elements(x.elements(), [&](std::int64_t first, std::int64_t last) {
      scale_range(x.as<T>(), static_cast<T>(factor), first, last);
    });
  });
}

void copy(const Execution&, const Tensor& from, const Tensor& to) {
  if (from.elements() == 0) return;
  if (from.is_contiguous() && to.is_contiguous() && from.dtype() == to.dtype()) {
    const std::size_t size = size_of(from.dtype());
    return parallel_elements(from.elements(), [&](std::int64_t first, std::int64_t last) {
      std::memcpy(static_cast<char*>(to.data()) + first * size, static_cast<const char*>(from.data()) + first * size,
                  (last - first) * size);
    });
  }
  const std::int64_t width = from.size(-1);
  parallel_rows(from.elements() / width, width,
                [&](std::int64_t first, std::int64_t last) { copy_rows(from, to, first, last); });
}

void add_sum_of_squares(const Execution& execution, const Tensor& x, const Tensor& total) {
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    add_in_blocks(execution, x.elements(), *total.as<double>(),
                  [&](std::int64_t first, std::int64_t count) { return sum_of_squares(x.as<T>() + first, count); });
  });
}

void add_sum(const Execution& execution, const Tensor& x, const Tensor& total) {
  add_in_blocks(execution, x.elements(), *total.as<double>(),
                [&](std::int64_t first, std::int64_t count) { return sum_of(x.as<double>() + first, count); });
}

}  // namespace fulmen::cpu
