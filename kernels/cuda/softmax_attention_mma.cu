// Softmax attention on tensor cores (FlashAttention-2, arXiv 2307.08691). A block of four warps has 64 queries, or 64
// keys in the pass that sums over queries. A warp has 16 of them, and scores never leave its registers.
#include "kernels/cuda/softmax_attention_mma.h"

#include "framework/gpu.h"
#include "kernels/cuda/device_activation.cuh"
#include "kernels/cuda/mma_tile.cuh"
#include "kernels/cuda/softmax_attention_ranges.cuh"

namespace fulmen::cuda {
namespace {

using Element = __nv_bfloat16;
constexpr int tile = MmaTile<64>::rows;  // queries and keys
constexpr int threads = 128;
constexpr float infinity = INFINITY;
constexpr float log2_e = 1.44269504088896341f;

struct Problem {
  HeadsView<Element> query, key, value;
  VisibleKeys visible;
  int length, keys, heads, group, key_width, value_width;
  float scale;
};

// Rows [first, first + tile) of a head; those from `last` on, and columns from `columns` on, are zero.
template <int width>
__device__ void load_tile(const HeadsView<Element>& from, std::int64_t row, int first, int last, int head, int columns,
                          MmaTile<width>& to) {
  constexpr int packets = width / 8;
  for (int i = static_cast<int>(threadIdx.x); i < tile * packets; i += threads) {
    const int r = i / packets, column = i % packets * 8;
    uint4 packet{0, 0, 0, 0};
    if (first + r < last && column < columns)
      packet = *reinterpret_cast<const uint4*>(from.at(row, first + r, head) + column);
    *reinterpret_cast<uint4*>(&to.elements[r][column]) = packet;
  }
}

__device__ __forceinline__ int warp_row() { return static_cast<int>(threadIdx.x) / 32 * 16; }
// The sums of a lane: rows warp_row() + row_of_lane() and 8 after it, columns column_of_lane() and 1 after it.
__device__ __forceinline__ int row_of_lane() { return static_cast<int>(threadIdx.x) % 32 / 4; }
__device__ __forceinline__ int column_of_lane() { return static_cast<int>(threadIdx.x) % 4 * 2; }

// Late tiles of queries, which see the most keys, and early tiles of keys come first.
struct BlockPlace {
  int row, head, index;

  __device__ BlockPlace(int heads, int tiles, bool from_the_end) {
    const unsigned sequences = gridDim.x / tiles, sequence = blockIdx.x % sequences;
    row = static_cast<int>(sequence) / heads, head = static_cast<int>(sequence) % heads;
    const int turn = static_cast<int>(blockIdx.x / sequences);
    index = from_the_end ? tiles - 1 - turn : turn;
  }
};

__device__ __forceinline__ KeyRange range_of(const Problem& problem, int row, int query) {
  if (query >= problem.length) return {0, 0};
  return problem.visible.of_queries[std::int64_t{row} * problem.length + query];
}

// A row's part of a result: factor * sums, written or added. `half` is 0 for the lane's first row, 1 for the other.
template <bool add, int width, class R>
__device__ void store_row(const HeadsView<R>& to, std::int64_t row, int token, int head, int columns, float factor,
                          const float (&sums)[width / 8][4], int half) {
  R* const begin = to.at(row, token, head);
#pragma unroll
  for (int n = 0; n < width / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = n * 8 + column_of_lane() + i;
      if (column >= columns) continue;
      const float value = factor * (half == 0 ? sums[n][i] : sums[n][2 + i]);
      begin[column] = round_to<R>(add ? to_accumulated(begin[column]) + value : value);
    }
  }
}

// The running maximum and sum of a row of the lane. Scores become weights; what was summed before counts `kept`.
struct RunningRow {
  float maximum = -infinity, sum = 0, kept = 1;

  __device__ void weigh(float (&scores)[8][4], int half, const KeyRange& own, int first_key, float scale) {
    float largest = maximum, share = 0;
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores[n][2 * half + i];
        score = own.has(first_key + n * 8 + column_of_lane() + i) ? score * scale : -infinity;
        largest = fmaxf(largest, score);
      }
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    const float shift = largest == -infinity ? 0.0f : largest;
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores[n][2 * half + i];
        score = exponential2((score - shift) * log2_e);
        share += score;
      }
    kept = exponential2((maximum - shift) * log2_e);
    sum = sum * kept + sum_of_lanes(share, 4);
    maximum = largest;
  }
};

template <int width>
struct ForwardShared {
  MmaTile<width> query, key, value;
};

