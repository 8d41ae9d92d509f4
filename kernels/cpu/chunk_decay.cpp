// Products of decays and of rows weighted by them. With a decay per channel, rows are taken 16 at a time: pairs within
// such a block one by one, pairs with tokens before it as a product of rows that are scaled to the block's start.
#include "kernels/cpu/chunk_decay.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/small_product.h"
#include "kernels/cpu/vectorize.h"

namespace fulmen::cpu {

namespace {

template <class T>
FULMEN_VECTORIZED void multiply_into(const T* a, const T* b, std::int64_t count, T* to) {
#pragma omp simd
  for (std::int64_t c = 0; c < count; ++c) to[c] = a[c] * b[c];
}

template <class T>
FULMEN_VECTORIZED void scale_into(const T* a, T factor, std::int64_t count, T* to) {
#pragma omp simd
  for (std::int64_t c = 0; c < count; ++c) to[c] = a[c] * factor;
}

// to += factor * a .* b
template <class T>
FULMEN_VECTORIZED void add_weighted(T factor, const T* a, const T* b, std::int64_t count, T* to) {
#pragma omp simd
  for (std::int64_t c = 0; c < count; ++c) to[c] += factor * a[c] * b[c];
}

template <class T>
FULMEN_VECTORIZED T weighted_dot(const T* a, const T* b, const T* weights, std::int64_t count) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t c = 0; c < count; ++c) sum += a[c] * b[c] * weights[c];
  return sum;
}

template <class T>
FULMEN_VECTORIZED double dot(const T* a, const T* b, std::int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t c = 0; c < count; ++c) sum += static_cast<double>(a[c]) * static_cast<double>(b[c]);
  return sum;
}

template <class T>
FULMEN_VECTORIZED void add_products(double sign, const T* a, const T* b, std::int64_t count, double* to) {
#pragma omp simd
  for (std::int64_t c = 0; c < count; ++c) to[c] += sign * static_cast<double>(a[c]) * static_cast<double>(b[c]);
}

}  // namespace

template <class T>
ChunkDecay<T>::ChunkDecay(std::int64_t key_width, bool per_channel, Carver<T>& carver)
    : key_width_(key_width),
      key_stride_(padded_columns<T>(key_width)),
      per_channel_(per_channel),
      stride_(per_channel ? key_stride_ : 1) {
  const std::int64_t table = chunk_tokens * stride_, rows = chunk_tokens * key_stride_;
  decay_ = carver.take(table), through_ = carver.take(table), before_ = carver.take(table);
  behind_ = carver.take(table);
  d_through_ = carver.template take<double>(table), d_before_ = carver.template take<double>(table);
  transposed_ = carver.take(key_stride_ * chunk_tokens);
  d_left_ = carver.take(rows), d_right_ = carver.take(rows);
  if (!per_channel) {
    between_ = carver.take(chunk_tokens * chunk_tokens), left_ = carver.take(chunk_tokens * chunk_tokens);
    return;
  }
  weights_ = carver.take(key_stride_);
  left_ = carver.take(rows), right_ = carver.take(rows), lead_ = carver.take(rows), trail_ = carver.take(rows);
}

template <class T>
void ChunkDecay<T>::load(const T* log_decay, std::int64_t stride, std::int64_t length) {
  length_ = length;
  for (std::int64_t i = 0; i < length; ++i)
    for (std::int64_t c = 0; c < width(); ++c) row(decay_, i)[c] = std::exp(log_decay[i * stride + c]);
  std::fill_n(row(before_, 0), width(), T(1));
  std::fill_n(row(behind_, length - 1), width(), T(1));
  for (std::int64_t i = 0; i < length; ++i) {
    if (i > 0) std::copy_n(row(through_, i - 1), width(), row(before_, i));
    multiply_into(row(before_, i), row(decay_, i), width(), row(through_, i));
  }
  for (std::int64_t i = length - 1; i > 0; --i)
    multiply_into(row(behind_, i), row(decay_, i), width(), row(behind_, i - 1));
  if (per_channel_) return;
  std::fill_n(between_, chunk_tokens * chunk_tokens, T(0));
  for (std::int64_t j = 0; j < length; ++j) {
    T* const pairs = between_ + j * chunk_tokens;
    if (j > 0) scale_into(pairs - chunk_tokens, decay_[j], j, pairs);
    pairs[j] = 1;
  }
}

