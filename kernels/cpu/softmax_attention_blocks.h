// Shared by the forward and the backward pass of blocked softmax attention: which keys a query sees, as ranges, and the
// loading of blocks.
#pragma once

#include <algorithm>

#include "kernels/cpu/linear_attention_chunk.h"
#include "kernels/softmax_attention.h"

namespace fulmen::cpu {

// Queries and keys of a block: enough for the products to outweigh the loading, few enough for the cache.
inline constexpr std::int64_t block_queries = 128;
inline constexpr std::int64_t block_keys = 64;

struct SoftmaxAttentionShape {
  explicit SoftmaxAttentionShape(const SoftmaxAttentionInputs& inputs);

  std::int64_t query_blocks() const { return (length + block_queries - 1) / block_queries; }
  std::int64_t key_blocks() const { return (keys + block_keys - 1) / block_keys; }
  std::int64_t group() const { return heads / kv_heads; }

  std::int64_t batch, length, keys, heads, kv_heads, key_width, value_width;
  // Row strides of a block's matrices: whole vectors.
  std::int64_t key_stride, value_stride;
};

// Indices of keys, in the row.
struct KeyRange {
  std::int64_t begin = 0, end = 0;

  bool empty() const { return begin >= end; }
};

// Key positions increase along a row, so that a query sees a range of keys.
class VisibleKeys {
 public:
  // Takes scratch memory of the caller's frame.
  VisibleKeys(const Execution& execution, const SoftmaxAttentionInputs& inputs);

  const KeyRange* of_query(std::int64_t row, std::int64_t query) const { return ranges_ + row * length_ + query; }
  // All that a block of queries sees.
  KeyRange of_block(std::int64_t row, std::int64_t block) const { return blocks_[row * blocks_of_row_ + block]; }

 private:
  std::int64_t length_, blocks_of_row_;
  KeyRange* ranges_;
  KeyRange* blocks_;
};

// The part of a query's range that lies in the block of `count` keys from `first`, counted from there.
inline KeyRange within_block(KeyRange range, std::int64_t first, std::int64_t count) {
  return {std::clamp<std::int64_t>(range.begin - first, 0, count),
          std::clamp<std::int64_t>(range.end - first, 0, count)};
}

// Threads for `tasks` of `operations` multiplications each.
int softmax_attention_threads(std::int64_t tasks, std::int64_t operations);

// to [rows, width] = factor * from, with row strides.
template <class T>
void load_scaled_rows(const HeadRows<T>& from, std::int64_t first, std::int64_t rows, std::int64_t width, T factor,
                      T* to, std::int64_t to_stride);

// to [width, block_keys] = keys or values [first, first + rows) transposed; the columns from `rows` on are zero. `copy`
// [block_keys, stride] gets them as they are, with zeros behind.
template <class T>
void load_transposed(const HeadRows<T>& from, std::int64_t first, std::int64_t rows, std::int64_t width, T* copy,
                     std::int64_t stride, T* to);

}  // namespace fulmen::cpu
