// Token embedding on a GPU: rows gathered in one pass; gradients summed along the order of the tokens.
#include "kernels/embedding.h"

#include "kernels/cuda/device_launch.cuh"
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
  const T* source;  // null: zeros
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
  static constexpr int items = 2;  // the loads of a row wait for its token: all of them then, by one warp
  const std::int32_t* tokens;
  Rows<T> weight, out;
  std::int64_t first, rows;
  Accumulated<T> scale;

  __device__ __forceinline__ GatherRow<T> for_row(std::int64_t token) const {
    const std::int64_t row = tokens[token] - first;
    return {row >= 0 && row < rows ? weight.at(row, 0) : nullptr, out.at(token, 0), scale};
  }
};

// The gradient. The order of the positions, sorted by token, is cut into windows of a fixed length. A run is what one
// token has of it. A block sums the runs that begin in its window, also where they go on a little after its end. Longer
// runs are summed window by window, and a second kernel adds these parts. Thus a token that fills half of the batch is
// summed by as many blocks as it has windows. No two threads ever add to one place, nothing depends on timing.
constexpr int window = 16;           // so that an H200 has several blocks a multiprocessor one after the other
constexpr int longest = 2 * window;  // that a run may go on after its window in the same block
constexpr int window_threads = 128;
constexpr int window_batch = 8;  // positions whose loads are in flight together
constexpr int gradient_packet = 4;
constexpr int combine_warps = 8, combine_windows = 16, combine_batch = 8;

// Beyond the ends of the order.
constexpr std::int32_t before_all = -1, after_all = 0x7fffffff;

struct OrderedTokens {
  const std::int32_t* tokens;
  const std::int32_t* order;
  int count;
  std::int32_t first, end;  // the tokens of this rank

  __device__ __forceinline__ std::int32_t at(int place) const {
    if (place < 0) return before_all;
    return place < count ? tokens[order[place]] : after_all;
  }
};

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

// The tokens of a window and of what lies around it; places count from the window's first.
struct WindowTokens {
  static_assert(longest % window == 0);
  static constexpr int before = longest + 1;  // one more, to tell a run that only begins so far ahead
  static constexpr int count = before + window + longest;
  std::int32_t tokens[count];
  std::int32_t positions[window + longest];

  __device__ __forceinline__ void load(const OrderedTokens& all, int begin) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const int place = begin + i - before;
      const bool is_one = place >= 0 && place < all.count;
      const std::int32_t position = is_one ? all.order[place] : 0;
      tokens[i] = is_one ? all.tokens[position] : place < 0 ? before_all : after_all;
      if (i >= before) positions[i - before] = position;
    }
    __syncthreads();
  }
  __device__ __forceinline__ std::int32_t at(int place) const { return tokens[place + before]; }
  // The first place from `low` to `high` whose token is `token` or larger; else `high`.
  __device__ __forceinline__ int first_from(std::int32_t token, int low, int high) const {
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (at(middle) < token)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
  // Whether a run goes on for `longest` places past the end of the window where it begins. It is in this window or
  // reaches it.
  __device__ __forceinline__ bool is_long(std::int32_t token) const {
    const int begins = first_from(token, -before, window);
    if (begins == -before) return true;
    const int end = (begins + longest) / window * window + window - longest;  // of its window
    return at(end - 1 + longest) == token;
  }
};

