// Blocked softmax attention, backward (FlashAttention-2, arXiv 2307.08691, algorithm 2), as two passes in which every
// thread writes its own sums. The first forms gradients of queries, a block of queries at a time. The second forms
// gradients of keys and values, a block of keys at a time.
#include <algorithm>
#include <cmath>
#include <cstring>

#include <omp.h>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/softmax_attention_blocks.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/softmax_attention.h"

namespace fulmen::cpu {
namespace {

template <class T>
struct Workspace {
  Workspace(const SoftmaxAttentionShape& shape, void* memory) {
    Carver<T> carver(memory);
    query = carver.take(block_queries * shape.key_stride), d_query = carver.take(block_queries * shape.key_stride);
    d_output = carver.take(block_queries * shape.value_stride);
    key = carver.take(block_keys * shape.key_stride), key_transposed = carver.take(shape.key_width * block_keys);
    value = carver.take(block_keys * shape.value_stride);
    value_transposed = carver.take(shape.value_width * block_keys);
    d_key = carver.take(block_keys * shape.key_stride), d_value = carver.take(block_keys * shape.value_stride);
    weights = carver.take(block_queries * block_keys), d_scores = carver.take(block_queries * block_keys);
    bytes = carver.bytes();
  }

  T *query, *d_query, *d_output, *key, *key_transposed, *value, *value_transposed, *d_key, *d_value;
  T *weights, *d_scores;
  std::int64_t bytes;
};

template <class T>
FULMEN_VECTORIZED T dot_row(const T* a, const T* b, std::int64_t width) {
  T dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t j = 0; j < width; ++j) dot += a[j] * b[j];
  return dot;
}

// Scores become weights exp(s - shift), and d_p, where they lie, the gradients of the scores.
template <class T>
FULMEN_VECTORIZED void differentiate_row(T* scores, T* d_scores, std::int64_t count, T shift, T delta) {
#pragma omp simd
  for (std::int64_t j = 0; j < count; ++j) {
    const T weight = exponential(scores[j] - shift);
    scores[j] = weight;
    d_scores[j] = weight * (d_scores[j] - delta);
  }
}

template <bool add, class T>
FULMEN_VECTORIZED void store_row(const T* from, T factor, T* to, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) to[j] = add ? to[j] + factor * from[j] : factor * from[j];
}

// A block of queries against a block of keys, as both passes need it.
template <class T>
class Backward {
 public:
  Backward(const SoftmaxAttentionShape& shape, const SoftmaxAttentionInputs& inputs,
           const SoftmaxAttentionGradients& gradients, const VisibleKeys& visible, const T* deltas,
           const Workspace<T>& work)
      : shape_(shape), inputs_(inputs), gradients_(gradients), visible_(visible), deltas_(deltas), work_(work) {}

  void queries(std::int64_t row, std::int64_t head, std::int64_t block) {
    const KeyRange seen = visible_.of_block(row, block);
    load_queries(row, head, block);
    std::fill_n(work_.d_query, rows_ * shape_.key_stride, T(0));
    for (std::int64_t at = seen.begin; at < seen.end; at += block_keys) {
      load_keys(row, head / shape_.group(), at, std::min(block_keys, seen.end - at));
      differentiate(row, head);
      multiply(SmallProduct<T>{.rows = rows_,
                               .columns = shape_.key_stride,
                               .plain = {work_.d_scores, block_keys, 1, work_.key, shape_.key_stride, count_},
                               .carry = work_.d_query,
                               .carry_row_stride = shape_.key_stride,
                               .c = work_.d_query,
                               .c_row_stride = shape_.key_stride});
    }
    store(work_.d_query, shape_.key_stride, static_cast<T>(inputs_.scale), gradients_.d_query, row, head, first_, rows_,
          shape_.key_width);
  }

