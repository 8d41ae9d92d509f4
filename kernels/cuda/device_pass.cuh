// The passes over rows that memory-bound kernels consist of. An operation says what is loaded of a row, and what is
// computed and stored from it. The kernels here bring several loads in flight before the first store.
#pragma once

#include <algorithm>
#include <cstdint>

#include "framework/cuda_check.h"
#include "framework/execution.h"
#include "kernels/cuda/device_reduce.cuh"
#include "kernels/cuda/device_vector.cuh"

namespace fulmen::cuda {

inline constexpr int pass_threads = 256;       // of a block, where rows are narrow enough
inline constexpr int reduction_threads = 512;  // at most, of a row that is reduced
inline constexpr int reduction_block = 128;    // of a block of rows that are reduced, where they are narrow enough
inline constexpr int lanes_of_warp = 32;

// Packets that a thread has in flight of each of `tensors` that are read: enough to hide the memory's latency, few
// enough for many threads.
constexpr int items_for(int tensors) { return tensors >= 2 ? 2 : 4; }

inline cudaStream_t stream_of(const Execution& execution) { return static_cast<cudaStream_t>(execution.stream.handle); }

inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Threads for `needed` of them: a power of two below a warp, else whole warps.
inline int round_threads(std::int64_t needed, int most) {
  if (needed >= lanes_of_warp)
    return static_cast<int>(std::min<std::int64_t>(divide_up(needed, lanes_of_warp) * lanes_of_warp, most));
  int threads = 1;
  while (threads < needed) threads *= 2;
  return threads;
}

// A matrix on the device, or none.
template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t stride = 0;

  __device__ __forceinline__ T* at(std::int64_t row, std::int64_t column) const { return data + row * stride + column; }
};

template <class T>
Rows<T> rows_of(const Tensor& x) {
  return x ? Rows<T>{pointer_to<T>(x), x.stride(0)} : Rows<T>{};
}

// Blocks start in the order of their numbers, and passes take rows from the last to the first. A product before them
// has written the last rows last, so that those are still in the L2 cache. The product after them reads the first rows
// first.
__device__ __forceinline__ unsigned block_from_the_end() { return gridDim.x - 1 - blockIdx.x; }

// How rows are spread: blockDim.x threads over each row, blockDim.y rows in a block of `block_threads` at most.
struct PassGrid {
  dim3 block;
  unsigned blocks = 0;
};

inline PassGrid make_grid(int threads, std::int64_t rows, std::int64_t chunks, int block_threads) {
  const int rows_of_block = std::max(1, block_threads / threads);
  const std::int64_t blocks = divide_up(rows, rows_of_block) * chunks;
  FULMEN_CHECK(blocks <= 0x7fffffff, "{} rows in {} chunks are too many for one launch", rows, chunks);
  return {dim3(threads, rows_of_block), static_cast<unsigned>(blocks)};
}

// An elementwise operation over [rows, width]. It has
//   static constexpr int items                                items_for(tensors read)
//   template <int length> struct Loaded                       what a packet of `length` columns needs
//   Loaded<length> load<length>(row, column) const            only loads
//   void finish<length>(const Loaded<length>&, row, column) const   computes and stores
// or for_row(row), which gives such an operation for one row. Stores may go where the same packet's loads came from.
// Columns past the last whole packet go element by element.
template <class Operation>
__device__ __forceinline__ auto for_row(const Operation& operation, std::int64_t row) {
  if constexpr (requires { operation.for_row(row); })
    return operation.for_row(row);
  else
    return operation;
}

template <int length, class Operation>
__global__ void __launch_bounds__(pass_threads)
    pass_kernel(const Operation whole, std::int64_t rows, std::int64_t width, unsigned chunks) {
  constexpr int items = Operation::items;
  const unsigned block = block_from_the_end(), chunk = block % chunks;
  const std::int64_t row = static_cast<std::int64_t>(block / chunks) * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const auto operation = for_row(whole, row);
  const std::int64_t packets = width / length;
  const std::int64_t first = static_cast<std::int64_t>(chunk) * (blockDim.x * items) + threadIdx.x;
  typename std::remove_const_t<decltype(operation)>::template Loaded<length> loaded[items];
#pragma unroll
  for (int i = 0; i < items; ++i) {
    const std::int64_t packet = first + i * blockDim.x;
    if (packet < packets) loaded[i] = operation.template load<length>(row, packet * length);
  }
#pragma unroll
  for (int i = 0; i < items; ++i) {
    const std::int64_t packet = first + i * blockDim.x;
    if (packet < packets) operation.template finish<length>(loaded[i], row, packet * length);
  }
  if constexpr (length > 1) {
    if (chunk != 0) return;
    for (std::int64_t column = packets * length + threadIdx.x; column < width; column += blockDim.x)
      operation.template finish<1>(operation.template load<1>(row, column), row, column);
  }
}

template <int length, class Operation>
void launch_pass(const Execution& execution, const Operation& operation, std::int64_t rows, std::int64_t width) {
  const std::int64_t packets = std::max<std::int64_t>(width / length, 1);
  const std::int64_t chunks = divide_up(packets, pass_threads * Operation::items);
  const int threads = round_threads(divide_up(packets, chunks * Operation::items), pass_threads);
  const PassGrid grid = make_grid(threads, rows, chunks, pass_threads);
  pass_kernel<length>
      <<<grid.blocks, grid.block, 0, stream_of(execution)>>>(operation, rows, width, static_cast<unsigned>(chunks));
  FULMEN_CUDA_CHECK_LAUNCH();
}

