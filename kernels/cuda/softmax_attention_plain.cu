// Softmax attention without tensor cores (FlashAttention-2, arXiv 2307.08691): a block of threads has 32 queries, or 32
// keys in the pass that sums over queries. Factors pass through shared memory 32 columns at a time, sums stay in
// registers. Every result is summed by one thread, in an order that never changes.
#include "kernels/cuda/softmax_attention_plain.h"

#include "kernels/cuda/device_activation.cuh"
#include "kernels/cuda/softmax_attention_ranges.cuh"

namespace fulmen::cuda {
namespace {

constexpr int tile = 32;                 // queries and keys
constexpr int chunk = 32;                // columns in shared memory
constexpr int lanes = 8;                 // threads that share a row of a tile
constexpr int threads = tile * lanes;    // of a block
constexpr int of_thread = tile / lanes;  // columns of a tile that a thread has: lane, lane + 8, ...
constexpr int chunks = static_cast<int>(plain_attention_width) / chunk;  // of a result's columns, at most

template <class T>
struct Problem {
  HeadsView<T> query, key, value;
  VisibleKeys visible;
  int length, keys, heads, group, key_width, value_width;
  Accumulated<T> scale;
};

// Rows of a tensor [batch, length, heads, width] from one token on.
template <class T>
struct TileRows {
  const T* data;
  std::int64_t stride;
  int count;  // up to `tile`; those behind are zero

  __device__ TileRows(const HeadsView<T>& x, std::int64_t row, int first, int last, int head)
      : data(x.at(row, first, head)), stride(x.token_stride), count(min(last - first, tile)) {}
};

template <class A>
struct Shared {
  A left[tile][chunk + 1], right[tile][chunk + 1];
  A weights[tile][tile + 1], d_scores[tile][tile + 1];
};

__device__ __forceinline__ int row_of_thread() { return static_cast<int>(threadIdx.x) / lanes; }
__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x) % lanes; }

// Columns [first, first + chunk) of the rows.
template <class T, class A>
__device__ void stage(const TileRows<T>& rows, int first, int width, A (&to)[tile][chunk + 1]) {
  for (int i = static_cast<int>(threadIdx.x); i < tile * chunk; i += threads) {
    const int r = i / chunk, c = i % chunk;
    const bool inside = r < rows.count && first + c < width;
    to[r][c] = inside ? to_accumulated(rows.data[r * rows.stride + first + c]) : A(0);
  }
}

// The thread's elements of a b^T: rows of a against rows of b.
template <class T, class A>
__device__ void multiply_rows(const TileRows<T>& a, const TileRows<T>& b, int width, Shared<A>& shared,
                              A (&products)[of_thread]) {
  const int r = row_of_thread(), lane = lane_of_thread();
#pragma unroll
  for (A& product : products) product = 0;
  for (int first = 0; first < width; first += chunk) {
    __syncthreads();
    stage(a, first, width, shared.left);
    stage(b, first, width, shared.right);
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < chunk; ++k)
#pragma unroll
      for (int j = 0; j < of_thread; ++j) products[j] += shared.left[r][k] * shared.right[lane + lanes * j][k];
  }
}

// sums += weights rows, or weights^T rows: [tile, width] in chunks of columns. The weights were written before a
// barrier.
template <bool transposed, class T, class A>
__device__ void add_weighted_rows(const A (&weights)[tile][tile + 1], const TileRows<T>& rows, int width,
                                  Shared<A>& shared, A (&sums)[chunks][of_thread]) {
  const int r = row_of_thread(), lane = lane_of_thread();
#pragma unroll
  for (int part = 0; part < chunks; ++part) {
    if (part * chunk >= width) break;
    __syncthreads();
    stage(rows, part * chunk, width, shared.right);
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < tile; ++k) {
      const A weight = transposed ? weights[k][r] : weights[r][k];
#pragma unroll
      for (int j = 0; j < of_thread; ++j) sums[part][j] += weight * shared.right[k][lane + lanes * j];
    }
  }
}

// Sums and maxima over the threads of a row.
template <class A>
__device__ A sum_of_row_lanes(A value) {
  return sum_of_lanes(value, lanes);
}
template <class A>
__device__ A maximum_of_row_lanes(A value) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

template <class A>
__device__ constexpr A minus_infinity() {
  return -static_cast<A>(INFINITY);
}