  void keys(std::int64_t row, std::int64_t kv_head, std::int64_t block) {
    const std::int64_t at = block * block_keys, count = std::min(block_keys, shape_.keys - at);
    load_keys(row, kv_head, at, count);
    std::fill_n(work_.d_key, block_keys * shape_.key_stride, T(0));
    std::fill_n(work_.d_value, block_keys * shape_.value_stride, T(0));
    for (std::int64_t head = kv_head * shape_.group(); head < (kv_head + 1) * shape_.group(); ++head) {
      for (std::int64_t i = 0; i < shape_.query_blocks(); ++i) {
        const KeyRange seen = visible_.of_block(row, i);
        if (seen.empty() || seen.end <= at || seen.begin >= at + count) continue;
        load_queries(row, head, i);
        differentiate(row, head);
        add_transposed(work_.d_scores, work_.query, shape_.key_stride, work_.d_key);
        add_transposed(work_.weights, work_.d_output, shape_.value_stride, work_.d_value);
      }
    }
    // The queries came with the scale.
    store(work_.d_key, shape_.key_stride, T(1), gradients_.d_key, row, kv_head, at, count, shape_.key_width);
    store(work_.d_value, shape_.value_stride, T(1), gradients_.d_value, row, kv_head, at, count, shape_.value_width);
  }

 private:
  void load_queries(std::int64_t row, std::int64_t head, std::int64_t block) {
    first_ = block * block_queries, rows_ = std::min(block_queries, shape_.length - first_);
    load_scaled_rows(HeadRows<T>(inputs_.query, row, head), first_, rows_, shape_.key_width,
                     static_cast<T>(inputs_.scale), work_.query, shape_.key_stride);
    load_scaled_rows(HeadRows<T>(gradients_.d_output, row, head), first_, rows_, shape_.value_width, T(1),
                     work_.d_output, shape_.value_stride);
  }

  void load_keys(std::int64_t row, std::int64_t kv_head, std::int64_t at, std::int64_t count) {
    at_ = at, count_ = count;
    load_transposed(HeadRows<T>(inputs_.key, row, kv_head), at, count, shape_.key_width, work_.key, shape_.key_stride,
                    work_.key_transposed);
    load_transposed(HeadRows<T>(inputs_.value, row, kv_head), at, count, shape_.value_width, work_.value,
                    shape_.value_stride, work_.value_transposed);
  }

  // weights and d_scores of the loaded blocks; both 0 for keys that a query does not see.
  void differentiate(std::int64_t row, std::int64_t head) {
    multiply(SmallProduct<T>{
        .rows = rows_,
        .columns = block_keys,
        .plain = {work_.query, shape_.key_stride, 1, work_.key_transposed, block_keys, shape_.key_width},
        .c = work_.weights,
        .c_row_stride = block_keys});
    multiply(SmallProduct<T>{
        .rows = rows_,
        .columns = block_keys,
        .plain = {work_.d_output, shape_.value_stride, 1, work_.value_transposed, block_keys, shape_.value_width},
        .c = work_.d_scores,
        .c_row_stride = block_keys});
    const std::int64_t statistics = (row * shape_.heads + head) * shape_.length + first_;
    const T* const shifts = gradients_.log_sum_exp.as<T>() + statistics;
    for (std::int64_t i = 0; i < rows_; ++i) {
      const KeyRange range = within_block(*visible_.of_query(row, first_ + i), at_, count_);
      T *const weights = work_.weights + i * block_keys, *const d_scores = work_.d_scores + i * block_keys;
      const std::int64_t begin = range.empty() ? block_keys : range.begin, end = std::max(range.end, begin);
      for (T* const matrix : {weights, d_scores}) {
        std::fill(matrix, matrix + begin, T(0));
        std::fill(matrix + end, matrix + block_keys, T(0));
      }
      differentiate_row(weights + begin, d_scores + begin, end - begin, shifts[i], deltas_[statistics + i]);
    }
  }

  // sums [block_keys, stride] += a^T b, over the queries of the block.
  void add_transposed(const T* a, const T* b, std::int64_t stride, T* sums) {
    multiply(SmallProduct<T>{.rows = block_keys,
                             .columns = stride,
                             .plain = {a, 1, block_keys, b, stride, rows_},
                             .carry = sums,
                             .carry_row_stride = stride,
                             .c = sums,
                             .c_row_stride = stride});
  }

