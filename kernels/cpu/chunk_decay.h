// Decays that tokens choose, within a chunk: their products from the chunk's start and to its end, and products of rows
// in which each pair of tokens is weighted by the decay between them. Decays are multiplied, never divided, and no
// difference of their logarithms is formed: all products stay at most 1, however small the decays are.
#pragma once

#include <cstdint>

#include "kernels/cpu/sequence_chunks.h"

namespace fulmen::cpu {

// Up to which token a row's own decays reach when it looks back.
enum class Reach : std::uint8_t {
  through_itself,  // the state after the token: pairs (j, i) with i <= j, decays of i + 1 to j
  before_itself,   // the state before it: i < j, decays of i + 1 to j - 1
};

// Decays of one head. per_channel: of each channel of the keys, else a single one.
template <class T>
class ChunkDecay {
 public:
  ChunkDecay(std::int64_t key_width, bool per_channel, Carver<T>& carver);

  // log_decay: of `length` tokens, `stride` elements apart.
  void load(const T* log_decay, std::int64_t stride, std::int64_t length);

  // to [length, key_width] = from .* the decays from the chunk's start; rows key_stride apart.
  void from_start(Reach reach, const T* from, T* to) const;
  // from .* the decays behind each token to the chunk's end.
  void to_end(const T* from, T* to) const;
  // state [key_width, columns] .*= the decays of the whole chunk.
  void over_chunk(T* state, std::int64_t columns, std::int64_t stride) const;

  // scores [length, chunk_tokens]: sum over channels of left_j right_i and the decay between, for i < j, and for i = j
  // without a decay where `diagonal`; else zero.
  void scores(Reach reach, bool diagonal, const T* left, const T* right, T* scores) const;
  // Adds to d_left and d_right, and to the gradients of the decays' logarithms.
  void scores_backward(Reach reach, bool diagonal, const T* left, const T* right, const T* scores, const T* d_scores,
                       T* d_left, T* d_right);

  // The gradients of the logarithms. to: a result of from_start or to_end; d: its gradient.
  void clear_gradients();
  void add_from_start(Reach reach, const T* to, const T* d);
  void add_to_end(const T* to, const T* d);
  void add_over_chunk(const T* state, const T* d_state, std::int64_t columns, std::int64_t stride);  // before, after
  // d_log_decay of the tokens, `stride` elements apart: written, or added to.
  void store_gradients(T* d_log_decay, std::int64_t stride, bool accumulates) const;

  std::int64_t key_stride() const { return key_stride_; }

 private:
  static constexpr std::int64_t block_tokens = 16;

  std::int64_t width() const { return per_channel_ ? key_width_ : 1; }
  const T* row(const T* table, std::int64_t i) const { return table + i * stride_; }
  T* row(T* table, std::int64_t i) const { return table + i * stride_; }
  double* gradient(Reach reach, std::int64_t i) const {
    return (reach == Reach::through_itself ? d_through_ : d_before_) + i * stride_;
  }
  // [j]: the decays between row j > 0 and the tokens before it.
  const T* pair_decays(Reach reach, std::int64_t j) const {
    return between_ + (reach == Reach::through_itself ? j : j - 1) * chunk_tokens;
  }
  void scale_rows(const T* factors, const T* from, T* to) const;
  void add_rows(double sign, const T* to, const T* d, double* gradients) const;
  void head_scores(Reach reach, bool diagonal, const T* left, const T* right, T* scores) const;
  void head_scores_backward(Reach reach, const T* left, const T* right, const T* scores, const T* d_scores, T* d_left,
                            T* d_right);
  // A block of rows, tokens [first, last), with all tokens in front of it.
  void scale_to_block(Reach reach, std::int64_t first, std::int64_t last, const T* left, const T* right) const;
  void block_scores(Reach reach, std::int64_t first, std::int64_t last, const T* left, const T* right, T* scores) const;
  void block_scores_backward(Reach reach, std::int64_t first, std::int64_t last, const T* left, const T* right,
                             const T* d_scores) const;
  // Calls f(j, i, decays between) for the pairs i < j of a block.
  template <class F>
  void for_each_pair(Reach reach, std::int64_t first, std::int64_t last, F&& f) const;

  std::int64_t key_width_, key_stride_;
  bool per_channel_;
  std::int64_t stride_;  // of the tables' rows
  std::int64_t length_ = 0;
  T *decay_, *through_, *before_, *behind_;  // [chunk_tokens, width]: own, up to and with it, before it, behind it
  T* between_ = nullptr;                     // [chunk_tokens, chunk_tokens]: of pairs, where there is a single decay
  double *d_through_, *d_before_;            // [chunk_tokens, width]
  T* weights_ = nullptr;                     // [key_width]: decays between the tokens of a pair
  T *left_ = nullptr, *right_ = nullptr;     // [chunk_tokens, key_width], scaled
  T *d_left_ = nullptr, *d_right_ = nullptr;
  T *lead_ = nullptr, *trail_ = nullptr;  // the factors of left_ and right_
  T* transposed_;                         // [key_width, chunk_tokens], or [chunk_tokens, key_width]
};

}  // namespace fulmen::cpu