// The row's part of a result [batch, length, heads, width]: factor * sums, written or added.
template <bool add, class R, class A>
__device__ void store_rows(const HeadsView<R>& to, std::int64_t row, int token, int head, int width, A factor,
                           const A (&sums)[chunks][of_thread]) {
  R* const begin = to.at(row, token, head);
#pragma unroll
  for (int part = 0; part < chunks; ++part) {
#pragma unroll
    for (int j = 0; j < of_thread; ++j) {
      const int column = part * chunk + lane_of_thread() + lanes * j;
      if (column >= width) continue;
      const A value = factor * sums[part][j];
      begin[column] = round_to<R>(add ? to_accumulated(begin[column]) + value : value);
    }
  }
}

// Where a block works: its row of the batch, its head, and its tile. Late tiles of queries, which see the most keys,
// and early tiles of keys come first.
struct BlockPlace {
  int row, head, index;

  __device__ BlockPlace(int heads, int tiles, bool from_the_end) {
    const unsigned sequences = gridDim.x / tiles, sequence = blockIdx.x % sequences;
    row = static_cast<int>(sequence) / heads, head = static_cast<int>(sequence) % heads;
    const int turn = static_cast<int>(blockIdx.x / sequences);
    index = from_the_end ? tiles - 1 - turn : turn;
  }
};

template <class T>
__global__ void __launch_bounds__(threads)
    forward_kernel(const Problem<T> problem, HeadsView<T> output, Accumulated<T>* log_sum_exp) {
  using A = Accumulated<T>;
  __shared__ Shared<A> shared;
  const BlockPlace place(problem.heads, problem.visible.tiles, true);
  const int first = place.index * tile, r = row_of_thread(), lane = lane_of_thread(), query = first + r;
  const TileRows<T> queries(problem.query, place.row, first, problem.length, place.head);
  const KeyRange seen = problem.visible.of_tiles[place.row * problem.visible.tiles + place.index];
  KeyRange own{0, 0};
  if (query < problem.length) own = problem.visible.of_queries[std::int64_t{place.row} * problem.length + query];
  A maximum = minus_infinity<A>(), sum = 0, sums[chunks][of_thread] = {};
  for (int at = seen.begin; at < seen.end; at += tile) {
    const TileRows<T> keys(problem.key, place.row, at, problem.keys, place.head / problem.group);
    const TileRows<T> values(problem.value, place.row, at, problem.keys, place.head / problem.group);
    A scores[of_thread], largest = maximum, share = 0;
    multiply_rows(queries, keys, problem.key_width, shared, scores);
#pragma unroll
    for (int j = 0; j < of_thread; ++j) {
      scores[j] = own.has(at + lane + lanes * j) ? scores[j] * problem.scale : minus_infinity<A>();
      largest = scores[j] > largest ? scores[j] : largest;
    }
    largest = maximum_of_row_lanes(largest);
    const A shift = largest == minus_infinity<A>() ? A(0) : largest;
#pragma unroll
    for (int j = 0; j < of_thread; ++j) {
      const A weight = exponential(scores[j] - shift);
      shared.weights[r][lane + lanes * j] = weight;
      share += weight;
    }
    const A kept = exponential(maximum - shift);
    sum = sum * kept + sum_of_row_lanes(share);
    maximum = largest;
#pragma unroll
    for (auto& part : sums)
#pragma unroll
      for (A& value : part) value *= kept;
    add_weighted_rows<false>(shared.weights, values, problem.value_width, shared, sums);
  }
  if (query >= problem.length) return;
  const bool any = own.end > own.begin;
  store_rows<false>(output, place.row, query, place.head, problem.value_width, any ? A(1) / sum : A(0), sums);
  if (lane == 0)
    log_sum_exp[(std::int64_t{place.row} * problem.heads + place.head) * problem.length + query] =
        any ? maximum + log(sum) : minus_infinity<A>();
}

// delta [batch, heads, length] = d_output . output. A warp has a token's head.
template <class T>
__global__ void __launch_bounds__(pass_threads)
    delta_kernel(HeadsView<T> output, HeadsView<T> d_output, std::int64_t count, int length, int heads, int width,
                 Accumulated<T>* deltas) {
  const std::int64_t at = (std::int64_t{blockIdx.x} * pass_threads + threadIdx.x) / lanes_of_warp;
  if (at >= count) return;
  const auto token = static_cast<int>(at % length);
  const std::int64_t row = at / length / heads;
  const auto head = static_cast<int>(at / length % heads);
  const T *const o = output.at(row, token, head), *const d_o = d_output.at(row, token, head);
  Accumulated<T> dot = 0;
  for (int j = static_cast<int>(threadIdx.x) % lanes_of_warp; j < width; j += lanes_of_warp)
    dot += to_accumulated(o[j]) * to_accumulated(d_o[j]);
  dot = sum_of_lanes(dot);
  if (threadIdx.x % lanes_of_warp == 0) deltas[at] = dot;
}

