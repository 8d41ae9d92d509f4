// Mixture of experts on a GPU: a warp for each token, or for each place that a token has with an expert.

#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/device_reduce.cuh"
#include "kernels/cuda/device_vector.cuh"
#include "kernels/experts.h"

namespace fulmen::cuda {
namespace {

constexpr int warps_of_block = 8;
constexpr int order_threads = 256;

__device__ __forceinline__ std::int64_t warp_of_grid() {
  return static_cast<std::int64_t>(blockIdx.x) * warps_of_block + threadIdx.x / lanes_of_warp;
}
__device__ __forceinline__ int lane_of_warp() { return static_cast<int>(threadIdx.x % lanes_of_warp); }

template <class... Parameters, class... Arguments>
void launch_warps(const Execution& execution, std::int64_t warps, void (*kernel)(Parameters...),
                  const Arguments&... arguments) {
  const std::int64_t blocks = divide_up(warps, warps_of_block);
  FULMEN_CHECK(blocks <= 0x7fffffff, "{} rows are too many for one launch", warps);
  kernel<<<static_cast<unsigned>(blocks), warps_of_block * lanes_of_warp, 0, stream_of(execution)>>>(arguments...);
  FULMEN_CUDA_CHECK(cudaGetLastError());
}

// The expert with the largest probability that is not chosen yet, among equals the first; every lane gets it.
template <class A>
__device__ int best_of_row(const A* probabilities, const A* weights, int experts) {
  A largest = A(-1);
  int best = experts;
  for (int e = lane_of_warp(); e < experts; e += lanes_of_warp)
    if (weights[e] == A(0) && probabilities[e] > largest) largest = probabilities[e], best = e;
  for (int offset = lanes_of_warp / 2; offset > 0; offset /= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, largest, offset);
    const int expert = __shfl_xor_sync(0xffffffffu, best, offset);
    if (other > largest || (other == largest && expert < best)) largest = other, best = expert;
  }
  return best;
}

template <class T>
__global__ void router_kernel(Rows<const T> logits, std::int64_t tokens, int experts, int chosen,
                              Accumulated<T>* probabilities, Accumulated<T>* weights) {
  using A = Accumulated<T>;
  const std::int64_t token = warp_of_grid();
  if (token >= tokens) return;
  const T* const row = logits.at(token, 0);
  A *const p = probabilities + token * experts, *const w = weights + token * experts;
  A largest = -INFINITY, sum = 0;
  for (int e = lane_of_warp(); e < experts; e += lanes_of_warp) largest = max(largest, to_accumulated(row[e]));
  largest = maximum_of_lanes(largest);
  for (int e = lane_of_warp(); e < experts; e += lanes_of_warp) {
    p[e] = exp(to_accumulated(row[e]) - largest);
    w[e] = A(0);
    sum += p[e];
  }
  sum = sum_of_lanes(sum);
  for (int e = lane_of_warp(); e < experts; e += lanes_of_warp) p[e] /= sum;
  A of_chosen = 0;
  for (int i = 0; i < chosen; ++i) {
    __syncwarp();
    const int best = isnan(sum) ? i : best_of_row(p, w, experts);
    if (best == experts || p[best] == A(0)) break;  // all that are left have a probability of zero
    of_chosen += p[best];
    if (best % lanes_of_warp == lane_of_warp()) w[best] = p[best];
  }
  __syncwarp();
  for (int e = lane_of_warp(); e < experts; e += lanes_of_warp)
    if (w[e] != A(0)) w[e] /= of_chosen;
}

template <class T>
__global__ void router_gradient_kernel(const Accumulated<T>* probabilities, const Accumulated<T>* weights,
                                       const Accumulated<T>* d_probabilities, const Accumulated<T>* d_weights,
                                       std::int64_t tokens, int experts, Rows<T> d_logits) {
  using A = Accumulated<T>;
  const std::int64_t token = warp_of_grid();
  if (token >= tokens) return;
  const std::int64_t begin = token * experts;
  A chosen = 0, of_weights = 0, of_probabilities = 0;
  for (int e = lane_of_warp(); e < experts; e += lanes_of_warp) {
    if (weights[begin + e] == A(0)) continue;
    chosen += probabilities[begin + e];
    if (d_weights != nullptr) of_weights += d_weights[begin + e] * weights[begin + e];
  }
  chosen = sum_of_lanes(chosen), of_weights = sum_of_lanes(of_weights);
  const auto d_p = [&](int e) {
    A gradient = d_probabilities != nullptr ? d_probabilities[begin + e] : A(0);
    if (d_weights != nullptr && weights[begin + e] != A(0)) gradient += (d_weights[begin + e] - of_weights) / chosen;
    return gradient;
  };
  for (int e = lane_of_warp(); e < experts; e += lanes_of_warp) of_probabilities += d_p(e) * probabilities[begin + e];
  of_probabilities = sum_of_lanes(of_probabilities);
  for (int e = lane_of_warp(); e < experts; e += lanes_of_warp)
    *d_logits.at(token, e) = round_to<T>(probabilities[begin + e] * (d_p(e) - of_probabilities));
}

// How many tokens each expert has.
template <class A>
__global__ void count_kernel(const A* weights, std::int64_t tokens, int experts, int first, std::int64_t* counts) {
  __shared__ std::int64_t shared[order_threads / lanes_of_warp];
  std::int64_t count = 0;
  for (std::int64_t t = threadIdx.x; t < tokens; t += order_threads)
    count += weights[t * experts + first + blockIdx.x] != A(0) ? 1 : 0;
  count = sum_of_row(count, shared);
  if (threadIdx.x == 0) counts[blockIdx.x + 1] = count;
}

__global__ void accumulate_kernel(std::int64_t* offsets, int owned, std::int64_t alignment) {
  offsets[0] = 0;
  for (int e = 0; e < owned; ++e)
    offsets[e + 1] = offsets[e] + (offsets[e + 1] + alignment - 1) / alignment * alignment;
}

// A block for each expert goes through all tokens, so many at a time as it has threads, and gives places in their
// order.
template <class A>
__global__ void place_kernel(const A* weights, std::int64_t tokens, int experts, int first, const std::int64_t* offsets,
                             std::int32_t* of_tokens, std::int32_t* of_experts) {
  __shared__ int of_warps[order_threads / lanes_of_warp];
  std::int64_t place = offsets[blockIdx.x];
  const int warp = static_cast<int>(threadIdx.x) / lanes_of_warp, lane = lane_of_warp();
  for (std::int64_t begin = 0; begin < tokens; begin += order_threads) {
    const std::int64_t t = begin + threadIdx.x;
    const bool has = t < tokens && weights[t * experts + first + blockIdx.x] != A(0);
    const unsigned ballot = __ballot_sync(0xffffffffu, has);
    if (lane == 0) of_warps[warp] = __popc(ballot);
    __syncthreads();
    int before = __popc(ballot & ((1u << lane) - 1)), all = 0;
    for (int w = 0; w < order_threads / lanes_of_warp; ++w) {
      if (w < warp) before += of_warps[w];
      all += of_warps[w];
    }
    if (has) {
      of_tokens[place + before] = static_cast<std::int32_t>(t);
      of_experts[place + before] = static_cast<std::int32_t>(blockIdx.x);
    }
    place += all;
    __syncthreads();
  }
}

// A token's places: for each owned expert that it has, its rank among the expert's tokens, found by halving. Places of
// no token are behind all others: -1 is the largest of unsigned numbers.
template <class A>
__global__ void find_places_kernel(const A* weights, std::int64_t tokens, int experts, int first, int owned, int chosen,
                                   const std::int64_t* offsets, const std::int32_t* of_tokens, std::int32_t* places) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * order_threads + threadIdx.x;
  if (t >= tokens) return;
  int found = 0;
  for (int e = 0; e < owned && found < chosen; ++e) {
    if (weights[t * experts + first + e] == A(0)) continue;
    std::int64_t low = offsets[e], high = offsets[e + 1];
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (static_cast<std::uint32_t>(of_tokens[middle]) < static_cast<std::uint32_t>(t))
        low = middle + 1;
      else
        high = middle;
    }
    places[t * chosen + found++] = static_cast<std::int32_t>(low);
  }
  for (; found < chosen; ++found) places[t * chosen + found] = -1;
}