template <int width>
__global__ void __launch_bounds__(threads)
    forward_kernel(const Problem problem, HeadsView<Element> output, float* log_sum_exp) {
  extern __shared__ uint4 memory[];
  auto& shared = *reinterpret_cast<ForwardShared<width>*>(memory);
  const BlockPlace place(problem.heads, problem.visible.tiles, true);
  const int first = place.index * tile, kv_head = place.head / problem.group;
  const int query = first + warp_row() + row_of_lane();
  const KeyRange seen = problem.visible.of_tiles[place.row * problem.visible.tiles + place.index];
  const KeyRange own[2] = {range_of(problem, place.row, query), range_of(problem, place.row, query + 8)};
  load_tile(problem.query, place.row, first, problem.length, place.head, problem.key_width, shared.query);
  RunningRow running[2];
  float sums[width / 8][4] = {};
  for (int at = seen.begin; at < seen.end; at += tile) {
    __syncthreads();
    load_tile(problem.key, place.row, at, seen.end, kv_head, problem.key_width, shared.key);
    load_tile(problem.value, place.row, at, seen.end, kv_head, problem.value_width, shared.value);
    __syncthreads();
    float scores[8][4];
    multiply_rows(shared.query, warp_row(), shared.key, scores);
    running[0].weigh(scores, 0, own[0], at, problem.scale);
    running[1].weigh(scores, 1, own[1], at, problem.scale);
#pragma unroll
    for (auto& part : sums) {
      part[0] *= running[0].kept, part[1] *= running[0].kept;
      part[2] *= running[1].kept, part[3] *= running[1].kept;
    }
    add_weighted_rows<width>(scores, shared.value, sums);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = query + 8 * half;
    if (token >= problem.length) continue;
    const bool any = own[half].end > own[half].begin;
    store_row<false, width>(output, place.row, token, place.head, problem.value_width,
                            any ? 1.0f / running[half].sum : 0.0f, sums, half);
    if (column_of_lane() == 0)
      log_sum_exp[(std::int64_t{place.row} * problem.heads + place.head) * problem.length + token] =
          any ? running[half].maximum + logf(running[half].sum) : -infinity;
  }
}

// delta [batch, heads, length] = d_output . output. A warp has a token's head.
__global__ void __launch_bounds__(pass_threads)
    delta_kernel(HeadsView<Element> output, HeadsView<Element> d_output, std::int64_t count, int length, int heads,
                 int width, float* deltas) {
  const std::int64_t at = (std::int64_t{blockIdx.x} * pass_threads + threadIdx.x) / lanes_of_warp;
  if (at >= count) return;
  const std::int64_t row = at / length / heads, token = at % length, head = at / length % heads;
  const Element *const o = output.at(row, token, head), *const d_o = d_output.at(row, token, head);
  float dot = 0;
  for (int j = static_cast<int>(threadIdx.x) % lanes_of_warp; j < width; j += lanes_of_warp)
    dot += to_accumulated(o[j]) * to_accumulated(d_o[j]);
  dot = sum_of_lanes(dot);
  if (threadIdx.x % lanes_of_warp == 0) deltas[at] = dot;
}

struct Upstream {
  HeadsView<Element> d_output;
  const float *log_sum_exp, *deltas;  // [batch, heads, length]
};

template <int width>
struct BackwardShared {
  MmaTile<width> query, d_output, key, value;
  float log_sum_exp[tile], deltas[tile];
  KeyRange ranges[tile];
};

// The queries of a tile, their upstream gradients and statistics.
template <int width>
__device__ void load_queries(const Problem& problem, const Upstream& upstream, int row, int head, int first,
                             BackwardShared<width>& shared) {
  load_tile(problem.query, row, first, problem.length, head, problem.key_width, shared.query);
  load_tile(upstream.d_output, row, first, problem.length, head, problem.value_width, shared.d_output);
  for (int i = static_cast<int>(threadIdx.x); i < tile; i += threads) {
    const bool inside = first + i < problem.length;
    const std::int64_t at = (std::int64_t{row} * problem.heads + head) * problem.length + first + i;
    shared.log_sum_exp[i] = inside ? upstream.log_sum_exp[at] : 0.0f;
    shared.deltas[i] = inside ? upstream.deltas[at] : 0.0f;
    shared.ranges[i] = range_of(problem, row, first + i);
  }
}

template <int width>
__device__ void load_keys(const Problem& problem, int row, int kv_head, int first, int last,
                          BackwardShared<width>& shared) {
  load_tile(problem.key, row, first, last, kv_head, problem.key_width, shared.key);
  load_tile(problem.value, row, first, last, kv_head, problem.value_width, shared.value);
}

