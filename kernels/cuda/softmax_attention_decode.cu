// Parts of softmax attention on a GPU outside the tiled passes: starts of documents, the merging of blocks, and
// decoding. Decoding reads the cache of keys once, in parts that many blocks of threads share.
#include "kernels/cuda/device_activation.cuh"
#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/linear_attention_arithmetic.cuh"
#include "kernels/cuda/softmax_attention_plain.h"
#include "kernels/softmax_attention.h"

namespace fulmen::cuda {
namespace {

unsigned blocks_of(std::int64_t blocks) {
  FULMEN_CHECK(blocks <= 0x7fffffff, "{} blocks are too many for one launch", blocks);
  return static_cast<unsigned>(blocks);
}

__global__ void __launch_bounds__(pass_threads)
    document_starts_kernel(const std::int64_t* segments, std::int64_t count, const std::int64_t* positions,
                           const std::int64_t* tokens_before, std::int64_t pieces, std::int64_t length,
                           std::int64_t tokens, std::int64_t* first_visible) {
  const std::int64_t token = std::int64_t{blockIdx.x} * pass_threads + threadIdx.x;
  if (token >= tokens) return;
  // The last of `count` offsets that is not beyond the token; the first is 0.
  std::int64_t low = 0, high = count;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (segments[middle] <= token ? low : high) = middle;
  }
  const std::int64_t begin = segments[low], at = begin % length, piece = length / pieces;
  const bool continues = tokens_before != nullptr && at % piece == 0;
  first_visible[token] = positions[begin] - (continues ? tokens_before[begin / length * pieces + at / piece] : 0);
}

// A warp has a token's head.
template <class T, class R>
__global__ void __launch_bounds__(pass_threads)
    merge_kernel(HeadsView<T> from, const Accumulated<T>* block_sums, bool first, HeadsView<R> to, Accumulated<T>* sums,
                 std::int64_t count, int length, int heads, int width) {
  using A = Accumulated<T>;
  const std::int64_t at = (std::int64_t{blockIdx.x} * pass_threads + threadIdx.x) / lanes_of_warp;
  if (at >= count) return;
  const A infinity = static_cast<A>(INFINITY);
  const A before = first ? -infinity : sums[at], here = block_sums[at], largest = before > here ? before : here;
  const bool none = largest == -infinity;
  const A merged = none ? -infinity : largest + log(exp(before - largest) + exp(here - largest));
  const A kept = none ? A(0) : exp(before - merged), taken = none ? A(0) : exp(here - merged);
  const std::int64_t row = at / length / heads, token = at % length, head = at / length % heads;
  const T* const block = from.at(row, token, head);
  R* const running = to.at(row, token, head);
  const int lane = static_cast<int>(threadIdx.x) % lanes_of_warp;
  for (int j = lane; j < width; j += lanes_of_warp) {
    // Memory that no key has contributed to is not read: it may hold anything.
    A value = taken == A(0) ? A(0) : taken * to_accumulated(block[j]);
    if (kept != A(0)) value += kept * to_accumulated(running[j]);
    running[j] = round_to<R>(value);
  }
  __syncwarp();
  if (lane == 0) sums[at] = merged;
}

template <class T>
__global__ void __launch_bounds__(pass_threads)
    add_heads_kernel(HeadsView<T> from, HeadsView<Accumulated<T>> to, std::int64_t elements, int length, int heads,
                     int width) {
  const std::int64_t at = std::int64_t{blockIdx.x} * pass_threads + threadIdx.x;
  if (at >= elements) return;
  const std::int64_t head = at / width % heads, token = at / width / heads % length, row = at / width / heads / length;
  const auto column = static_cast<int>(at % width);
  to.at(row, token, head)[column] += to_accumulated(from.at(row, token, head)[column]);
}

template <class T>
__global__ void __launch_bounds__(pass_threads)
    append_kernel(HeadsView<T> from, const std::int64_t* lengths, std::int64_t elements, int tokens, int heads,
                  int width, std::int64_t most, T* cache) {
  const std::int64_t at = std::int64_t{blockIdx.x} * pass_threads + threadIdx.x;
  if (at >= elements) return;
  const int column = static_cast<int>(at % width), token = static_cast<int>(at / width % tokens);
  const std::int64_t head = at / width / tokens % heads, row = at / width / tokens / heads;
  const std::int64_t length = lengths[row];
  if (length < 0 || length + tokens > most) return;  // the step sees it and says so
  cache[((row * heads + head) * most + length + token) * width + column] = from.at(row, token, head)[column];
}

// Decoding: a block of threads has one part of the keys of one kv head, for up to `step_heads` query heads at a time.
constexpr int step_threads = 128;
constexpr int step_heads = 8;
constexpr int step_keys = 128;  // a part's, whatever the card: the order of sums depends on it
constexpr int step_width = 256;

template <class T>
struct Step {
  HeadsView<T> query;
  const T *keys, *values;  // [batch, kv heads, most, width]
  const std::int64_t* lengths;
  std::int64_t most;
  int kv_heads, group, key_width, value_width, parts;
  Accumulated<T> scale;
  Accumulated<T>*outputs, *maxima, *sums;  // of parts: [batch, heads, parts, value width], [batch, heads, parts]
};

// The scores of the part's keys, in shared memory; a warp has a key.
template <class T>
__device__ void score_keys(const Step<T>& step, const T* keys, int count, int heads,
                           const Accumulated<T> (&queries)[step_heads][step_width],
                           Accumulated<T> (&scores)[step_heads][step_keys]) {
  const int lane = static_cast<int>(threadIdx.x) % lanes_of_warp;
  for (int k = static_cast<int>(threadIdx.x) / lanes_of_warp; k < count; k += step_threads / lanes_of_warp) {
    Accumulated<T> dots[step_heads] = {};
    for (int c = lane; c < step.key_width; c += lanes_of_warp) {
      const Accumulated<T> x = to_accumulated(keys[std::int64_t{k} * step.key_width + c]);
#pragma unroll
      for (int h = 0; h < step_heads; ++h) dots[h] += x * queries[h][c];
    }
#pragma unroll
    for (int h = 0; h < step_heads; ++h) {
      if (h >= heads) break;
      const Accumulated<T> dot = sum_of_lanes(dots[h]);
      if (lane == 0) scores[h][k] = step.scale * dot;
    }
  }
}

// Scores become weights relative to the part's maximum, which is kept with their sum; a warp has a head.
template <class T>
__device__ void weigh_keys(const Step<T>& step, std::int64_t first_head, int part, int count, int heads,
                           Accumulated<T> (&scores)[step_heads][step_keys]) {
  using A = Accumulated<T>;
  const int lane = static_cast<int>(threadIdx.x) % lanes_of_warp;
  for (int h = static_cast<int>(threadIdx.x) / lanes_of_warp; h < heads; h += step_threads / lanes_of_warp) {
    A maximum = -static_cast<A>(INFINITY), sum = 0;
    for (int k = lane; k < count; k += lanes_of_warp) maximum = scores[h][k] > maximum ? scores[h][k] : maximum;
    maximum = maximum_of_lanes(maximum);
    for (int k = lane; k < count; k += lanes_of_warp) {
      scores[h][k] = exponential(scores[h][k] - maximum);
      sum += scores[h][k];
    }
    sum = sum_of_lanes(sum);
    if (lane != 0) continue;
    step.maxima[(first_head + h) * step.parts + part] = maximum;
    step.sums[(first_head + h) * step.parts + part] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(step_threads) step_kernel(const Step<T> step) {
  using A = Accumulated<T>;
  __shared__ A queries[step_heads][step_width], scores[step_heads][step_keys];
  const int part = static_cast<int>(blockIdx.x) % step.parts;
  const std::int64_t sequence = blockIdx.x / step.parts, row = sequence / step.kv_heads;
  const int kv_head = static_cast<int>(sequence % step.kv_heads), first = part * step_keys;
  const std::int64_t length = min(step.lengths[row] + 1, step.most);
  const int count = static_cast<int>(min(std::int64_t{step_keys}, length - first));
  if (count <= 0) return;  // nothing is read of such parts
  const T* const keys = step.keys + (sequence * step.most + first) * step.key_width;
  const T* const values = step.values + (sequence * step.most + first) * step.value_width;
  for (int begin = 0; begin < step.group; begin += step_heads) {
    const int heads = min(step_heads, step.group - begin);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < step_heads * step.key_width; i += step_threads) {
      const int h = i / step.key_width, c = i % step.key_width;
      queries[h][c] = h < heads ? to_accumulated(step.query.at(row, 0, kv_head * step.group + begin + h)[c]) : A(0);
    }
    __syncthreads();
    score_keys(step, keys, count, heads, queries, scores);
    __syncthreads();
    weigh_keys(step, (row * step.kv_heads + kv_head) * step.group + begin, part, count, heads, scores);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < heads * step.value_width; i += step_threads) {
      const int h = i / step.value_width, c = i % step.value_width;
      A output = 0;
      for (int k = 0; k < count; ++k)
        output += scores[h][k] * to_accumulated(values[std::int64_t{k} * step.value_width + c]);
      const std::int64_t head = (row * step.kv_heads + kv_head) * step.group + begin + h;
      step.outputs[(head * step.parts + part) * step.value_width + c] = output;
    }
  }
}

// The parts of each head, merged in their order. A full cache gives NaN: the token before it could not be appended.
template <class T>
__global__ void __launch_bounds__(step_threads) step_merge_kernel(const Step<T> step, HeadsView<T> output) {
  using A = Accumulated<T>;
  const int heads = step.kv_heads * step.group;
  const std::int64_t row = blockIdx.x / heads, length = step.lengths[row] + 1;
  const auto head = static_cast<int>(blockIdx.x % heads);
  T* const to = output.at(row, 0, head);
  const bool fits = length >= 1 && length <= step.most;
  const int parts = fits ? static_cast<int>((length + step_keys - 1) / step_keys) : 0;
  const A *const maxima = step.maxima + std::int64_t{blockIdx.x} * step.parts, *const sums = step.sums +
                                                                                             std::int64_t{blockIdx.x} *
                                                                                                 step.parts;
  A maximum = -static_cast<A>(INFINITY), sum = 0;
  for (int part = 0; part < parts; ++part) maximum = maxima[part] > maximum ? maxima[part] : maximum;
  for (int part = 0; part < parts; ++part) sum += sums[part] * exponential(maxima[part] - maximum);
  for (int c = static_cast<int>(threadIdx.x); c < step.value_width; c += step_threads) {
    A value = 0;
    for (int part = 0; part < parts; ++part)
      value += exponential(maxima[part] - maximum) *
               step.outputs[(std::int64_t{blockIdx.x} * step.parts + part) * step.value_width + c];
    to[c] = round_to<T>(fits ? value / sum : static_cast<A>(NAN));
  }
}

}  // namespace