template <class T>
struct GatherRowsOf {
  static constexpr int items = 2;
  template <int length>
  struct Loaded {
    Packet<T, length> x;
  };
  Rows<T> x, y;
  const std::int32_t* tokens;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    const std::int32_t token = tokens[row];
    if (token < 0) return {make_packet<T, length>([](int) { return Accumulated<T>(0); })};
    return {load_packet<length>(x.at(token, column))};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t row, std::int64_t column) const {
    store_packet(y.at(row, column), make_packet<T, length>([&](int i) { return loaded.x[i]; }));
  }
};

template <class T>
struct Combine {
  static constexpr int items = 1;
  template <int length>
  struct Loaded {
    Accumulated<T> sum[length];
  };
  Rows<T> y, out;
  const std::int32_t* places;
  int chosen;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    Loaded<length> loaded{};
    for (int j = 0; j < chosen; ++j) {
      const std::int32_t place = places[row * chosen + j];
      if (place < 0) break;
      const auto packet = load_packet<length>(y.at(place, column));
#pragma unroll
      for (int i = 0; i < length; ++i) loaded.sum[i] += packet[i];
    }
    return loaded;
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t row, std::int64_t column) const {
    store_packet(out.at(row, column), make_packet<T, length>([&](int i) { return loaded.sum[i]; }));
  }
};

