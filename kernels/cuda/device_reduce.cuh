// Sums and maxima over the threads of a warp, of a row and of a block, in an order that never changes.
#pragma once

namespace fulmen::cuda {

// Every lane gets the result of its group of `lanes` neighbouring lanes (a power of two up to 32). All lanes of the
// warp take part.
template <class T>
__device__ __forceinline__ T sum_of_lanes(T value, int lanes = 32) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// For values that are never NaN.
template <class T>
__device__ __forceinline__ T maximum_of_lanes(T value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

// The sum over the blockDim.x threads of a row of the block; every thread gets it. blockDim.x is a power of two
// below 32 or a multiple of 32, the block has whole warps. `shared` has room for a value per warp of the block and is
// used once.
template <class T>
__device__ __forceinline__ T sum_of_row(T value, T* shared) {
  value = sum_of_lanes(value, min(blockDim.x, 32));
  if (blockDim.x <= 32) return value;
  const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
  T* const values = shared + threadIdx.y * warps;
  if (lane == 0) values[threadIdx.x / 32] = value;
  __syncthreads();
  return sum_of_lanes(lane < warps ? values[lane] : T(0));
}

// The maximum over a block of one row of whole warps, of values that are never NaN; every thread gets it.
template <class T>
__device__ __forceinline__ T maximum_of_block(T value, T* shared) {
  value = maximum_of_lanes(value);
  if (blockDim.x <= 32) return value;
  const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  return maximum_of_lanes(shared[lane < warps ? lane : 0]);
}

}  // namespace fulmen::cuda
