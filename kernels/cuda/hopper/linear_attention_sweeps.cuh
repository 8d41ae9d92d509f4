// The sweeps that linear attention on Hopper is made of, as their launchers take them. Tensors are bf16 [batch, length,
// heads, D], reached through tensor maps with boxes of 64 tokens x 64 columns. D is 64 or 128 for keys and values
// alike.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "framework/cuda_check.h"
#include "kernels/cuda/hopper/attention_sweep.cuh"

namespace fulmen::cuda::hopper {

// Elements between neighbours of a bf16 tensor [batch, length, heads, D].
struct HeadStrides {
  std::int64_t row = 0, token = 0, head = 0;
};

// The summands of results, which may lie where they go; null for nothing. Only sweeps over a half of LRPE's features
// add.
struct AddTo {
  const __nv_bfloat16* data = nullptr;
  HeadStrides strides;
};

struct ForwardArguments {
  CUtensorMap key, value, query, output;
  Sweep sweep;
  float* square_sums = nullptr;  // [batch * length, heads], or null
  AddTo add_to;
};

struct StatesArguments {
  CUtensorMap a, b;  // key and value, or in reverse query and d_output
  Sweep sweep;
};

struct BackwardQueryArguments {
  CUtensorMap key, value, d_output, query, d_query;
  Sweep sweep;
  AddTo add_to;
};

struct BackwardKeyValueArguments {
  CUtensorMap query, d_output, key, value, d_key, d_value;
  Sweep sweep;
  AddTo add_key_to, add_value_to;
};

// The state that each piece begins with. It comes from the states that pieces alone make of zero, and the state before
// the whole row (in reverse: after it; null for zero). States of pieces are fp32 [batch * heads, pieces, D * D].
struct ScanArguments {
  const float* own;
  float* incoming;                 // may be own; or null
  Sweep sweep;                     // slope, documents, length, pieces
  const float* initial = nullptr;  // at head * initial_stride
  std::int64_t initial_stride = 0;
  int elements = 0;       // D * D
  float* last = nullptr;  // the state after the whole row, at head * last_stride; or null
  std::int64_t last_stride = 0;
};

struct SweepShape {
  int width;        // D
  Feature feature;  // of query and key
  dim3 grid;        // heads, pieces, rows
};

void launch_forward(const ForwardArguments& arguments, const SweepShape& shape, cudaStream_t stream);
void launch_states(const StatesArguments& arguments, const SweepShape& shape, bool reverse, cudaStream_t stream);
void launch_scan(const ScanArguments& arguments, int batch, bool reverse, cudaStream_t stream);
void launch_backward_query(const BackwardQueryArguments& arguments, const SweepShape& shape, cudaStream_t stream);
void launch_backward_key_value(const BackwardKeyValueArguments& arguments, const SweepShape& shape,
                               cudaStream_t stream);

// begins and ends, int [batch * length], as Sweep has them; from segments int64 [count + 1].
void launch_documents(const std::int64_t* segments, std::int64_t count, std::int64_t batch, std::int64_t length,
                      int* begins, int* ends, cudaStream_t stream);

// Calls f<D, feature, documents present>() for the kind of a sweep.
template <bool documents, int D, class F>
void with_feature(const SweepShape& shape, F&& f) {
  switch (shape.feature) {
    case Feature::plain: return f.template operator()<D, Feature::plain, documents>();
    case Feature::silu: return f.template operator()<D, Feature::silu, documents>();
    case Feature::rotated: return f.template operator()<D, Feature::rotated, documents>();
    case Feature::rotated_silu: return f.template operator()<D, Feature::rotated_silu, documents>();
  }
}

template <bool documents, class F>
void with_width(const SweepShape& shape, F&& f) {
  if (shape.width == 64) return with_feature<documents, 64>(shape, f);
  FULMEN_CHECK(shape.width == 128, "no sweep for heads of {}", shape.width);
  with_feature<documents, 128>(shape, f);
}

template <class F>
void with_kind(const SweepShape& shape, const Sweep& sweep, F&& f) {
  if (sweep.document_begin == nullptr)
    with_width<false>(shape, f);
  else
    with_width<true>(shape, f);
}

template <class Kernel, class Arguments>
void launch_sweep(Kernel kernel, int threads, int shared_bytes, dim3 grid, cudaStream_t stream,
                  const Arguments& arguments) {
  static_assert(sizeof(Arguments) <= 4096);
  FULMEN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  kernel<<<grid, threads, shared_bytes, stream>>>(arguments);
  FULMEN_CUDA_CHECK_LAUNCH();
}

// Operands of products in shared memory: [k] describes the 16 summed elements of step k, which lie along a tile's rows
// or down its columns. `panel` bytes lie between panels.
struct TileRows {
  std::uint32_t tile;
  int panel = panel_bytes;
  __device__ __forceinline__ std::uint64_t operator[](int k) const { return along_rows(tile, panel, k); }
};
struct TileColumns {
  std::uint32_t tile;
  int panel = panel_bytes;
  __device__ __forceinline__ std::uint64_t operator[](int k) const { return along_columns(tile, panel, k); }
};

// Starts the products of `steps` steps as a group: added to the results, or in their place. a: a tile's rows, or
// fragments in registers.
template <Major major, int steps, bool added = false, int n, class A, class B>
__device__ __forceinline__ void start_products(float (&results)[n], const A& a, const B& b) {
  products_begin();
#pragma unroll
  for (int k = 0; k < steps; ++k) product<major>(results, a[k], b[k], added || k > 0);
  products_commit();
}

// The summands of results, fetched ahead of their use.
template <int D>
class Previous {
 public:
  __device__ __forceinline__ void load(const AddTo& from, const Place& place, int begin, int tokens,
                                       const ThreadPlace& at) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = at.row + 8 * half;
      const bool there = from.data != nullptr && token < tokens;
      const __nv_bfloat16* const row = from.data + place.row * from.strides.row + (begin + token) * from.strides.token +
                                       place.head * from.strides.head + at.column;
#pragma unroll
      for (int j = 0; j < D / 8; ++j)
        pairs_[2 * j + half] = there ? *reinterpret_cast<const std::uint32_t*>(row + 8 * j) : 0;
    }
  }
  __device__ __forceinline__ void add(float (&results)[D / 2]) const {
#pragma unroll
    for (int i = 0; i < D / 4; ++i) results[2 * i] += low_half(pairs_[i]), results[2 * i + 1] += high_half(pairs_[i]);
  }

 private:
  std::uint32_t pairs_[D / 4];
};

}  // namespace fulmen::cuda::hopper
