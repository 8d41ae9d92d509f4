// Blocked softmax attention, forward (FlashAttention-2, arXiv 2307.08691, algorithm 1). Threads share out the blocks of
// queries of all heads. Each walks the keys that its block sees, with the running maximum and sum of every query.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <omp.h>

#include "kernels/cpu/softmax_attention_blocks.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/softmax_attention.h"

namespace fulmen::cpu {
namespace {

template <class T>
struct Workspace {
  Workspace(const SoftmaxAttentionShape& shape, void* memory) {
    Carver<T> carver(memory);
    query = carver.take(block_queries * shape.key_stride);
    key = carver.take(block_keys * shape.key_stride), key_transposed = carver.take(shape.key_width * block_keys);
    value = carver.take(block_keys * shape.value_stride);
    scores = carver.take(block_queries * block_keys);
    output = carver.take(block_queries * shape.value_stride);
    maximum = carver.take(block_queries), sum = carver.take(block_queries);
    bytes = carver.bytes();
  }

  T *query, *key, *key_transposed, *value, *scores, *output, *maximum, *sum;
  std::int64_t bytes;
};

template <class T>
FULMEN_VECTORIZED T maximum_of(const T* x, std::int64_t count) {
  T maximum = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : maximum)
  for (std::int64_t j = 0; j < count; ++j) maximum = x[j] > maximum ? x[j] : maximum;
  return maximum;
}

// x = exp(x - shift), and their sum.
template <class T>
FULMEN_VECTORIZED T exponentiate(T* x, std::int64_t count, T shift) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < count; ++j) {
    x[j] = exponential(x[j] - shift);
    sum += x[j];
  }
  return sum;
}

template <class T>
FULMEN_VECTORIZED void scale_row(const T* x, T factor, T* out, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) out[j] = x[j] * factor;
}

// One block of queries of one head.
template <class T>
class QueryBlock {
 public:
  QueryBlock(const SoftmaxAttentionShape& shape, const SoftmaxAttentionInputs& inputs, const VisibleKeys& visible,
             const Workspace<T>& work, std::int64_t row, std::int64_t head, std::int64_t block)
      : shape_(shape),
        work_(work),
        first_(block * block_queries),
        rows_(std::min(block_queries, shape.length - first_)),
        ranges_(visible.of_query(row, first_)),
        seen_(visible.of_block(row, block)),
        key_(inputs.key, row, head / shape.group()),
        value_(inputs.value, row, head / shape.group()) {
    load_scaled_rows(HeadRows<T>(inputs.query, row, head), first_, rows_, shape.key_width, static_cast<T>(inputs.scale),
                     work.query, shape.key_stride);
    std::fill_n(work.output, rows_ * shape.value_stride, T(0));
    std::fill_n(work.maximum, rows_, -std::numeric_limits<T>::infinity());
    std::fill_n(work.sum, rows_, T(0));
  }

  void attend() {
    for (std::int64_t at = seen_.begin; at < seen_.end; at += block_keys)
      take_up(at, std::min(block_keys, seen_.end - at));
  }

  // log_sum_exp [rows].
  void store(const HeadRows<T>& output, T* log_sum_exp) const {
    for (std::int64_t i = 0; i < rows_; ++i) {
      const bool seen = work_.sum[i] > T(0) || work_.sum[i] != work_.sum[i];  // NaN passes
      scale_row(work_.output + i * shape_.value_stride, seen ? T(1) / work_.sum[i] : T(0), output.at(first_ + i),
                shape_.value_width);
      log_sum_exp[first_ + i] = seen ? work_.maximum[i] + std::log(work_.sum[i]) : -std::numeric_limits<T>::infinity();
    }
  }