void document_starts(const Execution& execution, const Tensor& segments, const Tensor& positions,
                     const Tensor& tokens_before, const Tensor& first_visible) {
  const std::int64_t pieces = tokens_before && tokens_before.rank() == 2 ? tokens_before.size(1) : 1;
  const std::int64_t tokens = positions.elements();
  document_starts_kernel<<<blocks_of(divide_up(tokens, pass_threads)), pass_threads, 0, stream_of(execution)>>>(
      segments.as<std::int64_t>(), segments.size(0) - 1, positions.as<std::int64_t>(), tokens_before.as<std::int64_t>(),
      pieces, positions.size(1), tokens, first_visible.as<std::int64_t>());
  FULMEN_CUDA_CHECK_LAUNCH();
}

void merge_attention(const Execution& execution, const Tensor& block_output, const Tensor& block_log_sum_exp,
                     bool first, const Tensor& output, const Tensor& log_sum_exp) {
  const std::int64_t length = output.size(1), heads = output.size(2), count = output.size(0) * length * heads;
  dispatch_floating(block_output.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    const auto merge = [&]<class R>(R) {
      merge_kernel<T, R>
          <<<blocks_of(divide_up(count * lanes_of_warp, pass_threads)), pass_threads, 0, stream_of(execution)>>>(
              HeadsView<T>(block_output), pointer_to<A>(block_log_sum_exp), first, HeadsView<R>(output),
              pointer_to<A>(log_sum_exp), count, static_cast<int>(length), static_cast<int>(heads),
              static_cast<int>(output.size(3)));
      FULMEN_CUDA_CHECK_LAUNCH();
    };
    output.dtype() == block_output.dtype() ? merge(T{}) : merge(A{});
  });
}

