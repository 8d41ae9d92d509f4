// The decoding step of linear attention: the state is read and written once, and that is nearly all of its time. As many
// blocks as there is room for take one unit of work after the other: some columns of one head's state and all of its
// rows. What a thread will need of the state is copied to its own places in shared memory well ahead, past the end of the
// unit, so that memory is kept busy while a block makes features or adds up its results.
#include "kernels/cuda/linear_attention.h"

#include <cuda_pipeline_primitives.h>

#include <algorithm>

#include "framework/cuda_check.h"
#include "kernels/cuda/device_reduce.cuh"
#include "kernels/cuda/linear_attention_arithmetic.cuh"

namespace fulmen::cuda {
namespace {

constexpr int step_threads = 256;
constexpr int step_blocks = 2;      // of a multiprocessor, so that one copies while the other computes
constexpr int staged_keys = 1024;   // keys and queries held in shared memory at a time
constexpr int chunk_rows = 4;       // rows of the state that a thread copies and uses together
constexpr int chunks_ahead = 4;     // with that, a head of width 128 is on its way to each block at once
constexpr int least_bytes = 64;     // of a row of the state in one block: what memory transfers at once

struct StepShape {
  int heads, key_width, state_width, value_width;
  int vectors;             // of a row of the state
  int vectors_per_unit;    // of it in one unit: at most step_threads
  int units_per_head;
  int units;
};

// What a unit is, and what a thread does of it: rows `group`, `group + groups`, ... of column `column`.
template <class Elements>
struct Unit {
  int index, row, head, first_vector, columns, groups, column, group;
  int chunks;      // of all rows
  bool works;
  Elements* own;   // the first row of the thread's column

