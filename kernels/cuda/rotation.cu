// Rotary position embedding on a GPU: a block forms the cosines and sines of some tokens, then turns all their heads.
#include "kernels/rotation.h"

#include "kernels/cuda/device_angle.cuh"
#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/device_vector.cuh"

namespace fulmen::cuda {
namespace {

constexpr int most_tokens = 16;                   // of a block
constexpr std::int64_t most_table_bytes = 32768;  // of shared memory

template <class T>
struct RotationJob {
  Rows<T> x;
  std::int64_t tokens;
  const std::int64_t* positions;
  std::int64_t position_stride;
  const double* frequencies;
  Accumulated<T> scale, sine_scale;  // sine_scale is negative for the inverse
  int heads, head_width, half;       // half the columns that are rotated
  int tokens_of_block;
};

// A pair of packets: columns j of the first half and of the second, or one packet of neighbouring pairs.
template <class T, int length, RotationPairs pairs>
__device__ __forceinline__ void turn_packets(T* head, int packet, int half, const Accumulated<T>* cosines,
                                             const Accumulated<T>* sines) {
  using A = Accumulated<T>;
  if constexpr (pairs == RotationPairs::halves) {
    const int j = packet * length;
    const Packet<T, length> a = load_packet<length>(head + j), b = load_packet<length>(head + half + j);
    store_packet(head + j, make_packet<T, length>([&](int i) { return a[i] * cosines[j + i] - b[i] * sines[j + i]; }));
    store_packet(head + half + j,
                 make_packet<T, length>([&](int i) { return b[i] * cosines[j + i] + a[i] * sines[j + i]; }));
  } else {
    constexpr int columns = length == 1 ? 2 : length;
    const int j = packet * (columns / 2);
    A values[columns];
    if constexpr (length == 1) {
      values[0] = to_accumulated(head[2 * j]), values[1] = to_accumulated(head[2 * j + 1]);
    } else {
      const Packet<T, length> both = load_packet<length>(head + 2 * j);
#pragma unroll
      for (int i = 0; i < columns; ++i) values[i] = both[i];
    }
#pragma unroll
    for (int i = 0; i < columns; i += 2) {
      const A a = values[i], b = values[i + 1], cosine = cosines[j + i / 2], sine = sines[j + i / 2];
      values[i] = a * cosine - b * sine, values[i + 1] = b * cosine + a * sine;
    }
    if constexpr (length == 1)
      head[2 * j] = round_to<T>(values[0]), head[2 * j + 1] = round_to<T>(values[1]);
    else
      store_packet(head + 2 * j, make_packet<T, length>([&](int i) { return values[i]; }));
  }
}

template <class T, int length, RotationPairs pairs>
__global__ void __launch_bounds__(pass_threads) rotate_kernel(const RotationJob<T> job) {
  using A = Accumulated<T>;
  extern __shared__ double shared[];
  A* const cosines = reinterpret_cast<A*>(shared);
  A* const sines = cosines + job.tokens_of_block * job.half;
  const std::int64_t first = std::int64_t{blockIdx.x} * job.tokens_of_block;
  const int tokens = static_cast<int>(min(std::int64_t{job.tokens_of_block}, job.tokens - first));
  for (int i = threadIdx.x; i < tokens * job.half; i += pass_threads) {
    const auto position = static_cast<double>(job.positions[(first + i / job.half) * job.position_stride]);
    const SineCosine<A> turn = sine_cosine<A>(position * job.frequencies[i % job.half]);
    cosines[i] = turn.cosine * job.scale, sines[i] = turn.sine * job.sine_scale;
  }
  __syncthreads();
  // In a head: packets of `length` pairs, or of half as many where a packet holds both columns of its pairs.
  constexpr int pairs_of_packet = pairs == RotationPairs::halves || length == 1 ? length : length / 2;
  const int packets = job.half / pairs_of_packet, of_token = packets * job.heads;
  for (int i = threadIdx.x; i < tokens * of_token; i += pass_threads) {
    const int token = i / of_token, head = i % of_token / packets;
    turn_packets<T, length, pairs>(job.x.at(first + token, std::int64_t{head} * job.head_width), i % packets, job.half,
                                   cosines + token * job.half, sines + token * job.half);
  }
  if (job.scale == A(1)) return;
  const int rest = job.head_width - 2 * job.half;
  for (int i = threadIdx.x; i < tokens * job.heads * rest; i += pass_threads) {
    const int token = i / (job.heads * rest), head = i / rest % job.heads;
    T* const at = job.x.at(first + token, std::int64_t{head} * job.head_width + 2 * job.half + i % rest);
    *at = round_to<T>(to_accumulated(*at) * job.scale);
  }
}

// Whether every packet of every head is aligned and none holds columns that are not rotated.
template <class T>
bool whole_packets(const fulmen::Rotation& rotation, const Tensor& x) {
  constexpr int length = row_packet<T>;
  const std::int64_t half = rotation.frequencies.elements();
  const std::int64_t columns = rotation.pairs == RotationPairs::halves ? half : 2 * half;
  return columns % length == 0 && rotation.head_width % length == 0 && packets_aligned(length, {x});
}

}  // namespace

void rotate(const Execution& execution, const fulmen::Rotation& rotation, const Tensor& positions, bool inverse,
            const Tensor& x) {
  const std::int64_t tokens = x.size(0), half = rotation.frequencies.elements();
  FULMEN_CHECK(x.size(1) < (std::int64_t{1} << 26), "rows of {} columns are too wide", x.size(1));
  dispatch_floating(x.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    const std::int64_t table = 2 * half * static_cast<std::int64_t>(sizeof(A));
    FULMEN_CHECK(table <= most_table_bytes, "{} rotated columns are too many for a GPU", 2 * half);
    const auto of_block =
        static_cast<int>(half == 0 ? most_tokens : std::min<std::int64_t>(most_tokens, most_table_bytes / table));
    const A scale = static_cast<A>(rotation.scale);
    const RotationJob<T> job{rows_of<T>(x),
                             tokens,
                             half > 0 ? positions.as<std::int64_t>() : nullptr,
                             half > 0 ? positions.stride(0) : 0,
                             half > 0 ? rotation.frequencies.as<double>() : nullptr,
                             scale,
                             inverse ? -scale : scale,
                             static_cast<int>(x.size(1) / rotation.head_width),
                             static_cast<int>(rotation.head_width),
                             static_cast<int>(half),
                             of_block};
    const std::int64_t blocks = divide_up(tokens, of_block);
    FULMEN_CHECK(blocks <= 0x7fffffff, "{} rows are too many for one launch", tokens);
    dispatch_length<row_packet<T>>(whole_packets<T>(rotation, x), [&](auto length) {
      const auto launch = [&]<RotationPairs pairs>() {
        rotate_kernel<T, length.value, pairs>
            <<<static_cast<unsigned>(blocks), pass_threads, static_cast<std::size_t>(of_block * table),
               stream_of(execution)>>>(job);
        FULMEN_CUDA_CHECK_LAUNCH();
      };
      if (rotation.pairs == RotationPairs::halves)
        launch.template operator()<RotationPairs::halves>();
      else
        launch.template operator()<RotationPairs::neighbours>();
    });
  });
}

}  // namespace fulmen::cuda
