// Token embedding on a GPU: rows gathered in one pass; gradients summed over tokens sorted by row, so that no two
// threads ever add to one place.
#include "kernels/cuda/embedding.h"

#include <cub/device/device_radix_sort.cuh>

#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/device_vector.cuh"

namespace fulmen::cuda {
namespace {

// One token's row, or zeros when another rank has it.
template <class T>
struct GatherRow {
  template <int length>
  struct Loaded {
    Packet<T, length> values;
  };
  const T* source;   // null: zeros
  T* out;
  Accumulated<T> scale;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t, std::int64_t column) const {
    if (source != nullptr) return {load_packet<length>(source + column)};
    return {make_packet<T, length>([](int) { return Accumulated<T>(0); })};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t, std::int64_t column) const {
    const Accumulated<T> factor = source != nullptr ? scale : Accumulated<T>(0);
    store_packet(out + column, make_packet<T, length>([&](int i) { return factor * loaded.values[i]; }));
  }
};

template <class T>
struct Gather {
  static constexpr int items = 8;   // the loads of a row wait for that of its token: all of them then, by one warp
  const std::int32_t* tokens;
  Rows<T> weight, out;
  std::int64_t first, rows;
  Accumulated<T> scale;

  __device__ __forceinline__ GatherRow<T> for_row(std::int64_t token) const {
    const std::int64_t row = tokens[token] - first;
    return {row >= 0 && row < rows ? weight.at(row, 0) : nullptr, out.at(token, 0), scale};
  }
};

// The gradient. Positions are sorted by row, and by position within a row, and cut into windows of a fixed length. A
// run is what one row has of them. Runs within a window are added to d_weight where they are found. Of runs that reach
// over an end of their window, each window leaves the sum of its part, and a second kernel adds the parts in order:
// thus a token that fills half of the batch is summed by as many blocks as it has windows. Nothing depends on timing.
constexpr int window = 16;   // so that an H200 has several blocks a multiprocessor one after the other
constexpr int window_threads = 256;
constexpr int window_batch = 4;   // positions whose loads are in flight together
constexpr int gradient_packet = 4;
constexpr int combine_warps = 8;

// Keys: the row here, or `rows` for tokens of other ranks, which the sort leaves at the end.
__global__ void __launch_bounds__(window_threads)
    keys_kernel(const std::int32_t* tokens, int count, std::int64_t first, std::int64_t rows, std::uint32_t* keys,
                std::int32_t* positions) {
  const int t = blockIdx.x * window_threads + threadIdx.x;
  if (t >= count) return;
  const std::int64_t row = tokens[t] - first;
  keys[t] = static_cast<std::uint32_t>(row >= 0 && row < rows ? row : rows);
  positions[t] = t;
}

template <int length, class A, class T>
__device__ __forceinline__ void accumulate(A (&sum)[length], const Packet<T, length>& packet) {
#pragma unroll
  for (int i = 0; i < length; ++i) sum[i] += static_cast<A>(packet[i]);
}

// d_weight + scale * sum.
template <int length, class A, class G>
__device__ __forceinline__ Packet<G, length> updated(const Packet<G, length>& before, const A (&sum)[length], A scale) {
  return make_packet<G, length>([&](int i) { return before[i] + scale * sum[i]; });
}

// Partial sums [windows, 2, width]: of the run that reaches in from the window before, and of the one that only begins
// here and reaches over the end. Written where there is such a run.
template <int length, class T, class G>
__global__ void __launch_bounds__(window_threads)
    window_kernel(const std::uint32_t* keys, const std::int32_t* positions, int count, std::uint32_t rows,
                  Rows<const T> d_out, int width, Accumulated<G> scale, Rows<G> d_weight, Accumulated<G>* partials) {
  using A = Accumulated<G>;
  // The keys with one neighbour on either side; where there is none, a key that no position has.
  constexpr std::uint32_t none = 0xffffffffu;
  __shared__ std::uint32_t shared_keys[window + 2];
  __shared__ std::int32_t shared_positions[window];
  const int begin = blockIdx.x * window, length_here = min(window, count - begin);
  for (int i = threadIdx.x; i < length_here + 2; i += blockDim.x) {
    const int at = begin + i - 1;
    shared_keys[i] = at >= 0 && at < count ? keys[at] : none;
    if (i >= 1 && i <= length_here) shared_positions[i - 1] = positions[at];
  }
  __syncthreads();
  const std::int64_t column =
      (static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * length;
  if (column >= width) return;
  const auto key_at = [&](int i) { return shared_keys[i + 1]; };
  bool reaches_in = key_at(-1) == key_at(0);
  A sum[length] = {};
  for (int base = 0; base < length_here; base += window_batch) {
    Packet<T, length> loaded[window_batch];
    Packet<G, length> before[window_batch];
    // No two runs share a row, so what one stores is never what another has loaded ahead.
#pragma unroll
    for (int i = 0; i < window_batch; ++i) {
      const int at = base + i;
      if (at >= length_here || key_at(at) >= rows) break;
      loaded[i] = load_packet<length>(d_out.at(shared_positions[at], column));
      if (key_at(at) != key_at(at + 1)) before[i] = load_packet<length>(d_weight.at(key_at(at), column));
    }
#pragma unroll
    for (int i = 0; i < window_batch; ++i) {
      const int at = base + i;
      if (at >= length_here) break;
      const std::uint32_t key = key_at(at);
      if (key >= rows) return;
      accumulate(sum, loaded[i]);
      const bool ends_here = key != key_at(at + 1);
      if (!ends_here && at + 1 < length_here) continue;
      if (ends_here && !reaches_in) {
        store_packet(d_weight.at(key, column), updated(before[i], sum, scale));
      } else {
        A* const part = partials + (2 * static_cast<std::int64_t>(blockIdx.x) + (reaches_in ? 0 : 1)) * width + column;
        store_packet(part, make_packet<A, length>([&](int j) { return sum[j]; }));
      }
      reaches_in = false;
#pragma unroll
      for (int j = 0; j < length; ++j) sum[j] = A(0);
    }
  }
}

// A block per window and 32 packets of columns: where a run begins that reaches over the window's end, adds its parts.
// Each warp sums a consecutive share of them in order, then the shares are added in order.
template <int length, class G>
__global__ void __launch_bounds__(32 * combine_warps)
    combine_kernel(const std::uint32_t* keys, int count, std::uint32_t rows, int width, Accumulated<G> scale,
                   const Accumulated<G>* partials, Rows<G> d_weight) {
  using A = Accumulated<G>;
  __shared__ A shares[combine_warps][32][length];
  const int begin = blockIdx.x * window, end = begin + window;
  if (end >= count) return;
  const std::uint32_t key = keys[end];
  if (key >= rows || keys[end - 1] != key) return;         // no run reaches over the end
  if (begin > 0 && keys[begin - 1] == key) return;         // it began before this window
  // One past its last position.
  int low = end + 1, high = count;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (keys[middle] == key) low = middle + 1;
    else high = middle;
  }
  const int parts = (low - 1) / window - static_cast<int>(blockIdx.x) + 1;   // windows that it touches
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.y) * 32 + lane) * length;
  const int share = (parts + combine_warps - 1) / combine_warps;
  const int first = min(warp * share, parts), last = min(first + share, parts);
  A sum[length] = {};
  if (column < width) {
#pragma unroll 8
    for (int part = first; part < last; ++part) {
      const std::int64_t slot = 2 * (static_cast<std::int64_t>(blockIdx.x) + part) + (part == 0 ? 1 : 0);
      accumulate(sum, load_packet<length>(partials + slot * width + column));
    }
  }