// A score and the gradient of its weight become the weight and the gradient of the score.
template <int width>
__device__ __forceinline__ void differentiate(const BackwardShared<width>& shared, int query, int key, float scale,
                                              float& score, float& d_weight) {
  const bool visible = shared.ranges[query].has(key);
  score = visible ? exponential2((score * scale - shared.log_sum_exp[query]) * log2_e) : 0.0f;
  d_weight = visible ? score * (d_weight - shared.deltas[query]) : 0.0f;
}

template <bool add, int width, class R>
__global__ void __launch_bounds__(threads)
    query_gradient_kernel(const Problem problem, const Upstream upstream, HeadsView<R> d_query) {
  extern __shared__ uint4 memory[];
  auto& shared = *reinterpret_cast<BackwardShared<width>*>(memory);
  const BlockPlace place(problem.heads, problem.visible.tiles, true);
  const int first = place.index * tile, of_lane = warp_row() + row_of_lane();
  const KeyRange seen = problem.visible.of_tiles[place.row * problem.visible.tiles + place.index];
  load_queries(problem, upstream, place.row, place.head, first, shared);
  float sums[width / 8][4] = {};
  for (int at = seen.begin; at < seen.end; at += tile) {
    __syncthreads();
    load_keys(problem, place.row, place.head / problem.group, at, seen.end, shared);
    __syncthreads();
    float scores[8][4], d_scores[8][4];
    multiply_rows(shared.query, warp_row(), shared.key, scores);
    multiply_rows(shared.d_output, warp_row(), shared.value, d_scores);
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        differentiate(shared, of_lane + i / 2 * 8, at + n * 8 + column_of_lane() + i % 2, problem.scale, scores[n][i],
                      d_scores[n][i]);
    add_weighted_rows<width>(d_scores, shared.key, sums);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half)
    if (first + of_lane + 8 * half < problem.length)
      store_row<add, width>(d_query, place.row, first + of_lane + 8 * half, place.head, problem.key_width,
                            problem.scale, sums, half);
}

