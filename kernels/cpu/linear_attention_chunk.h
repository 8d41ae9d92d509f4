// Shared by the forward and the backward pass of chunked linear attention: the chunks of a row, and tables of decay
// powers. Also the loading of strided rows with activation and LRPE.
#pragma once

#include "kernels/cpu/sequence_chunks.h"
#include "kernels/cpu/small_product.h"
#include "kernels/linear_attention.h"

namespace fulmen::cpu {

struct AttentionShape {
  explicit AttentionShape(const LinearAttentionInputs& inputs);

  std::int64_t batch, length, heads, key_width, value_width;
  std::int64_t state_width;  // key_width, doubled by LRPE
  // Row strides of the chunk's matrices: whole vectors.
  std::int64_t key_stride, value_stride;  // of [tokens, state_width] and of [tokens, value_width]
};

// How many threads share out the heads of all rows: one where they would wait longer than they work.
int attention_threads(const AttentionShape& shape);

// Powers of one head's decay, none of them above 1.
template <class T>
class DecayTable {
 public:
  // memory: elements() of T.
  DecayTable(T* memory, double slope);
  static constexpr std::int64_t elements() { return 4 * chunk_tokens + 1; }

  T power(std::int64_t n) const { return powers_[n]; }
  const T* from_start() const { return powers_ + 1; }                            // [i] = decay^(i + 1)
  const T* to_end(std::int64_t length) const { return causal_ - (length - 1); }  // [i] = decay^(length - 1 - i)
  const T* causal() const { return causal_; }                                    // [j - i] = decay^(i - j), j <= i

 private:
  T* powers_;  // decay^0 ... decay^chunk_tokens
  T* causal_;  // the same backwards, ending in decay^0, then zeros
};

// to [rows, width] = activation(from); derivatives [rows, width], unless null, its derivative. All with row strides.
template <class T>
void load_rows(Activation activation, const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t width,
               T* to, T* derivatives, std::int64_t to_stride);

// x [rows, width] *= factors [rows].
template <class T>
void scale_rows(T* x, std::int64_t stride, std::int64_t rows, std::int64_t width, const T* factors);

// LRPE's cosines and sines of `rows` positions, [rows, width] with row stride `width`. angles: scratch of that size.
template <class T>
void lrpe_tables(const std::int64_t* positions, std::int64_t position_stride, const double* theta, std::int64_t rows,
                 std::int64_t width, double* angles, T* cosines, T* sines);

// to [rows, 2 width] = [x cos, x sin].
template <class T>
void lrpe_expand(const T* x, std::int64_t x_stride, const T* cosines, const T* sines, std::int64_t rows,
                 std::int64_t width, T* to, std::int64_t to_stride);

// Undoes LRPE on a gradient d [rows, 2 width] in place: d_x = d_cos cos + d_sin sin in the first half. Adds to d_theta:
// position * x * (d_sin cos - d_cos sin).
template <class T>
void lrpe_backward(T* d, std::int64_t d_stride, const T* x, const T* cosines, const T* sines,
                   const std::int64_t* positions, std::int64_t position_stride, std::int64_t rows, std::int64_t width,
                   double* d_theta);

// d_theta [heads, key_width] += the rows' shares, in the order of the rows.
void add_theta_gradients(const AttentionShape& shape, const double* shares, double* d_theta);

// Scratch of one chunk's LRPE, which turns a query or key of width w into width 2 w.
template <class T>
struct LrpeScratch {
  double* angles = nullptr;
  T *cosines = nullptr, *sines = nullptr;  // [chunk_tokens, key_width]
};

}  // namespace fulmen::cpu