  template <class A>
  __device__ __forceinline__ Unit(const StepShape& shape, int unit, A* state) : index(unit) {
    const int task = unit / shape.units_per_head;
    row = task / shape.heads, head = task % shape.heads;
    first_vector = unit % shape.units_per_head * shape.vectors_per_unit;
    columns = min(shape.vectors_per_unit, shape.vectors - first_vector);
    groups = min(step_threads / columns, staged_keys / chunk_rows);
    column = static_cast<int>(threadIdx.x) % columns, group = static_cast<int>(threadIdx.x) / columns;
    chunks = (shape.state_width + chunk_rows * groups - 1) / (chunk_rows * groups);
    works = group < groups;
    own = reinterpret_cast<Elements*>(state) + std::int64_t{task} * shape.state_width * shape.vectors + first_vector + column;
  }
  // Row of the state that is a thread's k-th in a chunk.
  __device__ __forceinline__ int row_of(int chunk, int k) const { return (chunk * chunk_rows + k) * groups + group; }
};

// Feature i of an activated query or key: turned by LRPE where there is one.
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

// square_sums [batch * heads, units of a head], or null. Dynamic shared memory: chunks_ahead * chunk_rows vectors a thread.
template <class T, int size>
__global__ void __launch_bounds__(step_threads, step_blocks)
    step_kernel(StepShape shape, HeadsView<const T> query, HeadsView<const T> key, HeadsView<const T> value,
                Activation query_key_activation, Activation value_activation, Rotation rotation, const double* slope,
                Accumulated<T>* state, HeadsView<T> output, Accumulated<T>* square_sums) {
  using A = Accumulated<T>;
  using Elements = Packet<A, size>;   // 16 bytes, or a single element
  extern __shared__ __align__(16) unsigned char dynamic[];
  __shared__ A queries[staged_keys], keys[staged_keys];
  __shared__ Elements sums[step_threads];
  // A thread's places for a chunk that is copied ahead; no other thread looks at them.
  const auto place = [&](int slot, int k) {
    return reinterpret_cast<Elements*>(dynamic) + (slot * chunk_rows + k) * step_threads + threadIdx.x;
  };
  Unit<Elements> ahead(shape, blockIdx.x, state);
  int chunk_ahead = 0, slot_ahead = 0;
  const auto copy_ahead = [&] {
    if (ahead.index < shape.units) {
#pragma unroll
      for (int k = 0; k < chunk_rows; ++k) {
        const int i = ahead.row_of(chunk_ahead, k);
        if (ahead.works && i < shape.state_width)
          __pipeline_memcpy_async(place(slot_ahead, k), ahead.own + std::int64_t{i} * shape.vectors, sizeof(Elements));
      }
      if (++chunk_ahead == ahead.chunks) {
        ahead = Unit<Elements>(shape, ahead.index + gridDim.x, state);
        chunk_ahead = 0;
      }
    }
    __pipeline_commit();   // an empty one, too: they are counted
    slot_ahead = (slot_ahead + 1) % chunks_ahead;
  };
  for (int i = 0; i < chunks_ahead; ++i) copy_ahead();

  int slot = 0;
  for (int index = blockIdx.x; index < shape.units; index += gridDim.x) {
    const Unit<Elements> unit(shape, index, state);
    const int row = unit.row, head = unit.head, first_value = (unit.first_vector + unit.column) * size;
    const A decay = static_cast<A>(exp(-slope[head]));
    A values[size];
    Elements sum;
#pragma unroll
    for (int e = 0; e < size; ++e) {
      values[e] = activated(value_activation, to_accumulated(value.at(row, 0, head)[first_value + e]));
      sum.values[e] = 0;
    }
    const int rows_of_chunk = chunk_rows * unit.groups, chunks_of_stage = staged_keys / rows_of_chunk;
    for (int chunk = 0; chunk < unit.chunks; ++chunk) {
      const int stage = chunk / chunks_of_stage * chunks_of_stage * rows_of_chunk;
      if (chunk % chunks_of_stage == 0) {
        __syncthreads();   // the queries and keys before are read no more, nor are the sums
        for (int i = stage + threadIdx.x; i < min(stage + chunks_of_stage * rows_of_chunk, shape.state_width); i += step_threads) {
          const int j = i % shape.key_width;
          write_features(shape, rotation, row, head, i,
                         activated(query_key_activation, to_accumulated(query.at(row, 0, head)[j])),
                         activated(query_key_activation, to_accumulated(key.at(row, 0, head)[j])), queries + i - stage,
                         keys + i - stage);
        }
        __syncthreads();
      }
      __pipeline_wait_prior(chunks_ahead - 1);
      Elements elements[chunk_rows];
      A q[chunk_rows], added[chunk_rows];
      const auto has = [&](int k) { return unit.works && unit.row_of(chunk, k) < shape.state_width; };
#pragma unroll
      for (int k = 0; k < chunk_rows; ++k) {
        if (!has(k)) continue;
        elements[k] = *place(slot, k);
        q[k] = queries[unit.row_of(chunk, k) - stage], added[k] = keys[unit.row_of(chunk, k) - stage];
      }
#pragma unroll
      for (int k = 0; k < chunk_rows; ++k) {
        if (!has(k)) continue;
#pragma unroll
        for (int e = 0; e < size; ++e) {
          elements[k].values[e] = decay * elements[k].values[e] + added[k] * values[e];
          sum.values[e] += q[k] * elements[k].values[e];
        }
        unit.own[std::int64_t{unit.row_of(chunk, k)} * shape.vectors] = elements[k];
      }
      copy_ahead();   // into the places just read
      slot = (slot + 1) % chunks_ahead;
    }

    const int columns = unit.columns, column = unit.column;
    if (unit.works) sums[unit.group * columns + column] = sum;
    sum_over_rows(sums, column, unit.works ? unit.group : unit.groups, columns, unit.groups);
    __syncthreads();
    if (unit.group == 0) {
      sum = sums[column];
      A squares = 0;
#pragma unroll
      for (int e = 0; e < size; ++e) {
        output.at(row, 0, head)[first_value + e] = round_to<T>(sum.values[e]);
        squares += sum.values[e] * sum.values[e];
      }
      sums[column].values[0] = squares;
    }
    if (square_sums == nullptr) continue;
    __syncthreads();
    if (threadIdx.x >= 32) continue;
    A squares = 0;
    for (int c = threadIdx.x; c < columns; c += 32) squares += sums[c].values[0];
    squares = sum_of_lanes(squares);
    if (threadIdx.x == 0) square_sums[index] = squares;
  }
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

// Vectors of a row of the state for one unit: few enough that each of `blocks` has one, but whole transfers of memory, and
// no more than a block has threads.
int vectors_per_unit(std::int64_t vectors, std::int64_t tasks, int vector_bytes, int blocks) {
  const std::int64_t units_per_head = (blocks + tasks - 1) / tasks;
  const std::int64_t transfer = std::max(1, least_bytes / vector_bytes);
  const std::int64_t wanted = (vectors + units_per_head - 1) / units_per_head;
  return static_cast<int>(std::min<std::int64_t>((wanted + transfer - 1) / transfer * transfer, step_threads));
}

template <class T, int size>
void step(const Execution& execution, const LinearAttentionInputs& inputs, const Tensor& state,
          const LinearAttentionOutputs& outputs) {
  using A = Accumulated<T>;
  const auto stream = static_cast<cudaStream_t>(execution.stream.handle);
  const std::int64_t tasks = inputs.query.size(0) * inputs.query.size(2);
  const int most_blocks = step_blocks * multiprocessors(execution.device.index);
  StepShape shape{};
  shape.heads = static_cast<int>(inputs.query.size(2));
  shape.key_width = static_cast<int>(inputs.query.size(3));
  shape.state_width = inputs.theta ? 2 * shape.key_width : shape.key_width;
  shape.value_width = static_cast<int>(inputs.value.size(3));
  shape.vectors = shape.value_width / size;
  shape.vectors_per_unit = vectors_per_unit(shape.vectors, tasks, size * static_cast<int>(sizeof(A)), most_blocks);
  shape.units_per_head = (shape.vectors + shape.vectors_per_unit - 1) / shape.vectors_per_unit;
  FULMEN_CHECK(tasks * shape.units_per_head < (std::int64_t{1} << 30), "{} heads are too many for one launch", tasks);
  shape.units = static_cast<int>(tasks) * shape.units_per_head;

  Arena::Frame frame(*execution.scratch);
  A* square_sums = outputs.square_sums ? outputs.square_sums.as<A>() : nullptr;
  A* parts = square_sums;
  if (square_sums != nullptr && shape.units_per_head > 1)
    parts = execution.scratch->take(dtype_of<A>, {shape.units}).template as<A>();
  constexpr int ahead_bytes = chunks_ahead * chunk_rows * step_threads * size * static_cast<int>(sizeof(A));
  const auto kernel = step_kernel<T, size>;
  FULMEN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, ahead_bytes));
  FULMEN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
  kernel<<<std::min(shape.units, most_blocks), step_threads, ahead_bytes, stream>>>(
      shape, HeadsView<const T>(inputs.query), HeadsView<const T>(inputs.key), HeadsView<const T>(inputs.value),
      inputs.query_key_activation, inputs.value_activation, Rotation(inputs.theta, inputs.positions),
      inputs.slope.as<double>(), state.as<A>(), HeadsView<T>(outputs.output), parts);
  FULMEN_CUDA_CHECK_LAUNCH();
  if (parts == square_sums) return;
  constexpr int threads = 128;
  add_parts_kernel<<<static_cast<unsigned>((tasks + threads - 1) / threads), threads, 0, stream>>>(
      parts, tasks, shape.units_per_head, square_sums);
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