template <class T>
void ChunkDecay<T>::scale_rows(const T* factors, const T* from, T* to) const {
  for (std::int64_t i = 0; i < length_; ++i) {
    const std::int64_t at = i * key_stride_;
    if (per_channel_)
      multiply_into(from + at, row(factors, i), key_width_, to + at);
    else
      scale_into(from + at, factors[i], key_width_, to + at);
  }
}

template <class T>
void ChunkDecay<T>::from_start(Reach reach, const T* from, T* to) const {
  scale_rows(reach == Reach::through_itself ? through_ : before_, from, to);
}

template <class T>
void ChunkDecay<T>::to_end(const T* from, T* to) const {
  scale_rows(behind_, from, to);
}

template <class T>
void ChunkDecay<T>::over_chunk(T* state, std::int64_t columns, std::int64_t stride) const {
  const T* const factors = row(through_, length_ - 1);
  for (std::int64_t c = 0; c < key_width_; ++c)
    scale_into(state + c * stride, factors[per_channel_ ? c : 0], columns, state + c * stride);
}

template <class T>
void ChunkDecay<T>::scores(Reach reach, bool diagonal, const T* left, const T* right, T* scores) const {
  if (!per_channel_) return head_scores(reach, diagonal, left, right, scores);
  for (std::int64_t first = 0; first < length_; first += block_tokens) {
    const std::int64_t last = std::min(length_, first + block_tokens);
    for (std::int64_t j = first; j < last; ++j)
      std::fill_n(scores + j * chunk_tokens + first, chunk_tokens - first, T(0));
    block_scores(reach, first, last, left, right, scores);
  }
  for (std::int64_t j = 0; j < length_ && diagonal; ++j)
    scores[j * chunk_tokens + j] = static_cast<T>(dot(left + j * key_stride_, right + j * key_stride_, key_width_));
}

template <class T>
void ChunkDecay<T>::head_scores(Reach reach, bool diagonal, const T* left, const T* right, T* scores) const {
  transpose(right, key_stride_, length_, key_width_, transposed_, chunk_tokens);
  multiply(SmallProduct<T>{.rows = length_,
                           .columns = padded_columns<T>(length_),
                           .plain = {left, key_stride_, 1, transposed_, chunk_tokens, key_width_},
                           .c = scores,
                           .c_row_stride = chunk_tokens});
  for (std::int64_t j = 0; j < length_; ++j) {
    T* const pairs = scores + j * chunk_tokens;
    const T own = pairs[j];
    if (j > 0) multiply_into(pairs, pair_decays(reach, j), j, pairs);
    std::fill_n(pairs + j, chunk_tokens - j, T(0));
    if (diagonal) pairs[j] = own;
  }
}

template <class T>
template <class F>
void ChunkDecay<T>::for_each_pair(Reach reach, std::int64_t first, std::int64_t last, F&& f) const {
  for (std::int64_t i = first; i < last; ++i) {
    std::fill_n(weights_, key_width_, T(1));
    for (std::int64_t j = i + 1; j < last; ++j) {
      const std::int64_t newest = reach == Reach::through_itself ? j : j - 1;
      if (newest > i) multiply_into(weights_, row(decay_, newest), key_width_, weights_);
      f(j, i);
    }
  }
}

template <class T>
void ChunkDecay<T>::scale_to_block(Reach reach, std::int64_t first, std::int64_t last, const T* left,
                                   const T* right) const {
  for (std::int64_t j = first; j < last; ++j) {
    T* const lead = lead_ + j * key_stride_;
    const std::int64_t newest = reach == Reach::through_itself ? j : j - 1;
    if (j == first)
      std::fill_n(lead, key_width_, T(1));
    else
      std::copy_n(lead - key_stride_, key_width_, lead);
    if (newest >= first) multiply_into(lead, row(decay_, newest), key_width_, lead);
    multiply_into(left + j * key_stride_, lead, key_width_, left_ + j * key_stride_);
  }
  std::fill_n(trail_ + (first - 1) * key_stride_, key_width_, T(1));
  for (std::int64_t i = first - 1; i >= 0; --i) {
    T* const trail = trail_ + i * key_stride_;
    if (i + 1 < first) multiply_into(trail + key_stride_, row(decay_, i + 1), key_width_, trail);
    multiply_into(right + i * key_stride_, trail, key_width_, right_ + i * key_stride_);
  }
}

