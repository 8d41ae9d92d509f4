// The decoding step of linear attention: the state is read and written once, and that is nearly all of its time. A
// block has some columns of a head's state and all of its rows. Where there are few heads, several blocks share the
// columns of a head.
#include "kernels/cuda/linear_attention.h"

#include <algorithm>

#include "framework/cuda_check.h"
#include "kernels/cuda/device_launch.cuh"
#include "kernels/cuda/device_reduce.cuh"
#include "kernels/cuda/linear_attention_arithmetic.cuh"

namespace fulmen::cuda {
namespace {

constexpr int step_threads = 256;  // with rows_in_flight each, they have half a head of width 128 on its way at once
constexpr int staged_keys = 1024;  // keys and queries held in shared memory at a time
constexpr int rows_in_flight = 8;  // state vectors that a thread loads before it uses the first
constexpr int least_bytes = 64;    // of a row of the state in one block: what memory transfers at once

struct StepShape {
  std::int64_t heads;
  int key_width, state_width, value_width;
  int vectors;            // of a row of the state
  int vectors_per_block;  // of it in one block: at most step_threads
};

// Feature i of an activated query or key: turned by LRPE where the model has it.
template <class A>
__device__ void write_features(const StepShape& shape, const Rotation& rotation, std::int64_t row, std::int64_t head,
                               int i, A query, A key, A* to_query, A* to_key) {
  A turn = 1;
  if (rotation.theta_data != nullptr) {
    const int j = i < shape.key_width ? i : i - shape.key_width;
    const SineCosine<A> both =
        sine_cosine<A>(rotation.position(row, 0) * rotation.theta_data[head * shape.key_width + j]);
    turn = i < shape.key_width ? both.cosine : both.sine;
  }
  *to_query = query * turn;
  *to_key = key * turn;
}

// Sums the block's vectors over the threads of a column, in a fixed order; the sum is left in the first of each column.
template <class A, int size>
__device__ void sum_over_rows(Packet<A, size>* sums, int column, int group, int columns, int groups) {
  for (int count = groups; count > 1;) {
    const int half = (count + 1) / 2;
    __syncthreads();
    if (group + half < count) {
      Packet<A, size>& to = sums[group * columns + column];
      const Packet<A, size>& from = sums[(group + half) * columns + column];
#pragma unroll
      for (int e = 0; e < size; ++e) to.values[e] += from.values[e];
    }
    count = half;
  }
}

// The features of the state's rows from `stage` on, as many as are staged.
template <class T, class A>
__device__ __forceinline__ void stage_features(const StepShape& shape, const Rotation& rotation, std::int64_t row,
                                               std::int64_t head, int stage, int staged, Activation activation,
                                               HeadsView<const T> query, HeadsView<const T> key, A* queries, A* keys) {
  for (int i = threadIdx.x; i < staged; i += step_threads) {
    const int j = (stage + i) % shape.key_width;
    write_features(shape, rotation, row, head, stage + i,
                   activated(activation, to_accumulated(query.at(row, 0, head)[j])),
                   activated(activation, to_accumulated(key.at(row, 0, head)[j])), queries + i, keys + i);
  }
}

// A row of the state: decayed, with key * values added. Adds query times it to `sum`.
template <class A, int size>
__device__ __forceinline__ void advance_row(Packet<A, size>& row, A decay, A query, A key, const A (&values)[size],
                                            Packet<A, size>& sum) {
#pragma unroll
  for (int e = 0; e < size; ++e) {
    row.values[e] = decay * row.values[e] + key * values[e];
    sum.values[e] += query * row.values[e];
  }
}

// Writes the outputs of a column and returns the sum of their squares.
template <class T, class A, int size>
__device__ __forceinline__ A write_outputs(const Packet<A, size>& sum, T* outputs) {
  A squares = 0;
#pragma unroll
  for (int e = 0; e < size; ++e) {
    outputs[e] = round_to<T>(sum.values[e]);
    squares += sum.values[e] * sum.values[e];
  }
  return squares;
}

// The block's sum of what the first of the values of each column is.
template <class A, int size>
__device__ __forceinline__ void add_columns(const Packet<A, size>* sums, int columns, A* to) {
  __syncthreads();
  if (threadIdx.x >= 32) return;
  A total = 0;
  for (int c = threadIdx.x; c < columns; c += 32) total += sums[c].values[0];
  total = sum_of_lanes(total);
  if (threadIdx.x == 0) *to = total;
}

// grid: (batch * heads, blocks of a head). square_sums [batch * heads, blocks of a head], or null.
template <class T, int size>
__global__ void __launch_bounds__(step_threads, 4)
    step_kernel(StepShape shape, HeadsView<const T> query, HeadsView<const T> key, HeadsView<const T> value,
                Activation query_key_activation, Activation value_activation, Rotation rotation, const double* slope,
                Accumulated<T>* state, HeadsView<T> output, Accumulated<T>* square_sums) {
  await_kernel_before();
  using A = Accumulated<T>;
  using Elements = Packet<A, size>;  // 16 bytes, or a single element
  __shared__ A queries[staged_keys], keys[staged_keys];
  __shared__ Elements sums[step_threads];
  const std::int64_t task = blockIdx.x, row = task / shape.heads, head = task % shape.heads;
  const int first_vector = static_cast<int>(blockIdx.y) * shape.vectors_per_block;
  const int columns = min(shape.vectors_per_block, shape.vectors - first_vector);
  const int groups = step_threads / columns;
  const int column = static_cast<int>(threadIdx.x) % columns, group = static_cast<int>(threadIdx.x) / columns;
  const bool works = group < groups;
  const int first_value = (first_vector + column) * size;
  Elements* const own = reinterpret_cast<Elements*>(state + task * shape.state_width * shape.value_width + first_value);

  const A decay = static_cast<A>(exp(-slope[head]));
  A values[size];
  Elements sum;
#pragma unroll
  for (int e = 0; e < size; ++e) {
    values[e] = activated(value_activation, to_accumulated(value.at(row, 0, head)[first_value + e]));
    sum.values[e] = 0;
  }
  for (int stage = 0; stage < shape.state_width; stage += staged_keys) {
    const int staged = min(staged_keys, shape.state_width - stage);
    Elements in_flight[rows_in_flight];
    // The first rows are on their way while the queries and keys are made.
    const auto load = [&](int first) {
#pragma unroll
      for (int k = 0; k < rows_in_flight; ++k) {
        const int i = first + k * groups;
        if (works && i < staged) in_flight[k] = own[std::int64_t{stage + i} * shape.vectors];
      }
    };
    load(group);
    if (stage > 0) __syncthreads();  // the queries and keys before are read no more
    stage_features(shape, rotation, row, head, stage, staged, query_key_activation, query, key, queries, keys);
    __syncthreads();
    for (int first = group; first < staged; first += rows_in_flight * groups) {
      if (first != group) load(first);
#pragma unroll
      for (int k = 0; k < rows_in_flight; ++k) {
        const int i = first + k * groups;
        if (!works || i >= staged) continue;
        advance_row(in_flight[k], decay, queries[i], keys[i], values, sum);
        own[std::int64_t{stage + i} * shape.vectors] = in_flight[k];
      }
    }
  }

  if (works) sums[group * columns + column] = sum;
  sum_over_rows(sums, column, works ? group : groups, columns, groups);
  __syncthreads();
  if (group == 0) {
    sum = sums[column];
    sums[column].values[0] = write_outputs(sum, output.at(row, 0, head) + first_value);
  }
  if (square_sums != nullptr) add_columns(sums, columns, square_sums + task * gridDim.y + blockIdx.y);
}

// to [count] = the sums of from [count, parts].
template <class A>
__global__ void add_parts_kernel(const A* from, std::int64_t count, int parts, A* to) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  A sum = 0;
  for (int part = 0; part < parts; ++part) sum += from[i * parts + part];
  to[i] = sum;
}

int multiprocessors(int device) {
  int count = 0;
  FULMEN_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Vectors of a row of the state for one block: few enough for two blocks on each multiprocessor, in whole transfers of
// memory, at most a block's threads.
int vectors_per_block(std::int64_t vectors, std::int64_t tasks, int vector_bytes, int device) {
  const std::int64_t blocks_per_head = (2 * multiprocessors(device) + tasks - 1) / tasks;
  const std::int64_t transfer = std::max(1, least_bytes / vector_bytes);
  const std::int64_t wanted = (vectors + blocks_per_head - 1) / blocks_per_head;
  return static_cast<int>(std::min<std::int64_t>((wanted + transfer - 1) / transfer * transfer, step_threads));
}

template <class T, int size>
void step(const Execution& execution, const LinearAttentionInputs& inputs, const Tensor& state,
          const LinearAttentionOutputs& outputs) {
  using A = Accumulated<T>;
  const auto stream = static_cast<cudaStream_t>(execution.stream.handle);
  StepShape shape{};
  shape.heads = inputs.query.size(2);
  shape.key_width = static_cast<int>(inputs.query.size(3));
  shape.state_width = inputs.theta ? 2 * shape.key_width : shape.key_width;
  shape.value_width = static_cast<int>(inputs.value.size(3));
  shape.vectors = shape.value_width / size;
  const std::int64_t tasks = inputs.query.size(0) * shape.heads;
  shape.vectors_per_block =
      vectors_per_block(shape.vectors, tasks, size * static_cast<int>(sizeof(A)), execution.device.index);
  const int blocks = (shape.vectors + shape.vectors_per_block - 1) / shape.vectors_per_block;

  Arena::Frame frame(*execution.scratch);
  A* square_sums = outputs.square_sums ? outputs.square_sums.as<A>() : nullptr;
  A* parts = square_sums;
  if (square_sums != nullptr && blocks > 1)
    parts = execution.scratch->take(dtype_of<A>, {tasks, blocks}).template as<A>();
  launch_early(execution, dim3(static_cast<unsigned>(tasks), static_cast<unsigned>(blocks)), step_threads,
               step_kernel<T, size>, shape, HeadsView<const T>(inputs.query), HeadsView<const T>(inputs.key),
               HeadsView<const T>(inputs.value), inputs.query_key_activation, inputs.value_activation,
               Rotation(inputs.theta, inputs.positions), inputs.slope.as<double>(), state.as<A>(),
               HeadsView<T>(outputs.output), parts);
  if (parts == square_sums) return;
  constexpr int threads = 128;
  add_parts_kernel<<<static_cast<unsigned>((tasks + threads - 1) / threads), threads, 0, stream>>>(parts, tasks, blocks,
                                                                                                   square_sums);
  FULMEN_CUDA_CHECK_LAUNCH();
}

}  // namespace

void linear_attention_step(const Execution& execution, const LinearAttentionInputs& inputs, const Tensor& state,
                           const LinearAttentionOutputs& outputs) {
  dispatch_floating(inputs.query.dtype(), [&]<class T>(T) {
    constexpr int size = 16 / static_cast<int>(sizeof(Accumulated<T>));
    const bool whole_vectors =
        inputs.value.size(3) % size == 0 && reinterpret_cast<std::uintptr_t>(state.data()) % 16 == 0;
    if (whole_vectors) {
      step<T, size>(execution, inputs, state, outputs);
    } else {
      step<T, 1>(execution, inputs, state, outputs);
    }
  });
}

}  // namespace fulmen::cuda