// Parts of long runs [windows, 2, width]: of the run that reaches in from the window before, and of the run that begins
// here. Written where there is such a run.
template <int length, class T, class G>
__global__ void __launch_bounds__(window_threads)
    window_kernel(OrderedTokens all, Rows<const T> d_out, int width, Accumulated<G> scale, Rows<G> d_weight,
                  Accumulated<G>* parts) {
  await_kernel_before();
  using A = Accumulated<G>;
  __shared__ WindowTokens here;
  const int begin = blockIdx.x * window, length_here = min(window, all.count - begin);
  here.load(all, begin);
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * length;
  if (column >= width) return;
  int from = here.first_from(all.first, 0, length_here), to = length_here;
  const std::int32_t first_token = here.at(0), last_token = here.at(length_here - 1);
  const bool reaches_in = from == 0 && here.at(-1) == first_token && here.is_long(first_token);
  if (from == 0 && here.at(-1) == first_token && !reaches_in) from = here.first_from(first_token + 1, 0, length_here);
  // The rest of the last run, unless it is long or an earlier window's.
  if (from < to && here.at(to) == last_token && !here.is_long(last_token))
    to = here.first_from(last_token + 1, to, window + longest);
  to = here.first_from(all.end, from, to);
  A sum[length] = {};
  for (int base = from; base < to; base += window_batch) {
    Packet<T, length> loaded[window_batch];
    Packet<G, length> before[window_batch];
    // No two runs share a row, so what one stores is never what another has loaded ahead.
#pragma unroll
    for (int i = 0; i < window_batch; ++i) {
      const int at = base + i;
      if (at >= to) break;
      loaded[i] = load_packet<length>(d_out.at(here.positions[at], column));
      if (here.at(at) != here.at(at + 1)) before[i] = load_packet<length>(d_weight.at(here.at(at) - all.first, column));
    }
#pragma unroll
    for (int i = 0; i < window_batch; ++i) {
      const int at = base + i;
      if (at >= to) break;
      accumulate(sum, loaded[i]);
      const std::int32_t token = here.at(at);
      const bool ends = token != here.at(at + 1), of_long = reaches_in && token == first_token;
      if (!ends && at + 1 < to) continue;
      if (ends && !of_long) {
        store_packet(d_weight.at(token - all.first, column), updated(before[i], sum, scale));
      } else {
        A* const part = parts + (2 * static_cast<std::int64_t>(blockIdx.x) + (of_long ? 0 : 1)) * width + column;
        store_packet(part, make_packet<A, length>([&](int j) { return sum[j]; }));
      }
#pragma unroll
      for (int j = 0; j < length; ++j) sum[j] = A(0);
    }
  }
}

// A block per `combine_windows` windows and 32 packets of columns: adds the parts of each long run that begins in one
// of them. A warp has every combine_warps-th part, in order, then the sums of the warps are added in order.
template <int length, class G>
__global__ void __launch_bounds__(32 * combine_warps)
    combine_kernel(OrderedTokens all, int width, Accumulated<G> scale, const Accumulated<G>* parts, Rows<G> d_weight) {
  await_kernel_before();
  using A = Accumulated<G>;
  __shared__ A sums[combine_warps][32][length];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int windows = (all.count + window - 1) / window;
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.y) * 32 + lane) * length;
  // Whether the last run of a lane's window begins in it and is long.
  const int end = (blockIdx.x * combine_windows + lane + 1) * window;
  bool found = false;
  if (lane < combine_windows && end < all.count) {
    const std::int32_t token = all.at(end - 1);
    found = token >= all.first && token < all.end && all.at(end - 1 + longest) == token &&
            all.at(end - window - 1) != token;
  }
  for (unsigned left = __ballot_sync(0xffffffffu, found); left != 0; left &= left - 1) {
    const int begins = blockIdx.x * combine_windows + __ffs(left) - 1;
    const std::int32_t token = all.at((begins + 1) * window - 1);
    A sum[length] = {};
    bool more = column < width;
    for (int base = begins + warp; more; base += combine_warps * combine_batch) {
      Packet<A, length> loaded[combine_batch];
      bool has[combine_batch];
#pragma unroll
      for (int i = 0; i < combine_batch; ++i) {
        const int at = base + i * combine_warps;
        has[i] = at < windows && (at == begins || all.at(at * window) == token);
        if (has[i])
          loaded[i] = load_packet<length>(parts + (2 * std::int64_t{at} + (at == begins ? 1 : 0)) * width + column);
      }
#pragma unroll
      for (int i = 0; i < combine_batch; ++i)
        if (has[i]) accumulate(sum, loaded[i]);
      more = has[combine_batch - 1];
    }
    __syncthreads();  // the sums before are read no more
#pragma unroll
    for (int j = 0; j < length; ++j) sums[warp][lane][j] = sum[j];
    __syncthreads();
    if (warp != 0 || column >= width) continue;
    for (int other = 1; other < combine_warps; ++other) {
#pragma unroll
      for (int j = 0; j < length; ++j) sum[j] += sums[other][lane][j];
    }
    G* const target = d_weight.at(token - all.first, column);
    store_packet(target, updated(load_packet<length>(target), sum, scale));
  }
}

