// Products of matrices that stay in the cache, for the chunks of linear attention. They are register-blocked and run on
// one thread, with the scaling by decays and the causal triangle folded in.
#pragma once

#include <cstdint>

namespace fulmen::cpu {

// Which part of the contraction a row i needs, when one factor is a lower triangle with zeros above its diagonal.
enum class Contraction : std::uint8_t {
  full,
  up_to_diagonal,  // k <= i: the triangle times a matrix
  from_diagonal,   // k >= i: the transposed triangle times a matrix
};

// a [rows, depth] and b [depth, columns]. a may have any strides, so that a transposed factor costs nothing; b has unit
// inner stride.
template <class T>
struct Factors {
  const T* a = nullptr;
  std::int64_t a_row_stride = 0, a_depth_stride = 0;
  const T* b = nullptr;
  std::int64_t b_row_stride = 0;
  std::int64_t depth = 0;
};

// c = carry_scale * carry + row_scale .* (scaled.a scaled.b) + plain.a plain.b, then masked.
// Columns come in whole vectors: pad every row of b, c and carry to a multiple of padded_columns(1), with any finite
// values.
template <class T>
struct SmallProduct {
  std::int64_t rows = 0, columns = 0;
  Factors<T> scaled{};                          // depth 0 leaves it out
  const T* row_scale = nullptr;                 // [rows]
  Factors<T> plain{};                           // depth 0 leaves it out
  Contraction contraction = Contraction::full;  // of `plain`
  const T* carry = nullptr;                     // null leaves it out; may be c
  std::int64_t carry_row_stride = 0;
  T carry_scale = 1;
  // Causal mask: element (i, j) is multiplied by mask[j - i], which must be 0 for j > i. Columns far above the diagonal
  // are left unwritten: only a contraction of the same number of rows may read c. Null for none.
  const T* mask = nullptr;
  T* c = nullptr;
  std::int64_t c_row_stride = 0;
};

template <class T>
void multiply(const SmallProduct<T>& product);

// out [columns, rows] = in [rows, columns] transposed.
template <class T>
void transpose(const T* in, std::int64_t in_row_stride, std::int64_t rows, std::int64_t columns, T* out,
               std::int64_t out_row_stride);

// The least whole number of vectors, in elements, that holds `columns`.
template <class T>
constexpr std::int64_t padded_columns(std::int64_t columns) {
  constexpr std::int64_t vector = 64 / sizeof(T);
  return (columns + vector - 1) / vector * vector;
}

}  // namespace fulmen::cpu