// Scores stand transposed here: a warp has 16 keys, columns are queries.
template <bool add, int width, class R>
__global__ void __launch_bounds__(threads)
    key_value_gradient_kernel(const Problem problem, const Upstream upstream, int key_tiles, HeadsView<R> d_key,
                              HeadsView<R> d_value) {
  extern __shared__ uint4 memory[];
  auto& shared = *reinterpret_cast<BackwardShared<width>*>(memory);
  const BlockPlace place(problem.heads / problem.group, key_tiles, false);
  const int at = place.index * tile, of_lane = warp_row() + row_of_lane();
  load_keys(problem, place.row, place.head, at, problem.keys, shared);
  float key_sums[width / 8][4] = {}, value_sums[width / 8][4] = {};
  for (int head = place.head * problem.group; head < (place.head + 1) * problem.group; ++head) {
    for (int i = 0; i < problem.visible.tiles; ++i) {
      const KeyRange seen = problem.visible.of_tiles[place.row * problem.visible.tiles + i];
      if (seen.end <= seen.begin || seen.end <= at || seen.begin >= at + tile) continue;
      __syncthreads();
      load_queries(problem, upstream, place.row, head, i * tile, shared);
      __syncthreads();
      float scores[8][4], d_scores[8][4];
      multiply_rows(shared.key, warp_row(), shared.query, scores);
      multiply_rows(shared.value, warp_row(), shared.d_output, d_scores);
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          differentiate(shared, n * 8 + column_of_lane() + j % 2, at + of_lane + j / 2 * 8, problem.scale, scores[n][j],
                        d_scores[n][j]);
      add_weighted_rows<width>(scores, shared.d_output, value_sums);
      add_weighted_rows<width>(d_scores, shared.query, key_sums);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = at + of_lane + 8 * half;
    if (key >= problem.keys) continue;
    store_row<add, width>(d_key, place.row, key, place.head, problem.key_width, problem.scale, key_sums, half);
    store_row<add, width>(d_value, place.row, key, place.head, problem.value_width, 1.0f, value_sums, half);
  }
}

Problem problem_of(const Execution& execution, const SoftmaxAttentionInputs& inputs) {
  const auto narrow = [](std::int64_t x) { return static_cast<int>(x); };
  return {HeadsView<Element>(inputs.query), HeadsView<Element>(inputs.key),
          HeadsView<Element>(inputs.value), visible_keys(execution, inputs, tile),
          narrow(inputs.query.size(1)),     narrow(inputs.key.size(1)),
          narrow(inputs.query.size(2)),     narrow(inputs.query.size(2) / inputs.key.size(2)),
          narrow(inputs.query.size(3)),     narrow(inputs.value.size(3)),
          static_cast<float>(inputs.scale)};
}

unsigned grid_of(std::int64_t batch, std::int64_t heads, std::int64_t tiles) {
  const std::int64_t blocks = batch * heads * tiles;
  FULMEN_CHECK(blocks <= 0x7fffffff, "{} rows of {} heads are too many for one launch", batch, heads);
  return static_cast<unsigned>(blocks);
}

// kernel<<<blocks, threads, bytes>>>, with more shared memory than a kernel gets unasked.
template <class... Parameters, class... Arguments>
void launch(const Execution& execution, void (*kernel)(Parameters...), unsigned blocks, std::size_t bytes,
            const Arguments&... arguments) {
  FULMEN_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  kernel<<<blocks, threads, bytes, stream_of(execution)>>>(arguments...);
  FULMEN_CUDA_CHECK_LAUNCH();
}

// Calls f with the narrowest width that holds the heads, as a compile-time constant.
template <class F>
void dispatch_width(const SoftmaxAttentionInputs& inputs, F&& f) {
  if (inputs.query.size(3) <= 64 && inputs.value.size(3) <= 64) return f.template operator()<64>();
  f.template operator()<128>();
}

template <bool add, class R>
void backward(const Execution& execution, const SoftmaxAttentionInputs& inputs,
              const SoftmaxAttentionGradients& gradients) {
  const std::int64_t batch = inputs.query.size(0), length = inputs.query.size(1), heads = inputs.query.size(2);
  const Problem problem = problem_of(execution, inputs);
  auto* const deltas = execution.scratch->take(DType::fp32, {batch, heads, length}).as<float>();
  delta_kernel<<<grid_of(batch, heads, divide_up(length, pass_threads / lanes_of_warp)), pass_threads, 0,
                 stream_of(execution)>>>(HeadsView<Element>(gradients.output), HeadsView<Element>(gradients.d_output),
                                         batch * heads * length, problem.length, problem.heads, problem.value_width,
                                         deltas);
  FULMEN_CUDA_CHECK_LAUNCH();
  const Upstream upstream{HeadsView<Element>(gradients.d_output), gradients.log_sum_exp.as<float>(), deltas};
  const auto key_tiles = static_cast<int>(divide_up(problem.keys, tile));
  dispatch_width(inputs, [&]<int width>() {
    constexpr std::size_t bytes = sizeof(BackwardShared<width>);
    launch(execution, &query_gradient_kernel<add, width, R>, grid_of(batch, heads, problem.visible.tiles), bytes,
           problem, upstream, HeadsView<R>(gradients.d_query));
    launch(execution, &key_value_gradient_kernel<add, width, R>, grid_of(batch, inputs.key.size(2), key_tiles), bytes,
           problem, upstream, key_tiles, HeadsView<R>(gradients.d_key), HeadsView<R>(gradients.d_value));
  });
}

bool takes(const Execution& execution, const SoftmaxAttentionInputs& inputs, std::initializer_list<Tensor> others) {
  const std::int64_t key_width = inputs.query.size(3), value_width = inputs.value.size(3);
  if (inputs.query.dtype() != DType::bf16 || gpu::properties(execution.device.index).major < 8) return false;
  if (key_width % 8 != 0 || value_width % 8 != 0 || key_width > 128 || value_width > 128) return false;
  if (!packets_aligned(8, {inputs.query, inputs.key, inputs.value})) return false;
  return packets_aligned(8, others);
}

}  // namespace

bool mma_takes(const Execution& execution, const SoftmaxAttentionInputs& inputs, const Tensor&) {
  return takes(execution, inputs, {});
}

bool mma_takes(const Execution& execution, const SoftmaxAttentionInputs& inputs,
               const SoftmaxAttentionGradients& gradients) {
  return takes(execution, inputs, {gradients.d_output});
}

void softmax_attention_forward_mma(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                                   const Tensor& output, const Tensor& log_sum_exp) {
  Arena::Frame frame(*execution.scratch);
  const Problem problem = problem_of(execution, inputs);
  dispatch_width(inputs, [&]<int width>() {
    launch(execution, &forward_kernel<width>,
           grid_of(inputs.query.size(0), inputs.query.size(2), problem.visible.tiles), sizeof(ForwardShared<width>),
           problem, HeadsView<Element>(output), log_sum_exp.as<float>());
  });
}

void softmax_attention_backward_mma(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                                    const SoftmaxAttentionGradients& gradients) {
  Arena::Frame frame(*execution.scratch);
  gradients.add ? backward<true, float>(execution, inputs, gradients)
                : backward<false, Element>(execution, inputs, gradients);
}

}  // namespace fulmen::cuda
