// Which keys queries see, as ranges of keys in their row: key positions increase along it.
#pragma once

#include "framework/cuda_check.h"
#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/linear_attention_arithmetic.cuh"
#include "kernels/softmax_attention.h"

namespace fulmen::cuda {

struct KeyRange {
  int begin, end;  // empty where end is not above begin

  __device__ __forceinline__ bool has(int key) const { return key >= begin && key < end; }
};

__device__ __forceinline__ KeyRange hull(KeyRange a, KeyRange b) {
  if (a.end <= a.begin) return b;
  if (b.end <= b.begin) return a;
  return {min(a.begin, b.begin), max(a.end, b.end)};
}

struct VisibleKeys {
  const KeyRange* of_queries;  // [batch, length]
  const KeyRange* of_tiles;    // [batch, tiles]: the hull of `tile` queries
  int tiles;
};

// Writes them to scratch memory of the caller's frame.
VisibleKeys visible_keys(const Execution& execution, const SoftmaxAttentionInputs& inputs, int tile);

}  // namespace fulmen::cuda