template <class T>
void ChunkDecay<T>::block_scores(Reach reach, std::int64_t first, std::int64_t last, const T* left, const T* right,
                                 T* scores) const {
  if (first > 0) {
    scale_to_block(reach, first, last, left, right);
    transpose(right_, key_stride_, first, key_width_, transposed_, chunk_tokens);
    multiply(
        SmallProduct<T>{.rows = last - first,
                        .columns = padded_columns<T>(first),
                        .plain = {left_ + first * key_stride_, key_stride_, 1, transposed_, chunk_tokens, key_width_},
                        .c = scores + first * chunk_tokens,
                        .c_row_stride = chunk_tokens});
  }
  for_each_pair(reach, first, last, [&](std::int64_t j, std::int64_t i) {
    scores[j * chunk_tokens + i] = weighted_dot(left + j * key_stride_, right + i * key_stride_, weights_, key_width_);
  });
}

template <class T>
void ChunkDecay<T>::scores_backward(Reach reach, bool diagonal, const T* left, const T* right, const T* scores,
                                    const T* d_scores, T* d_left, T* d_right) {
  if (!per_channel_) {
    head_scores_backward(reach, left, right, scores, d_scores, d_left, d_right);
  } else {
    std::fill_n(d_left_, length_ * key_stride_, T(0));
    std::fill_n(d_right_, length_ * key_stride_, T(0));
    for (std::int64_t first = 0; first < length_; first += block_tokens)
      block_scores_backward(reach, first, std::min(length_, first + block_tokens), left, right, d_scores);
    for (std::int64_t i = 0; i < length_; ++i) {
      const std::int64_t at = i * key_stride_;
      add_products(1.0, left + at, d_left_ + at, key_width_, gradient(reach, i));
      add_products(-1.0, right + at, d_right_ + at, key_width_, gradient(Reach::through_itself, i));
    }
    for (std::int64_t at = 0; at < length_ * key_stride_; ++at) d_left[at] += d_left_[at], d_right[at] += d_right_[at];
  }
  for (std::int64_t j = 0; j < length_ && diagonal; ++j) {
    const std::int64_t at = j * key_stride_;
    const T d = d_scores[j * chunk_tokens + j];
    for (std::int64_t c = 0; c < key_width_; ++c)
      d_left[at + c] += d * right[at + c], d_right[at + c] += d * left[at + c];
  }
}

template <class T>
void ChunkDecay<T>::head_scores_backward(Reach reach, const T* left, const T* right, const T* scores, const T* d_scores,
                                         T* d_left, T* d_right) {
  T* const d_products = left_;
  for (std::int64_t j = 0; j < length_; ++j) {
    const std::int64_t at = j * chunk_tokens;
    std::fill_n(d_products + at, chunk_tokens, T(0));
    if (j == 0) continue;
    multiply_into(d_scores + at, pair_decays(reach, j), j, d_products + at);
    *gradient(reach, j) += dot(scores + at, d_scores + at, j);
    for (std::int64_t i = 0; i < j; ++i)
      d_through_[i] -= static_cast<double>(scores[at + i]) * static_cast<double>(d_scores[at + i]);
  }
  const auto add = [&](std::int64_t row_stride, std::int64_t depth_stride, const T* rows, T* sums) {
    multiply(SmallProduct<T>{.rows = length_,
                             .columns = key_stride_,
                             .plain = {d_products, row_stride, depth_stride, rows, key_stride_, length_},
                             .carry = sums,
                             .carry_row_stride = key_stride_,
                             .c = sums,
                             .c_row_stride = key_stride_});
  };
  add(chunk_tokens, 1, right, d_left);
  add(1, chunk_tokens, left, d_right);
}