void add_narrow_heads(const Execution& execution, const Tensor& from, const Tensor& to) {
  dispatch_floating(from.dtype(), [&]<class T>(T) {
    add_heads_kernel<T><<<blocks_of(divide_up(to.elements(), pass_threads)), pass_threads, 0, stream_of(execution)>>>(
        HeadsView<T>(from), HeadsView<Accumulated<T>>(to), to.elements(), static_cast<int>(to.size(1)),
        static_cast<int>(to.size(2)), static_cast<int>(to.size(3)));
    FULMEN_CUDA_CHECK_LAUNCH();
  });
}

void softmax_attention_append(const Execution& execution, const Tensor& key, const Tensor& value,
                              const SoftmaxAttentionCache& cache) {
  dispatch_floating(key.dtype(), [&]<class T>(T) {
    const auto append = [&](const Tensor& from, const Tensor& to) {
      append_kernel<T><<<blocks_of(divide_up(from.elements(), pass_threads)), pass_threads, 0, stream_of(execution)>>>(
          HeadsView<T>(from), cache.lengths.as<std::int64_t>(), from.elements(), static_cast<int>(from.size(1)),
          static_cast<int>(from.size(2)), static_cast<int>(from.size(3)), to.size(2), pointer_to<T>(to));
      FULMEN_CUDA_CHECK_LAUNCH();
    };
    append(key, cache.keys), append(value, cache.values);
  });
}

