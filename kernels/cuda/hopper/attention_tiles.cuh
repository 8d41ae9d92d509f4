// Tiles of linear attention's sweeps on Hopper: their sizes, where their elements lie, and how threads hold them.
#pragma once

#include "kernels/cuda/hopper/wgmma.cuh"

namespace fulmen::cuda::hopper {

inline constexpr int chunk_tokens = 64;
inline constexpr int warpgroup_threads = 128;
inline constexpr int panel_columns = 64;  // columns of one swizzled panel: rows of 128 bytes
inline constexpr int panel_bytes = chunk_tokens * panel_columns * 2;

template <int D>
inline constexpr int tile_bytes = D / panel_columns* panel_bytes;  // of a [64, D] tile, panel after panel
template <int D>
inline constexpr int state_bytes = D* D * 2;  // of a published state, [D, 64] panels
template <int D>
inline constexpr int state_panel = D* panel_columns * 2;
template <int D>
inline constexpr int state_groups = D / 64;  // warpgroups that hold the state

// Address of 8 elements of a swizzled tile: `panel` bytes lie between panels.
__device__ __forceinline__ std::uint32_t element_address(std::uint32_t tile, int panel, int row, int eighth) {
  return tile + (eighth >> 3) * panel + row * 128 + (((eighth ^ row) & 7) << 4);
}

// Descriptors of step k (16 summed elements) of an operand in a [64, D] tile, or in a published state.
__device__ __forceinline__ std::uint64_t along_rows(std::uint32_t tile, int panel,
                                                    int k) {  // the summed dimension is contiguous
  return descriptor(tile + (k >> 2) * panel + (k & 3) * 32, 16);
}
__device__ __forceinline__ std::uint64_t along_columns(std::uint32_t tile, int panel, int k) {  // the outer is
  return descriptor(tile + k * 2048, panel);
}

// A thread's place in the results of a product: rows `row` and `row + 8` of 64, columns 8 j + `column` and the next.
struct ThreadPlace {
  int warp = (threadIdx.x / 32) % 4, lane = threadIdx.x % 32;
  int row = 16 * warp + lane / 4;
  int column = 2 * (lane % 4);
};

template <int D>
struct Fragments {  // a [64, D] tile as the A operand of products, D / 16 steps
  std::uint32_t step[D / 16][4];
};

// Writes results [64, D] to a tile in bf16.
template <int D>
__device__ __forceinline__ void store_results(const float (&results)[D / 2], std::uint32_t tile,
                                              const ThreadPlace& at) {
#pragma unroll
  for (int g = 0; g < D / 16; ++g) {
    const float* const d = results + 8 * g;
    const std::uint32_t r[4] = {pack(d[0], d[1]), pack(d[2], d[3]), pack(d[4], d[5]), pack(d[6], d[7])};
    store_matrices(element_address(tile, panel_bytes, 16 * at.warp + at.lane % 16, 2 * g + at.lane / 16), r);
  }
}

}  // namespace fulmen::cuda::hopper