// Makes the compiler forget its conversions of packets. So it keeps them as they were loaded, in half the registers,
// and converts them again.
template <class Loaded>
__device__ __forceinline__ void keep_packed(Loaded& loaded) {
  if constexpr (sizeof(Loaded) % sizeof(std::uint32_t) == 0) {
    struct Words {
      std::uint32_t words[sizeof(Loaded) / sizeof(std::uint32_t)];
    };
    Words all = __builtin_bit_cast(Words, loaded);
#pragma unroll
    for (std::uint32_t& word : all.words) asm volatile("" : "+r"(word));
    loaded = __builtin_bit_cast(Loaded, all);
  }
}

// An operation with one sum per row. In addition to `Loaded` and `load` it has
//   using Sum                                                 float or double
//   struct Row                                                values of a row other than its packets
//   void begin(row, thread, threads, Row&, Sum& sum) const    loads it; may add a thread's share to the row's sum
//   Sum contribution<length>(const Loaded<length>&, row, column) const    a packet's share; may store
//   void combine(row, sum, Row&, writes) const                what `finish` needs of the sum; `writes` for one thread
// and, where `finishes` is true,
//   void finish<length>(const Loaded<length>&, const Row&, row, column) const
//   Loaded<length> reload<length>(row, column) const          for rows that do not fit in the registers
// `width` is a multiple of `length`. A row's packets stay in registers between the sum and `finish`; in a row that is
// too wide, the last items * blockDim.x packets do. The others are loaded again, from the last to the first. Where a
// warp or less has the row, nothing waits for another warp. `whole`: a warp has each row, which fills its registers.
template <int length, int items, bool whole, class Operation>
__global__ void __launch_bounds__(reduction_threads)
    reduce_rows_kernel(const Operation operation, std::int64_t rows, int width) {
  using Sum = typename Operation::Sum;
  __shared__ Sum shared[reduction_threads / lanes_of_warp];
  const int threads = whole ? lanes_of_warp : static_cast<int>(blockDim.x);
  const std::int64_t row = static_cast<std::int64_t>(block_from_the_end()) * blockDim.y + threadIdx.y;
  if (whole && row >= rows) return;
  // Otherwise threads without a row stay for the barrier.
  const int packets = row < rows ? width / length : 0, stride = threads * items;
  int base = threadIdx.x;
  const auto has = [&](int i) { return whole || base + i * threads < packets; };
  const auto column = [&](int i) { return std::int64_t{base} * length + i * threads * length; };
  typename Operation::template Loaded<length> loaded[items];
  typename Operation::Row of_row{};
  Sum sum = 0;
  while (true) {
#pragma unroll
    for (int i = 0; i < items; ++i)
      if (has(i)) loaded[i] = operation.template load<length>(row, column(i));
    if (base < stride && row < rows) operation.begin(row, base, threads, of_row, sum);
#pragma unroll
    for (int i = 0; i < items; ++i)
      if (has(i)) sum += operation.template contribution<length>(loaded[i], row, column(i));
    if (whole || base + stride >= packets) break;
    base += stride;
  }
  sum = whole ? sum_of_lanes(sum) : sum_of_row(sum, shared);
  if (row >= rows) return;
  operation.combine(row, sum, of_row, threadIdx.x == 0);
  if constexpr (Operation::finishes) {
    const auto finish = [&] {
#pragma unroll
      for (int i = 0; i < items; ++i) {
        keep_packed(loaded[i]);
        if (has(i)) operation.template finish<length>(loaded[i], of_row, row, column(i));
      }
    };
    finish();
    if constexpr (!whole) {
      while (base >= stride) {
        base -= stride;
#pragma unroll
        for (int i = 0; i < items; ++i)
          if (has(i)) loaded[i] = operation.template reload<length>(row, column(i));
        finish();
      }
    }
  }
}

// A warp for each row that fills its registers: so many rows are under way at once that no thread need load ahead.
// Others are spread over as many threads as they need.
template <int length, class Operation>
void launch_reduce_rows(const Execution& execution, const Operation& operation, std::int64_t rows, std::int64_t width) {
  FULMEN_CHECK(width < (std::int64_t{1} << 30), "rows of {} columns are too wide", width);
  const auto launch = [&]<int items, bool whole>() {
    const int threads = round_threads(divide_up(width / length, items), reduction_threads);
    const PassGrid grid = make_grid(threads, rows, 1, reduction_block);
    reduce_rows_kernel<length, items, whole>
        <<<grid.blocks, grid.block, 0, stream_of(execution)>>>(operation, rows, static_cast<int>(width));
    FULMEN_CUDA_CHECK_LAUNCH();
  };
  if constexpr (length > 1) {
    constexpr int of_warp = lanes_of_warp * length;
    if (width == 2 * of_warp) return launch.template operator()<2, true>();
    if (width == 4 * of_warp) return launch.template operator()<4, true>();
    if (width == 8 * of_warp) return launch.template operator()<8, true>();
  }
  launch.template operator()<4, false>();
}

}  // namespace fulmen::cuda