void softmax_attention_step(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                            const SoftmaxAttentionCache& cache, const Tensor& output) {
  const std::int64_t batch = inputs.query.size(0), heads = inputs.query.size(2), kv_heads = inputs.key.size(2);
  const std::int64_t most = cache.keys.size(2), parts = divide_up(most, step_keys), width = inputs.value.size(3);
  FULMEN_CHECK(inputs.query.size(3) <= step_width, "heads of {} columns are wider than the {} that a step takes",
               inputs.query.size(3), step_width);
  Arena::Frame frame(*execution.scratch);
  dispatch_floating(inputs.query.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    const auto take = [&](std::int64_t columns) {
      return pointer_to<A>(
          execution.scratch->take(accumulation_dtype(inputs.query.dtype()), {batch * heads * parts, columns}));
    };
    const Step<T> step{HeadsView<T>(inputs.query),
                       pointer_to<T>(cache.keys),
                       pointer_to<T>(cache.values),
                       cache.lengths.as<std::int64_t>(),
                       most,
                       static_cast<int>(kv_heads),
                       static_cast<int>(heads / kv_heads),
                       static_cast<int>(inputs.query.size(3)),
                       static_cast<int>(width),
                       static_cast<int>(parts),
                       static_cast<A>(inputs.scale),
                       take(width),
                       take(1),
                       take(1)};
    step_kernel<T><<<blocks_of(batch * kv_heads * parts), step_threads, 0, stream_of(execution)>>>(step);
    FULMEN_CUDA_CHECK_LAUNCH();
    step_merge_kernel<T>
        <<<blocks_of(batch * heads), step_threads, 0, stream_of(execution)>>>(step, HeadsView<T>(output));
    FULMEN_CUDA_CHECK_LAUNCH();
  });
}

}  // namespace fulmen::cuda