 private:
  void take_up(std::int64_t at, std::int64_t count) {
    load_transposed(key_, at, count, shape_.key_width, work_.key, shape_.key_stride, work_.key_transposed);
    load_scaled_rows(value_, at, count, shape_.value_width, T(1), work_.value, shape_.value_stride);
    multiply(SmallProduct<T>{
        .rows = rows_,
        .columns = block_keys,
        .plain = {work_.query, shape_.key_stride, 1, work_.key_transposed, block_keys, shape_.key_width},
        .c = work_.scores,
        .c_row_stride = block_keys});
    for (std::int64_t i = 0; i < rows_; ++i) weigh(i, within_block(ranges_[i], at, count));
    multiply(SmallProduct<T>{.rows = rows_,
                             .columns = shape_.value_stride,
                             .plain = {work_.scores, block_keys, 1, work_.value, shape_.value_stride, count},
                             .carry = work_.output,
                             .carry_row_stride = shape_.value_stride,
                             .c = work_.output,
                             .c_row_stride = shape_.value_stride});
  }

  // Scores of a query become weights relative to its maximum so far, and what was summed before is scaled to it.
  void weigh(std::int64_t i, KeyRange range) {
    T* const scores = work_.scores + i * block_keys;
    if (range.empty()) {
      std::fill_n(scores, block_keys, T(0));
      return;
    }
    std::fill(scores, scores + range.begin, T(0));
    std::fill(scores + range.end, scores + block_keys, T(0));
    const std::int64_t count = range.end - range.begin;
    const T before = work_.maximum[i], maximum = std::max(before, maximum_of(scores + range.begin, count));
    const T sum = exponentiate(scores + range.begin, count, maximum);
    const T factor = work_.sum[i] > T(0) ? std::exp(before - maximum) : T(1);
    T* const output = work_.output + i * shape_.value_stride;
    if (factor != T(1)) scale_row(output, factor, output, shape_.value_stride);
    work_.sum[i] = work_.sum[i] * factor + sum;
    work_.maximum[i] = maximum;
  }

  const SoftmaxAttentionShape& shape_;
  const Workspace<T>& work_;
  std::int64_t first_, rows_;
  const KeyRange* ranges_;
  KeyRange seen_;
  HeadRows<T> key_, value_;
};

}  // namespace

void softmax_attention_forward(const Execution& execution, const SoftmaxAttentionInputs& inputs, const Tensor& output,
                               const Tensor& log_sum_exp) {
  const SoftmaxAttentionShape shape(inputs);
  const std::int64_t blocks = shape.query_blocks(), tasks = shape.batch * shape.heads * blocks;
  const int threads = softmax_attention_threads(
      tasks, std::min(block_queries, shape.length) * shape.keys * (shape.key_width + shape.value_width) / 2);
  Arena::Frame frame(*execution.scratch);
  const VisibleKeys visible(execution, inputs);
  dispatch_fp32_fp64(inputs.query.dtype(), [&]<class T>(T) {
    const std::int64_t bytes = Workspace<T>(shape, nullptr).bytes;
    auto* const memory = execution.scratch->take(DType::uint8, {threads, bytes}).template as<std::uint8_t>();
    if (execution.plans()) return;
#pragma omp parallel num_threads(threads)
    {
      // The padding of every matrix must be finite.
      std::uint8_t* const own = memory + omp_get_thread_num() * bytes;
      std::memset(own, 0, bytes);
      const Workspace<T> work(shape, own);
      // Late blocks see the most keys: long blocks come first.
#pragma omp for schedule(dynamic)
      for (std::int64_t task = 0; task < tasks; ++task) {
        const std::int64_t block = blocks - 1 - task / (shape.batch * shape.heads);
        const std::int64_t row = task % (shape.batch * shape.heads) / shape.heads, head = task % shape.heads;
        QueryBlock<T> queries(shape, inputs, visible, work, row, head, block);
        queries.attend();
        queries.store(HeadRows<T>(output, row, head), log_sum_exp.as<T>() + (row * shape.heads + head) * shape.length);
      }
    }
  });
}

}  // namespace fulmen::cpu