  void store(const T* from, std::int64_t stride, T factor, const Tensor& to, std::int64_t row, std::int64_t head,
             std::int64_t first, std::int64_t rows, std::int64_t width) {
    const HeadRows<T> heads(to, row, head);
    for (std::int64_t i = 0; i < rows; ++i)
      gradients_.add ? store_row<true>(from + i * stride, factor, heads.at(first + i), width)
                     : store_row<false>(from + i * stride, factor, heads.at(first + i), width);
  }

  const SoftmaxAttentionShape& shape_;
  const SoftmaxAttentionInputs& inputs_;
  const SoftmaxAttentionGradients& gradients_;
  const VisibleKeys& visible_;
  const T* deltas_;  // [batch, heads, length]
  const Workspace<T>& work_;
  std::int64_t first_ = 0, rows_ = 0;  // the loaded queries
  std::int64_t at_ = 0, count_ = 0;    // the loaded keys
};

template <class T>
void write_deltas(const SoftmaxAttentionShape& shape, const SoftmaxAttentionGradients& gradients, T* deltas) {
  parallel_rows(shape.batch * shape.heads, shape.length * shape.value_width,
                [&](std::int64_t first, std::int64_t last) {
                  for (std::int64_t task = first; task < last; ++task) {
                    const std::int64_t row = task / shape.heads, head = task % shape.heads;
                    const HeadRows<T> output(gradients.output, row, head), d_output(gradients.d_output, row, head);
                    for (std::int64_t i = 0; i < shape.length; ++i)
                      deltas[task * shape.length + i] = dot_row(output.at(i), d_output.at(i), shape.value_width);
                  }
                });
}

}  // namespace

void softmax_attention_backward(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                                const SoftmaxAttentionGradients& gradients) {
  const SoftmaxAttentionShape shape(inputs);
  const std::int64_t query_tasks = shape.batch * shape.heads * shape.query_blocks();
  const std::int64_t key_tasks = shape.batch * shape.kv_heads * shape.key_blocks();
  const std::int64_t operations =
      shape.batch * shape.heads * shape.length * shape.keys * (3 * shape.key_width + 2 * shape.value_width) / 2;
  const int threads =
      softmax_attention_threads(std::max(query_tasks, key_tasks), operations / std::max(query_tasks, key_tasks));
  Arena::Frame frame(*execution.scratch);
  const VisibleKeys visible(execution, inputs);
  dispatch_fp32_fp64(inputs.query.dtype(), [&]<class T>(T) {
    const std::int64_t bytes = Workspace<T>(shape, nullptr).bytes;
    T* const deltas = execution.scratch->take(dtype_of<T>, {shape.batch, shape.heads, shape.length}).template as<T>();
    auto* const memory = execution.scratch->take(DType::uint8, {threads, bytes}).template as<std::uint8_t>();
    if (execution.plans()) return;
    write_deltas(shape, gradients, deltas);
#pragma omp parallel num_threads(threads)
    {
      // The padding of every matrix must be finite.
      std::uint8_t* const own = memory + omp_get_thread_num() * bytes;
      std::memset(own, 0, bytes);
      const Workspace<T> work(shape, own);
      Backward<T> backward(shape, inputs, gradients, visible, deltas, work);
      // Late queries see the most keys, early keys are seen by the most queries: long blocks come first.
#pragma omp for schedule(dynamic) nowait
      for (std::int64_t task = 0; task < query_tasks; ++task) {
        const std::int64_t head = task % (shape.batch * shape.heads);
        backward.queries(head / shape.heads, head % shape.heads,
                         shape.query_blocks() - 1 - task / (shape.batch * shape.heads));
      }
#pragma omp for schedule(dynamic)
      for (std::int64_t task = 0; task < key_tasks; ++task) {
        const std::int64_t head = task % (shape.batch * shape.kv_heads);
        backward.keys(head / shape.kv_heads, head % shape.kv_heads, task / (shape.batch * shape.kv_heads));
      }
    }
  });
}

}  // namespace fulmen::cpu