template <class T>
void ChunkDecay<T>::block_scores_backward(Reach reach, std::int64_t first, std::int64_t last, const T* left,
                                          const T* right, const T* d_scores) const {
  if (first > 0) {
    scale_to_block(reach, first, last, left, right);
    T* const scaled = transposed_;  // [rows, key_width], before it is scaled
    const T* const block = d_scores + first * chunk_tokens;
    multiply(SmallProduct<T>{.rows = last - first,
                             .columns = key_stride_,
                             .plain = {block, chunk_tokens, 1, right_, key_stride_, first},
                             .c = scaled,
                             .c_row_stride = key_stride_});
    for (std::int64_t j = first; j < last; ++j)
      add_weighted(T(1), scaled + (j - first) * key_stride_, lead_ + j * key_stride_, key_width_,
                   d_left_ + j * key_stride_);
    multiply(SmallProduct<T>{.rows = first,
                             .columns = key_stride_,
                             .plain = {block, 1, chunk_tokens, left_ + first * key_stride_, key_stride_, last - first},
                             .c = scaled,
                             .c_row_stride = key_stride_});
    for (std::int64_t i = 0; i < first; ++i)
      add_weighted(T(1), scaled + i * key_stride_, trail_ + i * key_stride_, key_width_, d_right_ + i * key_stride_);
  }
  for_each_pair(reach, first, last, [&](std::int64_t j, std::int64_t i) {
    const T d = d_scores[j * chunk_tokens + i];
    add_weighted(d, right + i * key_stride_, weights_, key_width_, d_left_ + j * key_stride_);
    add_weighted(d, left + j * key_stride_, weights_, key_width_, d_right_ + i * key_stride_);
  });
}

template <class T>
void ChunkDecay<T>::clear_gradients() {
  std::fill_n(d_through_, length_ * stride_, 0.0);
  std::fill_n(d_before_, length_ * stride_, 0.0);
}

template <class T>
void ChunkDecay<T>::add_rows(double sign, const T* to, const T* d, double* gradients) const {
  for (std::int64_t i = 0; i < length_; ++i) {
    const std::int64_t at = i * key_stride_;
    if (per_channel_)
      add_products(sign, to + at, d + at, key_width_, gradients + i * stride_);
    else
      gradients[i] += sign * dot(to + at, d + at, key_width_);
  }
}

template <class T>
void ChunkDecay<T>::add_from_start(Reach reach, const T* to, const T* d) {
  add_rows(1.0, to, d, gradient(reach, 0));
}

template <class T>
void ChunkDecay<T>::add_to_end(const T* to, const T* d) {
  add_rows(-1.0, to, d, d_through_);
  for (std::int64_t i = 0; i < length_; ++i) {
    const std::int64_t at = i * key_stride_;
    double* const last = d_through_ + (length_ - 1) * stride_;
    if (per_channel_)
      add_products(1.0, to + at, d + at, key_width_, last);
    else
      *last += dot(to + at, d + at, key_width_);
  }
}

template <class T>
void ChunkDecay<T>::add_over_chunk(const T* state, const T* d_state, std::int64_t columns, std::int64_t stride) {
  const T* const factors = row(through_, length_ - 1);
  double* const last = d_through_ + (length_ - 1) * stride_;
  for (std::int64_t c = 0; c < key_width_; ++c) {
    const std::int64_t channel = per_channel_ ? c : 0;
    last[channel] += static_cast<double>(factors[channel]) * dot(state + c * stride, d_state + c * stride, columns);
  }
}

template <class T>
void ChunkDecay<T>::store_gradients(T* d_log_decay, std::int64_t stride, bool accumulates) const {
  for (std::int64_t c = 0; c < width(); ++c) {
    double sum = 0;
    for (std::int64_t i = length_ - 1; i >= 0; --i) {
      sum += d_through_[i * stride_ + c];
      T& to = d_log_decay[i * stride + c];
      to = static_cast<T>(sum + (accumulates ? static_cast<double>(to) : 0.0));
      sum += d_before_[i * stride_ + c];
    }
  }
}

template class ChunkDecay<float>;
template class ChunkDecay<double>;

}  // namespace fulmen::cpu
