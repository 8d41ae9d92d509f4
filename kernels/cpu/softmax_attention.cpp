// Parts of softmax attention on the CPU outside the blocked passes: starts of documents, the merging of blocks,
// decoding.
#include "kernels/softmax_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/linear_attention_chunk.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

namespace fulmen::cpu {
namespace {

// out = kept * out + taken * in; `kept` of 0 reads nothing.
template <class T>
FULMEN_VECTORIZED void merge_row(const T* in, T taken, T kept, T* out, std::int64_t width) {
  if (kept == T(0)) {
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) out[j] = taken * in[j];
  } else {
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) out[j] = kept * out[j] + taken * in[j];
  }
}

template <class T>
FULMEN_VECTORIZED T dot_row(const T* a, const T* b, std::int64_t width) {
  T dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t j = 0; j < width; ++j) dot += a[j] * b[j];
  return dot;
}

template <class T>
FULMEN_VECTORIZED void add_scaled_row(const T* x, T factor, T* sum, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) sum[j] += factor * x[j];
}

// scores = exp(scores - maximum), and their sum.
template <class T>
FULMEN_VECTORIZED T exponentiate(T* scores, std::int64_t count, T maximum) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < count; ++j) {
    scores[j] = exponential(scores[j] - maximum);
    sum += scores[j];
  }
  return sum;
}

// One query against the first `count` rows of a cache. scores: scratch for as many.
template <class T>
void attend(const T* query, T scale, const T* keys, const T* values, std::int64_t count, std::int64_t key_width,
            std::int64_t value_width, T* scores, T* output) {
  T maximum = -std::numeric_limits<T>::infinity();
  for (std::int64_t j = 0; j < count; ++j) {
    scores[j] = scale * dot_row(query, keys + j * key_width, key_width);
    maximum = std::max(maximum, scores[j]);
  }
  const T sum = exponentiate(scores, count, maximum);
  std::fill_n(output, value_width, T(0));
  for (std::int64_t j = 0; j < count; ++j)
    add_scaled_row(values + j * value_width, scores[j] / sum, output, value_width);
}

template <class T>
void append_rows(const Tensor& from, const Tensor& cache, const std::int64_t* lengths) {
  const std::int64_t tokens = from.size(1), heads = from.size(2), width = from.size(3), most = cache.size(2);
  for (std::int64_t row = 0; row < from.size(0); ++row)
    for (std::int64_t head = 0; head < heads; ++head) {
      const HeadRows<T> rows(from, row, head);
      T* const to = cache.as<T>() + ((row * heads + head) * most + lengths[row]) * width;
      for (std::int64_t i = 0; i < tokens; ++i) std::copy_n(rows.at(i), width, to + i * width);
    }
}

}  // namespace

void document_starts(const Execution&, const Tensor& segments, const Tensor& positions, const Tensor& tokens_before,
                     const Tensor& first_visible) {
  const std::int64_t pieces = tokens_before && tokens_before.rank() == 2 ? tokens_before.size(1) : 1;
  const std::int64_t length = positions.size(1), piece = length / pieces;
  const std::int64_t *const offsets = segments.as<std::int64_t>(), *const places = positions.as<std::int64_t>();
  const std::int64_t* const before = tokens_before.as<std::int64_t>();
  for (std::int64_t s = 0; s + 1 < segments.size(0); ++s) {
    const std::int64_t begin = offsets[s], row = begin / length, at = begin % length;
    const bool continues = before != nullptr && at % piece == 0;
    const std::int64_t first = places[begin] - (continues ? before[row * pieces + at / piece] : 0);
    std::fill(first_visible.as<std::int64_t>() + begin, first_visible.as<std::int64_t>() + offsets[s + 1], first);
  }
}

void merge_attention(const Execution&, const Tensor& block_output, const Tensor& block_log_sum_exp, bool first,
                     const Tensor& output, const Tensor& log_sum_exp) {
  const std::int64_t length = output.size(1), heads = output.size(2), width = output.size(3);
  dispatch_fp32_fp64(output.dtype(), [&]<class T>(T) {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    parallel_rows(output.size(0) * heads, length * width, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t task = begin; task < end; ++task) {
        const HeadRows<T> from(block_output, task / heads, task % heads), to(output, task / heads, task % heads);
        const T* const of_block = block_log_sum_exp.as<T>() + task * length;
        T* const running = log_sum_exp.as<T>() + task * length;
        for (std::int64_t i = 0; i < length; ++i) {
          const T before = first ? -infinity : running[i], largest = std::max(before, of_block[i]);
          if (largest == -infinity) {  // no key so far
            std::fill_n(to.at(i), width, T(0));
            running[i] = -infinity;
            continue;
          }
          running[i] = largest + std::log(std::exp(before - largest) + std::exp(of_block[i] - largest));
          merge_row(from.at(i), std::exp(of_block[i] - running[i]), std::exp(before - running[i]), to.at(i), width);
        }
      }
    });
  });
}

void softmax_attention_append(const Execution&, const Tensor& key, const Tensor& value,
                              const SoftmaxAttentionCache& cache) {
  const std::int64_t* const lengths = cache.lengths.as<std::int64_t>();
  for (std::int64_t row = 0; row < key.size(0); ++row)
    FULMEN_CHECK(lengths[row] >= 0 && lengths[row] + key.size(1) <= cache.keys.size(2),
                 "row {} holds {} tokens and gets {} more, the cache has room for {}", row, lengths[row], key.size(1),
                 cache.keys.size(2));
  dispatch_fp32_fp64(key.dtype(), [&]<class T>(T) {
    append_rows<T>(key, cache.keys, lengths);
    append_rows<T>(value, cache.values, lengths);
  });
}

void softmax_attention_step(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                            const SoftmaxAttentionCache& cache, const Tensor& output) {
  const std::int64_t heads = inputs.query.size(2), kv_heads = inputs.key.size(2), most = cache.keys.size(2);
  const std::int64_t key_width = inputs.query.size(3), value_width = inputs.value.size(3);
  const std::int64_t* const lengths = cache.lengths.as<std::int64_t>();
  const std::int64_t longest = *std::max_element(lengths, lengths + inputs.query.size(0)) + 1;
  dispatch_fp32_fp64(inputs.query.dtype(), [&]<class T>(T) {
    Arena::Frame frame(*execution.scratch);
    T* const scratch = execution.scratch->take(dtype_of<T>, {omp_get_max_threads(), most}).template as<T>();
    parallel_rows(
        inputs.query.size(0) * heads, longest * (key_width + value_width), [&](std::int64_t first, std::int64_t last) {
          for (std::int64_t task = first; task < last; ++task) {
            const std::int64_t row = task / heads, head = task % heads;
            const std::int64_t at = (row * kv_heads + head / (heads / kv_heads)) * most;
            attend(HeadRows<T>(inputs.query, row, head).at(0), static_cast<T>(inputs.scale),
                   cache.keys.as<T>() + at * key_width, cache.values.as<T>() + at * value_width, lengths[row] + 1,
                   key_width, value_width, scratch + omp_get_thread_num() * most, HeadRows<T>(output, row, head).at(0));
          }
        });
  });
}

}  // namespace fulmen::cpu
