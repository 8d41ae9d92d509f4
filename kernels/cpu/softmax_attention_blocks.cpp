// Ranges of keys and the loading of blocks for softmax attention.
#include "kernels/cpu/softmax_attention_blocks.h"

#include <algorithm>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vectorize.h"

namespace fulmen::cpu {
namespace {

template <class T>
FULMEN_VECTORIZED void scale_rows_to(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t width,
                                     T factor, T* to, std::int64_t to_stride) {
  for (std::int64_t i = 0; i < rows; ++i)
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) to[i * to_stride + j] = factor * from[i * from_stride + j];
}

KeyRange range_of(const SoftmaxAttentionInputs& inputs, std::int64_t row, std::int64_t query) {
  const std::int64_t length = inputs.query.size(1), keys = inputs.key.size(1), at = row * length + query;
  if (inputs.sees_all) return {0, keys};
  const std::int64_t first = inputs.first_visible ? inputs.first_visible.as<std::int64_t>()[at] : 0;
  if (inputs.query_positions.is_null()) return {std::max<std::int64_t>(first, 0), query + 1};
  const std::int64_t* const begin = inputs.key_positions.as<std::int64_t>() + row * keys;
  const std::int64_t position = inputs.query_positions.as<std::int64_t>()[at];
  return {std::lower_bound(begin, begin + keys, first) - begin,
          std::upper_bound(begin, begin + keys, position) - begin};
}

KeyRange hull(const KeyRange* ranges, std::int64_t count) {
  KeyRange all;
  for (std::int64_t i = 0; i < count; ++i) {
    if (ranges[i].empty()) continue;
    all = all.empty() ? ranges[i] : KeyRange{std::min(all.begin, ranges[i].begin), std::max(all.end, ranges[i].end)};
  }
  return all;
}

}  // namespace

SoftmaxAttentionShape::SoftmaxAttentionShape(const SoftmaxAttentionInputs& inputs)
    : batch(inputs.query.size(0)),
      length(inputs.query.size(1)),
      keys(inputs.key.size(1)),
      heads(inputs.query.size(2)),
      kv_heads(inputs.key.size(2)),
      key_width(inputs.query.size(3)),
      value_width(inputs.value.size(3)) {
  const bool wide = inputs.query.dtype() == DType::fp64;
  key_stride = wide ? padded_columns<double>(key_width) : padded_columns<float>(key_width);
  value_stride = wide ? padded_columns<double>(value_width) : padded_columns<float>(value_width);
}

VisibleKeys::VisibleKeys(const Execution& execution, const SoftmaxAttentionInputs& inputs)
    : length_(inputs.query.size(1)), blocks_of_row_((length_ + block_queries - 1) / block_queries) {
  const std::int64_t batch = inputs.query.size(0);
  const auto take = [&](std::int64_t count) {
    constexpr auto words = static_cast<std::int64_t>(sizeof(KeyRange) / sizeof(std::int64_t));
    return reinterpret_cast<KeyRange*>(execution.scratch->take(DType::int64, {words * count}).as<std::int64_t>());
  };
  ranges_ = take(batch * length_), blocks_ = take(batch * blocks_of_row_);
  if (execution.plans()) return;
  parallel_rows(batch * blocks_of_row_, 64 * block_queries, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t block = first; block < last; ++block) {
      const std::int64_t row = block / blocks_of_row_, begin = block % blocks_of_row_ * block_queries;
      const std::int64_t count = std::min(block_queries, length_ - begin);
      KeyRange* const own = ranges_ + row * length_ + begin;
      for (std::int64_t i = 0; i < count; ++i) own[i] = range_of(inputs, row, begin + i);
      blocks_[block] = hull(own, count);
    }
  });
}

int softmax_attention_threads(std::int64_t tasks, std::int64_t operations) {
  constexpr std::int64_t least_products = 1 << 19;  // per thread, some 10 microseconds
  const std::int64_t useful = tasks * operations / least_products;
  return static_cast<int>(std::clamp<std::int64_t>(std::min(useful, tasks), 1, omp_get_max_threads()));
}

template <class T>
void load_scaled_rows(const HeadRows<T>& from, std::int64_t first, std::int64_t rows, std::int64_t width, T factor,
                      T* to, std::int64_t to_stride) {
  scale_rows_to(from.at(first), from.stride, rows, width, factor, to, to_stride);
}

template <class T>
void load_transposed(const HeadRows<T>& from, std::int64_t first, std::int64_t rows, std::int64_t width, T* copy,
                     std::int64_t stride, T* to) {
  load_scaled_rows(from, first, rows, width, T(1), copy, stride);
  std::fill(copy + rows * stride, copy + block_keys * stride, T(0));
  transpose(copy, stride, block_keys, width, to, block_keys);
}

template void load_scaled_rows(const HeadRows<float>&, std::int64_t, std::int64_t, std::int64_t, float, float*,
                               std::int64_t);
template void load_scaled_rows(const HeadRows<double>&, std::int64_t, std::int64_t, std::int64_t, double, double*,
                               std::int64_t);
template void load_transposed(const HeadRows<float>&, std::int64_t, std::int64_t, std::int64_t, float*, std::int64_t,
                              float*);
template void load_transposed(const HeadRows<double>&, std::int64_t, std::int64_t, std::int64_t, double*, std::int64_t,
                              double*);

}  // namespace fulmen::cpu