#pragma unroll
  for (int j = 0; j < length; ++j) shares[warp][lane][j] = sum[j];
  __syncthreads();
  if (warp != 0 || column >= width) return;
  for (int other = 1; other < combine_warps; ++other) {
#pragma unroll
    for (int j = 0; j < length; ++j) sum[j] += shares[other][lane][j];
  }
  G* const target = d_weight.at(key, column);
  store_packet(target, updated(load_packet<length>(target), sum, scale));
}

struct SortedTokens {
  std::uint32_t* keys;
  std::int32_t* positions;
};

// In scratch memory of the caller's frame.
SortedTokens sort_tokens(const Execution& execution, const Tensor& tokens, std::int64_t first, std::int64_t rows) {
  const auto count = static_cast<int>(tokens.elements());
  const auto take = [&](DType dtype) { return execution.scratch->take(dtype, {count}).data(); };
  auto* const keys = static_cast<std::uint32_t*>(take(DType::uint32));
  auto* const positions = static_cast<std::int32_t*>(take(DType::int32));
  const SortedTokens sorted{static_cast<std::uint32_t*>(take(DType::uint32)),
                            static_cast<std::int32_t*>(take(DType::int32))};
  keys_kernel<<<static_cast<unsigned>(divide_up(count, window_threads)), window_threads, 0, stream_of(execution)>>>(
      pointer_to<std::int32_t>(tokens), count, first, rows, keys, positions);
  FULMEN_CUDA_CHECK_LAUNCH();
  int bits = 1;   // of the largest key, `rows`
  while (rows >> bits != 0) ++bits;
  std::size_t bytes = 0;
  const auto sort = [&](void* temporary) {
    FULMEN_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(temporary, bytes, keys, sorted.keys, positions, sorted.positions,
                                                      count, 0, bits, stream_of(execution)));
  };
  sort(nullptr);   // only says how much it needs
  sort(execution.scratch->take(DType::uint8, {static_cast<std::int64_t>(bytes)}).data());
  return sorted;
}

