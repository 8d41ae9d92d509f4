// Sums over the rows of a matrix, up to two values for each column, in an order that never changes. Blocks of rows
// leave their sums in scratch memory, then one kernel sums these.
#pragma once

#include "framework/cuda_check.h"
#include "framework/execution.h"
#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/device_vector.cuh"

namespace fulmen::cuda {

inline constexpr int column_warps = 8;           // of a block, one above the other
inline constexpr std::int64_t column_rows = 64;  // of a block, at least
// Fixed, so that a sum does not depend on the card.
inline constexpr std::int64_t most_row_blocks = 128;

// An operation has
//   using Sum                                   float or double
//   static constexpr int sums                   1 or 2
//   void add<length>(row, column, Sum (&sums)[Operation::sums][length]) const   adds what a packet of a row contributes
// partials [row blocks, sums, width].
template <int length, class Operation>
__global__ void __launch_bounds__(lanes_of_warp* column_warps)
    partial_columns_kernel(const Operation operation, std::int64_t rows, std::int64_t width, std::int64_t rows_of_block,
                           typename Operation::Sum* partials) {
  using Sum = typename Operation::Sum;
  constexpr int sums = Operation::sums;
  __shared__ Sum shared[column_warps][sums * length][lanes_of_warp];
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.x) * lanes_of_warp + threadIdx.x) * length;
  const std::int64_t first = blockIdx.y * rows_of_block, last = min(first + rows_of_block, rows);
  Sum own[sums][length] = {};
  if (column < width)
    for (std::int64_t row = first + threadIdx.y; row < last; row += column_warps)
      operation.template add<length>(row, column, own);
#pragma unroll
  for (int s = 0; s < sums; ++s)
#pragma unroll
    for (int i = 0; i < length; ++i) shared[threadIdx.y][s * length + i][threadIdx.x] = own[s][i];
  __syncthreads();
  if (column >= width) return;
  for (int value = threadIdx.y; value < sums * length; value += column_warps) {
    Sum sum = 0;
#pragma unroll
    for (int warp = 0; warp < column_warps; ++warp) sum += shared[warp][value][threadIdx.x];
    partials[(std::int64_t{blockIdx.y} * sums + value / length) * width + column + value % length] = sum;
  }
}

// totals[j] += the partial sums of column j of [width] in each of the blocks.
template <class Sum>
__global__ void __launch_bounds__(pass_threads)
    total_columns_kernel(const Sum* partials, int blocks, std::int64_t stride, std::int64_t width, Sum* totals) {
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * pass_threads + threadIdx.x;
  if (column >= width) return;
  Sum sum = 0;
  for (int block = 0; block < blocks; ++block) sum += partials[block * stride + column];
  totals[column] += sum;
}

// Adds the operation's sums to the vectors `totals` [width]; null vectors are passed over. `width` is a multiple of
// length.
template <int length, class Operation>
void add_column_sums(const Execution& execution, const Operation& operation, std::int64_t rows, std::int64_t width,
                     std::initializer_list<Tensor> totals) {
  using Sum = typename Operation::Sum;
  const std::int64_t rows_of_block = std::max(column_rows, divide_up(rows, most_row_blocks));
  const auto blocks = static_cast<unsigned>(divide_up(rows, rows_of_block));
  Arena::Frame frame(*execution.scratch);
  const Tensor partials = execution.scratch->take(sizeof(Sum) == sizeof(double) ? DType::fp64 : DType::fp32,
                                                  {static_cast<std::int64_t>(blocks), Operation::sums, width});
  const dim3 grid(static_cast<unsigned>(divide_up(width, lanes_of_warp * length)), blocks);
  partial_columns_kernel<length><<<grid, dim3(lanes_of_warp, column_warps), 0, stream_of(execution)>>>(
      operation, rows, width, rows_of_block, pointer_to<Sum>(partials));
  FULMEN_CUDA_CHECK_LAUNCH();
  std::int64_t part = 0;
  for (const Tensor& total : totals) {
    const Sum* const from = pointer_to<Sum>(partials) + part++ * width;
    if (total.is_null()) continue;
    total_columns_kernel<<<static_cast<unsigned>(divide_up(width, pass_threads)), pass_threads, 0,
                           stream_of(execution)>>>(from, static_cast<int>(blocks), Operation::sums * width, width,
                                                   pointer_to<Sum>(total));
    FULMEN_CUDA_CHECK_LAUNCH();
  }
}

}  // namespace fulmen::cuda