template <class T>
struct WeighRows {
  static constexpr int items = items_for(1);
  template <int length>
  struct Loaded {
    Packet<T, length> x;
  };
  Rows<T> x;
  const std::int32_t *tokens, *of_experts;
  const Accumulated<T>* weights;
  int experts, first;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    return {load_packet<length>(x.at(row, column))};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t row, std::int64_t column) const {
    if (tokens[row] < 0) return;
    const Accumulated<T> weight = weights[static_cast<std::int64_t>(tokens[row]) * experts + first + of_experts[row]];
    store_packet(x.at(row, column), make_packet<T, length>([&](int i) { return weight * loaded.x[i]; }));
  }
};

template <class T>
__global__ void weigh_gradient_kernel(Rows<T> d_y, Rows<T> x, std::int64_t rows, std::int64_t width,
                                      const std::int32_t* tokens, const std::int32_t* of_experts, int experts,
                                      int first, const Accumulated<T>* weights, Accumulated<T>* d_weights) {
  using A = Accumulated<T>;
  const std::int64_t row = warp_of_grid();
  if (row >= rows || tokens[row] < 0) return;
  const std::int64_t at = static_cast<std::int64_t>(tokens[row]) * experts + first + of_experts[row];
  const A weight = weights[at];
  A dot = 0;
  for (std::int64_t c = lane_of_warp(); c < width; c += lanes_of_warp) {
    const A gradient = to_accumulated(*d_y.at(row, c)), value = to_accumulated(*x.at(row, c));
    dot += gradient * value;
    *d_y.at(row, c) = round_to<T>(weight * gradient);
    *x.at(row, c) = round_to<T>(weight * value);
  }
  dot = sum_of_lanes(dot);
  if (lane_of_warp() == 0) d_weights[at] = dot;
}

int narrow(std::int64_t value) { return static_cast<int>(value); }

}  // namespace

void router_forward(const Execution& execution, const Tensor& logits, std::int64_t chosen, const Tensor& probabilities,
                    const Tensor& weights) {
  dispatch_floating(logits.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    launch_warps(execution, logits.size(0), router_kernel<T>,
                 Rows<const T>{pointer_to<const T>(logits), logits.stride(0)}, logits.size(0), narrow(logits.size(1)),
                 narrow(chosen), pointer_to<A>(probabilities), pointer_to<A>(weights));
  });
}

void router_backward(const Execution& execution, const Tensor& probabilities, const Tensor& weights,
                     const Tensor& d_probabilities, const Tensor& d_weights, const Tensor& d_logits) {
  dispatch_floating(d_logits.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    launch_warps(execution, d_logits.size(0), router_gradient_kernel<T>, pointer_to<const A>(probabilities),
                 pointer_to<const A>(weights), pointer_to<const A>(d_probabilities), pointer_to<const A>(d_weights),
                 d_logits.size(0), narrow(d_logits.size(1)), rows_of<T>(d_logits));
  });
}

