// Rotary position embedding on the CPU: a token's cosines and sines are formed once for all its heads.
#include "kernels/rotation.h"

#include "kernels/cpu/linear_attention_chunk.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vectorize.h"

namespace fulmen::cpu {
namespace {

template <class T>
FULMEN_VECTORIZED void rotate_halves(T* x, const T* cosines, const T* sines, std::int64_t half) {
  T* const other = x + half;
#pragma omp simd
  for (std::int64_t j = 0; j < half; ++j) {
    const T a = x[j], b = other[j];
    x[j] = a * cosines[j] - b * sines[j];
    other[j] = b * cosines[j] + a * sines[j];
  }
}

template <class T>
FULMEN_VECTORIZED void rotate_neighbours(T* x, const T* cosines, const T* sines, std::int64_t half) {
#pragma omp simd
  for (std::int64_t j = 0; j < half; ++j) {
    const T a = x[2 * j], b = x[2 * j + 1];
    x[2 * j] = a * cosines[j] - b * sines[j];
    x[2 * j + 1] = b * cosines[j] + a * sines[j];
  }
}

template <class T>
FULMEN_VECTORIZED void scale_columns(T* x, T factor, std::int64_t count) {
#pragma omp simd
  for (std::int64_t j = 0; j < count; ++j) x[j] *= factor;
}

template <class T>
void rotate_rows(const fulmen::Rotation& rotation, const Tensor& positions, bool inverse, const Tensor& x,
                 std::int64_t first, std::int64_t last, const LrpeScratch<T>& tables) {
  const std::int64_t half = rotation.frequencies.elements(), width = rotation.head_width;
  const T scale = static_cast<T>(rotation.scale);
  for (std::int64_t row = first; row < last; ++row) {
    if (half > 0) {
      lrpe_tables(positions.as<std::int64_t>() + row * positions.stride(0), std::int64_t{0},
                  rotation.frequencies.as<double>(), 1, half, tables.angles, tables.cosines, tables.sines);
      scale_columns(tables.cosines, scale, half);
      scale_columns(tables.sines, inverse ? -scale : scale, half);
    }
    T* const begin = x.as<T>() + row * x.stride(0);
    for (T* head = begin; head < begin + x.size(1); head += width) {
      rotation.pairs == RotationPairs::halves ? rotate_halves(head, tables.cosines, tables.sines, half)
                                              : rotate_neighbours(head, tables.cosines, tables.sines, half);
      if (scale != T(1)) scale_columns(head + 2 * half, scale, width - 2 * half);
    }
  }
}

}  // namespace

void rotate(const Execution& execution, const fulmen::Rotation& rotation, const Tensor& positions, bool inverse,
            const Tensor& x) {
  const std::int64_t half = rotation.frequencies.elements();
  const auto carve = [&]<class T>(LrpeScratch<T>& tables, void* memory) {
    Carver<T> carver(memory);
    tables.angles = carver.template take<double>(half);
    tables.cosines = carver.take(half), tables.sines = carver.take(half);
    return carver.bytes();
  };
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    LrpeScratch<T> sizes;
    const std::int64_t bytes = carve(sizes, nullptr);
    Arena::Frame frame(*execution.scratch);
    auto* const memory =
        execution.scratch->take(DType::uint8, {omp_get_max_threads(), bytes}).template as<std::uint8_t>();
    if (execution.plans()) return;
    parallel_rows(x.size(0), x.size(1) + 8 * half, [&](std::int64_t first, std::int64_t last) {
      LrpeScratch<T> tables;
      carve(tables, memory + omp_get_thread_num() * bytes);
      rotate_rows(rotation, positions, inverse, x, first, last, tables);
    });
  });
}

}  // namespace fulmen::cpu
