// The register-blocked kernel, instantiated for AVX-512, AVX2 and the baseline; the machine picks at the first call.
#include "kernels/cpu/small_product.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/vectorize.h"

namespace fulmen::cpu {
namespace {

template <class T, int bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
};

// Unaligned load and store.
template <class V, class T>
FULMEN_INLINE void load(V& vector, const T* from) {
  __builtin_memcpy(&vector, from, sizeof(V));
}
template <class V, class T>
FULMEN_INLINE void store(T* to, const V& vector) {
  __builtin_memcpy(to, &vector, sizeof(V));
}

// A tile of c: rows x vectors registers.
template <class T, int bytes, int rows, int vectors>
struct Tile {
  using V = typename VectorOf<T, bytes>::type;
  static constexpr std::int64_t lanes = bytes / sizeof(T);
  V sums[rows][vectors];

  FULMEN_INLINE void accumulate(const Factors<T>& factors, std::int64_t row, std::int64_t column, std::int64_t first,
                                std::int64_t last) {
    const T* a = factors.a + row * factors.a_row_stride + first * factors.a_depth_stride;
    const T* b = factors.b + column + first * factors.b_row_stride;
    for (std::int64_t k = first; k < last; ++k) {
      V right[vectors];
      for (int v = 0; v < vectors; ++v) load(right[v], b + v * lanes);
      for (int r = 0; r < rows; ++r) {
        const T left = a[r * factors.a_row_stride];
        for (int v = 0; v < vectors; ++v) sums[r][v] += left * right[v];
      }
      a += factors.a_depth_stride;
      b += factors.b_row_stride;
    }
  }

  FULMEN_INLINE void compute(const SmallProduct<T>& product, std::int64_t row, std::int64_t column) {
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) sums[r][v] = V{};
    if (product.scaled.depth > 0) {
      accumulate(product.scaled, row, column, 0, product.scaled.depth);
      for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) sums[r][v] *= product.row_scale[row + r];
    }
    if (product.carry != nullptr) {
      for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < vectors; ++v) {
          V carried;
          load(carried, product.carry + (row + r) * product.carry_row_stride + column + v * lanes);
          sums[r][v] += product.carry_scale * carried;
        }
      }
    }
    std::int64_t first = 0, last = product.plain.depth;
    if (product.contraction == Contraction::up_to_diagonal) last = std::min(last, row + rows);
    if (product.contraction == Contraction::from_diagonal) first = row;
    accumulate(product.plain, row, column, first, last);
    for (int r = 0; r < rows; ++r) {
      for (int v = 0; v < vectors; ++v) {
        const std::int64_t at = column + v * lanes;
        if (product.mask != nullptr) {
          V factor;
          load(factor, product.mask + at - (row + r));
          sums[r][v] *= factor;
        }
        store(product.c + (row + r) * product.c_row_stride + at, sums[r][v]);
      }
    }
  }
};

// The tiles of `rows` rows from `row` on.
template <class T, int bytes, int rows, int vectors>
FULMEN_INLINE void compute_rows(const SmallProduct<T>& product, std::int64_t row) {
  constexpr std::int64_t lanes = bytes / sizeof(T);
  const std::int64_t columns = product.mask == nullptr ? product.columns : std::min(product.columns, row + rows);
  std::int64_t column = 0;
  for (; column < columns && column + vectors * lanes <= product.columns; column += vectors * lanes)
    Tile<T, bytes, rows, vectors>{}.compute(product, row, column);
  for (; column < columns; column += lanes) Tile<T, bytes, rows, 1>{}.compute(product, row, column);
}

template <class T, int bytes, int rows, int vectors>
FULMEN_INLINE void multiply_tiled(const SmallProduct<T>& product) {
  std::int64_t row = 0;
  for (; row + rows <= product.rows; row += rows) compute_rows<T, bytes, rows, vectors>(product, row);
  for (; row + rows / 2 <= product.rows; row += rows / 2) compute_rows<T, bytes, rows / 2, vectors>(product, row);
  for (; row < product.rows; ++row) compute_rows<T, bytes, 1, vectors>(product, row);
}

#if defined(__x86_64__)
template <class T>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) void multiply_avx512(
    const SmallProduct<T>& product) {
  multiply_tiled<T, 64, 8, 2>(product);
}

template <class T>
__attribute__((target("avx2,fma"))) void multiply_avx2(const SmallProduct<T>& product) {
  multiply_tiled<T, 32, 4, 2>(product);
}
#endif

template <class T>
void multiply_baseline(const SmallProduct<T>& product) {
  multiply_tiled<T, 16, 4, 2>(product);
}

template <class T>
auto pick_multiply() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return &multiply_avx512<T>;
  if (avx2) return &multiply_avx2<T>;
#endif
  return &multiply_baseline<T>;
}

// A 4 x 4 block through registers.
template <class T>
FULMEN_INLINE void transpose_block(const T* in, std::int64_t in_row_stride, T* out, std::int64_t out_row_stride) {
  using V = typename VectorOf<T, 4 * sizeof(T)>::type;
  V a, b, c, d;
  load(a, in), load(b, in + in_row_stride), load(c, in + 2 * in_row_stride), load(d, in + 3 * in_row_stride);
  const V ac_low = __builtin_shufflevector(a, c, 0, 4, 1, 5), ac_high = __builtin_shufflevector(a, c, 2, 6, 3, 7);
  const V bd_low = __builtin_shufflevector(b, d, 0, 4, 1, 5), bd_high = __builtin_shufflevector(b, d, 2, 6, 3, 7);
  const V first = __builtin_shufflevector(ac_low, bd_low, 0, 4, 1, 5);
  const V second = __builtin_shufflevector(ac_low, bd_low, 2, 6, 3, 7);
  const V third = __builtin_shufflevector(ac_high, bd_high, 0, 4, 1, 5);
  const V fourth = __builtin_shufflevector(ac_high, bd_high, 2, 6, 3, 7);
  store(out, first), store(out + out_row_stride, second);
  store(out + 2 * out_row_stride, third), store(out + 3 * out_row_stride, fourth);
}

template <class T>
FULMEN_VECTORIZED void transpose_blocks(const T* in, std::int64_t in_row_stride, std::int64_t rows,
                                        std::int64_t columns, T* out, std::int64_t out_row_stride) {
  for (std::int64_t j = 0; j < columns; j += 4)
    for (std::int64_t i = 0; i < rows; i += 4)
      transpose_block(in + i * in_row_stride + j, in_row_stride, out + j * out_row_stride + i, out_row_stride);
}

}  // namespace

template <class T>
void multiply(const SmallProduct<T>& product) {
  static const auto chosen = pick_multiply<T>();
  chosen(product);
}

template <class T>
void transpose(const T* in, std::int64_t in_row_stride, std::int64_t rows, std::int64_t columns, T* out,
               std::int64_t out_row_stride) {
  const std::int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  transpose_blocks(in, in_row_stride, whole_rows, whole_columns, out, out_row_stride);
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j)
      out[j * out_row_stride + i] = in[i * in_row_stride + j];
}

template void multiply(const SmallProduct<float>&);
template void multiply(const SmallProduct<double>&);
template void transpose(const float*, std::int64_t, std::int64_t, std::int64_t, float*, std::int64_t);
template void transpose(const double*, std::int64_t, std::int64_t, std::int64_t, double*, std::int64_t);

}  // namespace fulmen::cpu
