// Products of bf16 tiles in shared memory by a warp: m16n8k16 of Ampere's tensor cores and the loads that feed them.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace fulmen::cuda {

// 64 rows of `width` columns. Rows lie 16 bytes further apart than they are long, so that eight of them begin in
// different banks.
template <int width>
struct MmaTile {
  static constexpr int rows = 64;
  static constexpr int stride = width + 8;
  __nv_bfloat16 elements[rows][stride];
};

// Four 8 x 8 matrices; a lane gives the address of a row.
__device__ __forceinline__ void load_matrices(const __nv_bfloat16* row, std::uint32_t (&words)[4]) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address));
}
__device__ __forceinline__ void load_matrices_transposed(const __nv_bfloat16* row, std::uint32_t (&words)[4]) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address));
}

// sums [16, 8] += a [16, 16] b [16, 8]. A lane has sums of rows lane / 4 (0, 1) and lane / 4 + 8 (2, 3), in columns 2
// (lane % 4) and the next.
__device__ __forceinline__ void multiply_add(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b_first,
                                             std::uint32_t b_second) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_first), "r"(b_second));
}

// products [16, 64] = a[first_row, ...] b^T, over `width` columns of both.
template <int width>
__device__ __forceinline__ void multiply_rows(const MmaTile<width>& a, int first_row, const MmaTile<width>& b,
                                              float (&products)[8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (auto& product : products)
#pragma unroll
    for (float& value : product) value = 0;
#pragma unroll
  for (int k = 0; k < width; k += 16) {
    std::uint32_t left[4];
    load_matrices(&a.elements[first_row + lane % 16][k + lane / 16 * 8], left);
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      std::uint32_t right[4];
      load_matrices(&b.elements[n * 8 + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8], right);
      multiply_add(products[n], left, right[0], right[1]);
      multiply_add(products[n + 1], left, right[2], right[3]);
    }
  }
}

__device__ __forceinline__ std::uint32_t pack_bfloat16(float low, float high) {
  std::uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

// sums [16, width] += weights [16, 64] rows [64, width], the weights rounded to bf16.
template <int width>
__device__ __forceinline__ void add_weighted_rows(const float (&weights)[8][4], const MmaTile<width>& rows,
                                                  float (&sums)[width / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float(&low)[4] = weights[2 * k];
    const float(&high)[4] = weights[2 * k + 1];
    const std::uint32_t left[4] = {pack_bfloat16(low[0], low[1]), pack_bfloat16(low[2], low[3]),
                                   pack_bfloat16(high[0], high[1]), pack_bfloat16(high[2], high[3])};
#pragma unroll
    for (int n = 0; n < width / 8; n += 2) {
      std::uint32_t right[4];
      load_matrices_transposed(&rows.elements[k * 16 + lane % 16][n * 8 + lane / 16 * 8], right);
      multiply_add(sums[n], left, right[0], right[1]);
      multiply_add(sums[n + 1], left, right[2], right[3]);
    }
  }
}

}  // namespace fulmen::cuda