template <class T, class G>
void add_gradient(const Execution& execution, const Tensor& tokens, const TokenOrder& order, const Tensor& d_out,
                  std::int64_t first, double scale, const Tensor& d_weight) {
  using A = Accumulated<G>;
  const std::int64_t width = d_weight.size(1), windows = divide_up(tokens.elements(), window);
  Arena::Frame frame(*execution.scratch);
  const Tensor parts = execution.scratch->take(accumulation_dtype(d_weight.dtype()), {windows, 2, width});
  const OrderedTokens all{pointer_to<std::int32_t>(tokens), pointer_to<std::int32_t>(order.positions),
                          static_cast<int>(tokens.elements()), static_cast<std::int32_t>(first),
                          static_cast<std::int32_t>(first + d_weight.size(0))};
  const bool packets = width % gradient_packet == 0 && packets_aligned(gradient_packet, {d_out, d_weight});
  dispatch_length<gradient_packet>(packets, [&](auto length) {
    const std::int64_t of_row = width / length.value;
    const int threads = std::max(lanes_of_warp, round_threads(of_row, window_threads));
    const dim3 grid(static_cast<unsigned>(windows), static_cast<unsigned>(divide_up(of_row, threads)));
    launch_early(execution, grid, threads, window_kernel<length.value, T, G>, all,
                 Rows<const T>{pointer_to<const T>(d_out), d_out.stride(0)}, static_cast<int>(width),
                 static_cast<A>(scale), rows_of<G>(d_weight), pointer_to<A>(parts));
    if (order.longest_run <= longest) return;  // no run is long
    const dim3 combine_grid(static_cast<unsigned>(divide_up(windows, combine_windows)),
                            static_cast<unsigned>(divide_up(of_row, lanes_of_warp)));
    launch_early(execution, combine_grid, lanes_of_warp * combine_warps, combine_kernel<length.value, G>, all,
                 static_cast<int>(width), static_cast<A>(scale), pointer_to<A>(parts), rows_of<G>(d_weight));
  });
}

}  // namespace

void embedding_forward(const Execution& execution, const Tensor& tokens, const Tensor& weight, std::int64_t first,
                       double scale, const Tensor& out) {
  dispatch_floating(weight.dtype(), [&]<class T>(T) {
    const Gather<T> operation{
        pointer_to<std::int32_t>(tokens),  rows_of<T>(weight), rows_of<T>(out), first, weight.size(0),
        static_cast<Accumulated<T>>(scale)};
    dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {weight, out}), [&](auto length) {
      launch_pass<length.value>(execution, operation, out.size(0), out.size(1));
    });
  });
}

void embedding_backward(const Execution& execution, const Tensor& tokens, const TokenOrder& order, const Tensor& d_out,
                        std::int64_t first, double scale, const Tensor& d_weight) {
  if (d_weight.size(0) == 0) return;  // all tokens are other ranks'
  FULMEN_CHECK(tokens.elements() < (std::int64_t{1} << 30) && first + d_weight.size(0) < after_all &&
                   d_weight.size(1) < (std::int64_t{1} << 20),
               "{} tokens, d_weight {} from row {}", tokens.elements(), d_weight.describe(), first);
  dispatch_floating(d_out.dtype(), [&]<class T>(T) {
    dispatch_floating(d_weight.dtype(), [&]<class G>(G) {
      if constexpr (sizeof(G) >= sizeof(T)) add_gradient<T, G>(execution, tokens, order, d_out, first, scale, d_weight);
    });
  });
}

}  // namespace fulmen::cuda