template <class T, class G>
void add_gradient(const Execution& execution, const Tensor& tokens, const Tensor& d_out, std::int64_t first,
                  double scale, const Tensor& d_weight) {
  using A = Accumulated<G>;
  const std::int64_t rows = d_weight.size(0), width = d_weight.size(1), windows = divide_up(tokens.elements(), window);
  Arena::Frame frame(*execution.scratch);
  const SortedTokens sorted = sort_tokens(execution, tokens, first, rows);
  const Tensor partials = execution.scratch->take(accumulation_dtype(d_weight.dtype()), {windows, 2, width});
  const auto count = static_cast<int>(tokens.elements());
  const bool packets = width % gradient_packet == 0 && packets_aligned(gradient_packet, {d_out, d_weight});
  dispatch_length<gradient_packet>(packets, [&](auto length) {
    const std::int64_t of_row = width / length.value;
    const int threads = std::max(lanes_of_warp, round_threads(of_row, window_threads));
    const dim3 grid(static_cast<unsigned>(windows), static_cast<unsigned>(divide_up(of_row, threads)));
    window_kernel<length.value, T, G><<<grid, threads, 0, stream_of(execution)>>>(
        sorted.keys, sorted.positions, count, static_cast<std::uint32_t>(rows),
        Rows<const T>{pointer_to<const T>(d_out), d_out.stride(0)}, static_cast<int>(width), static_cast<A>(scale),
        rows_of<G>(d_weight), pointer_to<A>(partials));
    FULMEN_CUDA_CHECK_LAUNCH();
    const dim3 combine_grid(static_cast<unsigned>(windows), static_cast<unsigned>(divide_up(of_row, 32)));
    combine_kernel<length.value, G><<<combine_grid, 32 * combine_warps, 0, stream_of(execution)>>>(
        sorted.keys, count, static_cast<std::uint32_t>(rows), static_cast<int>(width), static_cast<A>(scale),
        pointer_to<A>(partials), rows_of<G>(d_weight));
    FULMEN_CUDA_CHECK_LAUNCH();
  });
}

}  // namespace

void embedding_forward(const Execution& execution, const Tensor& tokens, const Tensor& weight, std::int64_t first,
                       double scale, const Tensor& out) {
  dispatch_floating(weight.dtype(), [&]<class T>(T) {
    const Gather<T> operation{pointer_to<std::int32_t>(tokens), rows_of<T>(weight),      rows_of<T>(out), first,
                              weight.size(0),                   static_cast<Accumulated<T>>(scale)};
    dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {weight, out}), [&](auto length) {
      launch_pass<length.value>(execution, operation, out.size(0), out.size(1));
    });
  });
}

void embedding_backward(const Execution& execution, const Tensor& tokens, const Tensor& d_out, std::int64_t first,
                        double scale, const Tensor& d_weight) {
  if (d_weight.size(0) == 0) return;   // all tokens are other ranks'
  FULMEN_CHECK(tokens.elements() < (std::int64_t{1} << 30) && d_weight.size(0) < 0x7fffffff &&
                   d_weight.size(1) < (std::int64_t{1} << 20),
               "{} tokens, d_weight {}", tokens.elements(), d_weight.describe());
  dispatch_floating(d_out.dtype(), [&]<class T>(T) {
    dispatch_floating(d_weight.dtype(), [&]<class G>(G) {
      if constexpr (sizeof(G) >= sizeof(T)) add_gradient<T, G>(execution, tokens, d_out, first, scale, d_weight);
    });
  });
}

}  // namespace fulmen::cuda