template <class T>
struct Upstream {
  HeadsView<T> d_output;
  const Accumulated<T>*log_sum_exp, *deltas;  // [batch, heads, length]
};

// Weights and gradients of scores of a tile, in shared memory behind a barrier of the caller's.
template <class T>
__device__ void differentiate(const Problem<T>& problem, const Upstream<T>& upstream, int row, int head,
                              int first_query, int first_key, Shared<Accumulated<T>>& shared) {
  using A = Accumulated<T>;
  const int r = row_of_thread(), lane = lane_of_thread(), query = first_query + r;
  const TileRows<T> queries(problem.query, row, first_query, problem.length, head);
  const TileRows<T> d_outputs(upstream.d_output, row, first_query, problem.length, head);
  const TileRows<T> keys(problem.key, row, first_key, problem.keys, head / problem.group);
  const TileRows<T> values(problem.value, row, first_key, problem.keys, head / problem.group);
  KeyRange own{0, 0};
  A shift = 0, delta = 0;
  if (query < problem.length) {
    const std::int64_t at = (std::int64_t{row} * problem.heads + head) * problem.length + query;
    own = problem.visible.of_queries[std::int64_t{row} * problem.length + query];
    shift = upstream.log_sum_exp[at], delta = upstream.deltas[at];
  }
  A scores[of_thread], d_weights[of_thread];
  multiply_rows(queries, keys, problem.key_width, shared, scores);
  multiply_rows(d_outputs, values, problem.value_width, shared, d_weights);
#pragma unroll
  for (int j = 0; j < of_thread; ++j) {
    const int c = lane + lanes * j;
    const bool visible = own.has(first_key + c);
    const A weight = visible ? exponential(scores[j] * problem.scale - shift) : A(0);
    shared.weights[r][c] = weight;
    shared.d_scores[r][c] = visible ? weight * (d_weights[j] - delta) : A(0);
  }
}

template <bool add, class T, class R>
__global__ void __launch_bounds__(threads)
    query_gradient_kernel(const Problem<T> problem, const Upstream<T> upstream, HeadsView<R> d_query) {
  using A = Accumulated<T>;
  __shared__ Shared<A> shared;
  const BlockPlace place(problem.heads, problem.visible.tiles, true);
  const int first = place.index * tile, query = first + row_of_thread();
  const KeyRange seen = problem.visible.of_tiles[place.row * problem.visible.tiles + place.index];
  A sums[chunks][of_thread] = {};
  for (int at = seen.begin; at < seen.end; at += tile) {
    differentiate(problem, upstream, place.row, place.head, first, at, shared);
    const TileRows<T> keys(problem.key, place.row, at, problem.keys, place.head / problem.group);
    add_weighted_rows<false>(shared.d_scores, keys, problem.key_width, shared, sums);
  }
  if (query < problem.length)
    store_rows<add>(d_query, place.row, query, place.head, problem.key_width, problem.scale, sums);
}

template <bool add, class T, class R>
__global__ void __launch_bounds__(threads)
    key_value_gradient_kernel(const Problem<T> problem, const Upstream<T> upstream, int key_tiles, HeadsView<R> d_key,
                              HeadsView<R> d_value) {
  using A = Accumulated<T>;
  __shared__ Shared<A> shared;
  const BlockPlace place(problem.heads / problem.group, key_tiles, false);
  const int at = place.index * tile, key = at + row_of_thread();
  A key_sums[chunks][of_thread] = {}, value_sums[chunks][of_thread] = {};
  for (int head = place.head * problem.group; head < (place.head + 1) * problem.group; ++head) {
    for (int i = 0; i < problem.visible.tiles; ++i) {
      const KeyRange seen = problem.visible.of_tiles[place.row * problem.visible.tiles + i];
      if (seen.end <= seen.begin || seen.end <= at || seen.begin >= at + tile) continue;
      differentiate(problem, upstream, place.row, head, i * tile, at, shared);
      const TileRows<T> queries(problem.query, place.row, i * tile, problem.length, head);
      const TileRows<T> d_outputs(upstream.d_output, place.row, i * tile, problem.length, head);
      add_weighted_rows<true>(shared.d_scores, queries, problem.key_width, shared, key_sums);
      add_weighted_rows<true>(shared.weights, d_outputs, problem.value_width, shared, value_sums);
    }
  }
  if (key >= problem.keys) return;
  store_rows<add>(d_key, place.row, key, place.head, problem.key_width, problem.scale, key_sums);
  store_rows<add>(d_value, place.row, key, place.head, problem.value_width, A(1), value_sums);
}

