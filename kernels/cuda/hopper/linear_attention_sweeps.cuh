// The sweeps that linear attention on Hopper is made of, as their launchers take them. Tensors are bf16 [batch, length,
// heads, D], reached through tensor maps with boxes of 64 tokens x 64 columns; D is 64 or 128 for keys and values alike.
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

struct ForwardArguments {
  CUtensorMap key, value, query, output;
  Sweep sweep;
  float* square_sums = nullptr;                    // [batch * length, heads], or null
  const __nv_bfloat16* add_to = nullptr;           // what the output is added to (may be the output itself), or null
  HeadStrides add_strides;
};

struct StatesArguments {
  CUtensorMap a, b;                                // key and value, or in reverse query and d_output
  Sweep sweep;
};

struct BackwardQueryArguments {
  CUtensorMap key, value, d_output, query, d_query;
  Sweep sweep;
};

struct BackwardKeyValueArguments {
  CUtensorMap query, d_output, key, value, d_key, d_value;
  Sweep sweep;
  const __nv_bfloat16* add_to = nullptr;           // what d_value is added to, or null
  HeadStrides add_strides;
};

// Brings each piece's incoming state: from what each piece alone makes of zero (states, fp32 [batch * heads, pieces, D * D],
// in place) and the state before the whole row (after it, in reverse; null for zero).
struct ScanArguments {
  float* states;
  Sweep sweep;                                     // slope, documents, length, pieces
  const float* initial = nullptr;                  // at head * initial_stride
  std::int64_t initial_stride = 0;
  int elements = 0;                                // D * D
};

struct SweepShape {
  int width;                                       // D
  Activation activation;                           // of query and key
  dim3 grid;                                       // heads, pieces, rows
};

void launch_forward(const ForwardArguments& arguments, const SweepShape& shape, cudaStream_t stream);
void launch_states(const StatesArguments& arguments, const SweepShape& shape, bool reverse, cudaStream_t stream);
void launch_scan(const ScanArguments& arguments, int batch, bool reverse, cudaStream_t stream);
void launch_backward_query(const BackwardQueryArguments& arguments, const SweepShape& shape, cudaStream_t stream);
void launch_backward_key_value(const BackwardKeyValueArguments& arguments, const SweepShape& shape, cudaStream_t stream);

// begins and ends, int [batch * length], as Sweep has them; from segments int64 [count + 1].
void launch_documents(const std::int64_t* segments, std::int64_t count, std::int64_t batch, std::int64_t length, int* begins,
                      int* ends, cudaStream_t stream);

// Calls f<D, activation, documents present>() for the kind of a sweep.
template <bool documents, class F>
void with_width_and_activation(const SweepShape& shape, F&& f) {
  const bool silu = shape.activation == Activation::silu;
  FULMEN_CHECK(silu || shape.activation == Activation::none, "no sweep for this activation");
  switch (shape.width) {
    case 64:
      return silu ? f.template operator()<64, Activation::silu, documents>()
                  : f.template operator()<64, Activation::none, documents>();
    case 128:
      return silu ? f.template operator()<128, Activation::silu, documents>()
                  : f.template operator()<128, Activation::none, documents>();
    default: break;
  }
  throw InternalError(fmt::format("no sweep for heads of {}", shape.width));
}

template <class F>
void with_kind(const SweepShape& shape, const Sweep& sweep, F&& f) {
  if (sweep.document_begin == nullptr)
    with_width_and_activation<false>(shape, f);
  else
    with_width_and_activation<true>(shape, f);
}

template <class Kernel, class Arguments>
void launch_sweep(Kernel kernel, int threads, int shared_bytes, dim3 grid, cudaStream_t stream, const Arguments& arguments) {
  static_assert(sizeof(Arguments) <= 4096);
  FULMEN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  kernel<<<grid, threads, shared_bytes, stream>>>(arguments);
  FULMEN_CUDA_CHECK_LAUNCH();
}

// results += what lies at the same places of a tensor.
template <int D>
__device__ __forceinline__ void add_previous(float (&results)[D / 2], const __nv_bfloat16* tensor, const HeadStrides& strides,
                                             const Place& place, int begin, int tokens, const ThreadPlace& at) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = at.row + 8 * half;
    if (token >= tokens) continue;
    const __nv_bfloat16* const row =
        tensor + place.row * strides.row + (begin + token) * strides.token + place.head * strides.head + at.column;
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      const std::uint32_t packed = *reinterpret_cast<const std::uint32_t*>(row + 8 * j);
      results[4 * j + 2 * half] += low_half(packed);
      results[4 * j + 2 * half + 1] += high_half(packed);
    }
  }
}

}  // namespace fulmen::cuda::hopper
