// Activated values, their gradients, and the sum of d_theta.
#include "kernels/cuda/hopper/features.h"

#include "framework/cuda_check.h"
#include "kernels/cuda/linear_attention_arithmetic.cuh"

namespace fulmen::cuda::hopper {

namespace {

using Element = __nv_bfloat16;
constexpr int packet = 8, block_size = 256;

// A tensor's packets of 8 columns, counted through.
struct Packets {
  explicit Packets(const Tensor& x)
      : length(static_cast<int>(x.size(1))),
        heads(static_cast<int>(x.size(2))),
        of_head(static_cast<int>(x.size(3) / packet)),
        count(x.size(0) * x.size(1) * heads * of_head) {}

  // The element of `view` that packet i begins at.
  template <class T>
  __device__ T* at(const HeadsView<T>& view, std::int64_t i) const {
    const int column = static_cast<int>(i % of_head) * packet;
    const std::int64_t head = i / of_head, token = head / heads;
    return view.at(token / length, token % length, head % heads) + column;
  }

  int length, heads, of_head;
  std::int64_t count;
};

__global__ void __launch_bounds__(block_size)
    activate_kernel(Packets packets, HeadsView<const Element> x, Activation activation, HeadsView<Element> out) {
  const std::int64_t i = std::int64_t{blockIdx.x} * block_size + threadIdx.x;
  if (i >= packets.count) return;
  const auto values = load_packet<packet>(packets.at(x, i));
  store_packet(packets.at(out, i),
               make_packet<Element, packet>([&](int j) { return activated(activation, values[j]); }));
}

__global__ void __launch_bounds__(block_size)
    differentiate_kernel(Packets packets, HeadsView<const Element> x, Activation activation,
                         HeadsView<const Element> d_out, HeadsView<Element> d_x) {
  const std::int64_t i = std::int64_t{blockIdx.x} * block_size + threadIdx.x;
  if (i >= packets.count) return;
  const auto values = load_packet<packet>(packets.at(x, i));
  const auto gradients = load_packet<packet>(packets.at(d_out, i));
  store_packet(packets.at(d_x, i), make_packet<Element, packet>([&](int j) {
                 return gradients[j] * activation_derivative(activation, values[j]);
               }));
}

constexpr int share_columns = 32, share_rows = 32;

__global__ void __launch_bounds__(share_columns* share_rows)
    theta_shares_kernel(const double* shares, std::int64_t count, std::int64_t n, double* d_theta) {
  __shared__ double sums[share_rows][share_columns];
  const std::int64_t column = std::int64_t{blockIdx.x} * share_columns + threadIdx.x;
  double sum = 0.0;
  if (column < n) {
#pragma unroll 4
    for (std::int64_t row = threadIdx.y; row < count; row += share_rows) sum += shares[row * n + column];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= n) return;
  sum = 0.0;
  for (int y = 0; y < share_rows; ++y) sum += sums[y][threadIdx.x];
  d_theta[column] += sum;
}

unsigned blocks_of(const Packets& packets) {
  return static_cast<unsigned>((packets.count + block_size - 1) / block_size);
}

cudaStream_t stream_of(const Execution& execution) { return static_cast<cudaStream_t>(execution.stream.handle); }

}  // namespace

void activate_values(const Execution& execution, const Tensor& x, Activation activation, const Tensor& out) {
  const Packets packets(x);
  activate_kernel<<<blocks_of(packets), block_size, 0, stream_of(execution)>>>(packets, HeadsView<const Element>(x),
                                                                               activation, HeadsView<Element>(out));
  FULMEN_CUDA_CHECK_LAUNCH();
}

void differentiate_values(const Execution& execution, const Tensor& x, Activation activation, const Tensor& d_out,
                          const Tensor& d_x) {
  const Packets packets(x);
  differentiate_kernel<<<blocks_of(packets), block_size, 0, stream_of(execution)>>>(
      packets, HeadsView<const Element>(x), activation, HeadsView<const Element>(d_out), HeadsView<Element>(d_x));
  FULMEN_CUDA_CHECK_LAUNCH();
}

void add_theta_shares(const Execution& execution, const Tensor& shares, const Tensor& d_theta) {
  const std::int64_t n = shares.size(1);
  theta_shares_kernel<<<static_cast<unsigned>((n + share_columns - 1) / share_columns), dim3(share_columns, share_rows),
                        0, stream_of(execution)>>>(shares.as<double>(), shares.size(0), n, d_theta.as<double>());
  FULMEN_CUDA_CHECK_LAUNCH();
}

}  // namespace fulmen::cuda::hopper
