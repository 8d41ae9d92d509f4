// Sums of the states that slices of a sequence pass on, and of their terms in gradients. The slices' own part is in
// linear_attention_plain.cu.
#include "kernels/cuda/linear_attention_states.h"

#include "framework/cuda_check.h"
#include "kernels/cuda/device_vector.cuh"
#include "kernels/cuda/linear_attention_arithmetic.cuh"

namespace fulmen::cuda {
namespace {

constexpr int threads = 256;

cudaStream_t stream_of(const Execution& execution) { return static_cast<cudaStream_t>(execution.stream.handle); }

// A thread per element of out; slices in their order, so that the sum has one.
template <class A>
__global__ void __launch_bounds__(threads)
    combine_states_kernel(const A* states, const double* slope, const std::int64_t* bounds, int first, int end,
                          int slice, bool before, const std::int64_t* reach, std::int64_t heads, std::int64_t elements,
                          std::int64_t total, A* out) {
  const std::int64_t i = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (i >= total) return;
  const std::int64_t row_head = i / elements;
  const std::int64_t farthest = reach[row_head / heads];
  const double own_slope = slope[row_head % heads];
  A sum = 0;
  for (int other = first; other < end; ++other) {
    const std::int64_t distance = before ? bounds[slice] - bounds[other + 1] : bounds[other] - bounds[slice + 1];
    if (distance >= farthest) continue;
    sum += static_cast<A>(exp(-own_slope * static_cast<double>(distance))) * states[other * total + i];
  }
  out[i] = sum;
}

// A warp per token and head.
template <class T, class A>
__global__ void __launch_bounds__(threads)
    add_heads_kernel(HeadsView<const T> from, HeadsView<T> to, std::int64_t length, std::int64_t heads, int width,
                     std::int64_t total, A* square_sums) {
  const std::int64_t i = (std::int64_t{blockIdx.x} * threads + threadIdx.x) / 32;
  if (i >= total) return;
  const std::int64_t head = i % heads, token = i / heads % length, row = i / (heads * length);
  const T* const added = from.at(row, token, head);
  T* const place = to.at(row, token, head);
  A sum = 0;
  for (int column = threadIdx.x % 32; column < width; column += 32) {
    const T result = round_to<T>(to_accumulated(place[column]) + to_accumulated(added[column]));
    place[column] = result;
    const A wide = to_accumulated(result);
    sum += wide * wide;
  }
  if (square_sums == nullptr) return;
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  if (threadIdx.x % 32 == 0) square_sums[i] = sum;
}

unsigned blocks_of(std::int64_t total) {
  const std::int64_t blocks = (total + threads - 1) / threads;
  FULMEN_CHECK(blocks <= 0x7fffffff, "{} elements are too many for one launch", total);
  return static_cast<unsigned>(blocks);
}

}  // namespace

void combine_slice_states(const Execution& execution, const SliceStates& slices, SliceSide side, const Tensor& reach,
                          const Tensor& out) {
  const bool before = side == SliceSide::before;
  const auto count = static_cast<int>(slices.states.size(0));
  dispatch_fp32_fp64(out.dtype(), [&]<class A>(A) {
    combine_states_kernel<A><<<blocks_of(out.elements()), threads, 0, stream_of(execution)>>>(
        slices.states.as<A>(), slices.slope.as<double>(), slices.bounds.as<std::int64_t>(),
        before ? 0 : slices.slice + 1, before ? slices.slice : count, slices.slice, before, reach.as<std::int64_t>(),
        out.size(1), out.size(2) * out.size(3), out.elements(), out.as<A>());
    FULMEN_CUDA_CHECK_LAUNCH();
  });
}

void add_heads(const Execution& execution, const Tensor& from, const Tensor& to, const Tensor& square_sums) {
  const std::int64_t total = to.size(0) * to.size(1) * to.size(2);
  dispatch_floating(to.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    add_heads_kernel<T, A><<<blocks_of(32 * total), threads, 0, stream_of(execution)>>>(
        HeadsView<const T>(from), HeadsView<T>(to), to.size(1), to.size(2), static_cast<int>(to.size(3)), total,
        square_sums ? square_sums.as<A>() : nullptr);
    FULMEN_CUDA_CHECK_LAUNCH();
  });
}

}  // namespace fulmen::cuda