void order_by_expert(const Execution& execution, const Tensor& weights, std::int64_t first, std::int64_t chosen,
                     std::int64_t alignment, const ExpertOrder& order) {
  const std::int64_t tokens = weights.size(0), owned = order.offsets.size(0) - 1;
  auto* const offsets = pointer_to<std::int64_t>(order.offsets);
  auto* const of_tokens = pointer_to<std::int32_t>(order.tokens);
  const cudaStream_t stream = stream_of(execution);
  dispatch_floating(weights.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    const A* const all = pointer_to<const A>(weights);
    const auto blocks = static_cast<unsigned>(owned);
    if (owned > 0)
      count_kernel<A>
          <<<blocks, order_threads, 0, stream>>>(all, tokens, narrow(weights.size(1)), narrow(first), offsets);
    accumulate_kernel<<<1, 1, 0, stream>>>(offsets, narrow(owned), alignment);
    FULMEN_CUDA_CHECK(cudaMemsetAsync(of_tokens, 0xff, order.tokens.bytes(), stream));
    if (owned > 0)
      place_kernel<A><<<blocks, order_threads, 0, stream>>>(all, tokens, narrow(weights.size(1)), narrow(first),
                                                            offsets, of_tokens,
                                                            pointer_to<std::int32_t>(order.experts));
    if (tokens > 0)
      find_places_kernel<A><<<static_cast<unsigned>(divide_up(tokens, order_threads)), order_threads, 0, stream>>>(
          all, tokens, narrow(weights.size(1)), narrow(first), narrow(owned), narrow(chosen), offsets, of_tokens,
          pointer_to<std::int32_t>(order.places));
    FULMEN_CUDA_CHECK(cudaGetLastError());
  });
}

void gather_rows(const Execution& execution, const Tensor& x, const Tensor& tokens, const Tensor& y) {
  dispatch_floating(x.dtype(), [&]<class T>(T) {
    const GatherRowsOf<T> operation{rows_of<T>(x), rows_of<T>(y), pointer_to<std::int32_t>(tokens)};
    dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {x, y}), [&](auto length) {
      launch_pass<length.value>(execution, operation, y.size(0), y.size(1));
    });
  });
}

void combine_rows(const Execution& execution, const Tensor& y, const Tensor& places, const Tensor& out) {
  dispatch_floating(out.dtype(), [&]<class T>(T) {
    const Combine<T> operation{rows_of<T>(y), rows_of<T>(out), pointer_to<std::int32_t>(places),
                               narrow(places.size(1))};
    dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {y, out}), [&](auto length) {
      launch_pass<length.value>(execution, operation, out.size(0), out.size(1));
    });
  });
}

void weigh_rows(const Execution& execution, const ExpertOrder& order, const Tensor& weights, std::int64_t first,
                const Tensor& x) {
  dispatch_floating(x.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    const WeighRows<T> operation{rows_of<T>(x),
                                 pointer_to<std::int32_t>(order.tokens),
                                 pointer_to<std::int32_t>(order.experts),
                                 pointer_to<const A>(weights),
                                 narrow(weights.size(1)),
                                 narrow(first)};
    dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {x}), [&](auto length) {
      launch_pass<length.value>(execution, operation, x.size(0), x.size(1));
    });
  });
}

void weigh_rows_backward(const Execution& execution, const ExpertOrder& order, const Tensor& weights,
                         std::int64_t first, const Tensor& d_y, const Tensor& x, const Tensor& d_weights) {
  dispatch_floating(x.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    launch_warps(execution, x.size(0), weigh_gradient_kernel<T>, rows_of<T>(d_y), rows_of<T>(x), x.size(0), x.size(1),
                 pointer_to<const std::int32_t>(order.tokens), pointer_to<const std::int32_t>(order.experts),
                 narrow(weights.size(1)), narrow(first), pointer_to<const A>(weights), pointer_to<A>(d_weights));
  });
}

}  // namespace fulmen::cuda