template <class T>
Problem<T> problem_of(const Execution& execution, const SoftmaxAttentionInputs& inputs) {
  const auto narrow = [](std::int64_t x) { return static_cast<int>(x); };
  FULMEN_CHECK(inputs.query.size(3) <= plain_attention_width && inputs.value.size(3) <= plain_attention_width,
               "heads of {} and {} columns are wider than the {} that softmax attention on a GPU takes",
               inputs.query.size(3), inputs.value.size(3), plain_attention_width);
  return {HeadsView<T>(inputs.query),
          HeadsView<T>(inputs.key),
          HeadsView<T>(inputs.value),
          visible_keys(execution, inputs, tile),
          narrow(inputs.query.size(1)),
          narrow(inputs.key.size(1)),
          narrow(inputs.query.size(2)),
          narrow(inputs.query.size(2) / inputs.key.size(2)),
          narrow(inputs.query.size(3)),
          narrow(inputs.value.size(3)),
          static_cast<Accumulated<T>>(inputs.scale)};
}

unsigned grid_of(std::int64_t batch, std::int64_t heads, std::int64_t tiles) {
  const std::int64_t blocks = batch * heads * tiles;
  FULMEN_CHECK(blocks <= 0x7fffffff, "{} rows of {} heads are too many for one launch", batch, heads);
  return static_cast<unsigned>(blocks);
}

template <bool add, class T, class R>
void backward(const Execution& execution, const SoftmaxAttentionInputs& inputs,
              const SoftmaxAttentionGradients& gradients) {
  using A = Accumulated<T>;
  const std::int64_t batch = inputs.query.size(0), length = inputs.query.size(1), heads = inputs.query.size(2);
  const Problem<T> problem = problem_of<T>(execution, inputs);
  A* const deltas =
      pointer_to<A>(execution.scratch->take(accumulation_dtype(inputs.query.dtype()), {batch, heads, length}));
  delta_kernel<T><<<grid_of(batch, heads, divide_up(length, pass_threads / lanes_of_warp)), pass_threads, 0,
                    stream_of(execution)>>>(HeadsView<T>(gradients.output), HeadsView<T>(gradients.d_output),
                                            batch * heads * length, problem.length, problem.heads, problem.value_width,
                                            deltas);
  FULMEN_CUDA_CHECK_LAUNCH();
  const Upstream<T> upstream{HeadsView<T>(gradients.d_output), pointer_to<A>(gradients.log_sum_exp), deltas};
  query_gradient_kernel<add, T, R><<<grid_of(batch, heads, problem.visible.tiles), threads, 0, stream_of(execution)>>>(
      problem, upstream, HeadsView<R>(gradients.d_query));
  FULMEN_CUDA_CHECK_LAUNCH();
  const std::int64_t key_tiles = divide_up(problem.keys, tile);
  key_value_gradient_kernel<add, T, R>
      <<<grid_of(batch, inputs.key.size(2), key_tiles), threads, 0, stream_of(execution)>>>(
          problem, upstream, static_cast<int>(key_tiles), HeadsView<R>(gradients.d_key),
          HeadsView<R>(gradients.d_value));
  FULMEN_CUDA_CHECK_LAUNCH();
}

}  // namespace

void softmax_attention_forward_plain(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                                     const Tensor& output, const Tensor& log_sum_exp) {
  Arena::Frame frame(*execution.scratch);
  dispatch_floating(inputs.query.dtype(), [&]<class T>(T) {
    const Problem<T> problem = problem_of<T>(execution, inputs);
    forward_kernel<T>
        <<<grid_of(inputs.query.size(0), problem.heads, problem.visible.tiles), threads, 0, stream_of(execution)>>>(
            problem, HeadsView<T>(output), pointer_to<Accumulated<T>>(log_sum_exp));
    FULMEN_CUDA_CHECK_LAUNCH();
  });
}

void softmax_attention_backward_plain(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                                      const SoftmaxAttentionGradients& gradients) {
  Arena::Frame frame(*execution.scratch);
  dispatch_floating(inputs.query.dtype(), [&]<class T>(T) {
    gradients.add ? backward<true, T, Accumulated<T>>(execution, inputs, gradients)
                  : backward<false, T, T>(execution, inputs, gradients);
  });
}

}  // namespace fulmen::cuda
