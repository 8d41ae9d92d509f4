// The router's loss on a GPU, every sum in a fixed order.

#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/device_reduce.cuh"
#include "kernels/cuda/device_vector.cuh"
#include "kernels/router_loss.h"

namespace fulmen::cuda {
namespace {

constexpr int sum_threads = 256;

// A block for each sample and expert.
template <class A>
__global__ void sums_kernel(const A* weights, const A* probabilities, std::int64_t length, int experts, double* sums) {
  __shared__ double shared[2][sum_threads / lanes_of_warp];
  const int expert = static_cast<int>(blockIdx.x);
  const std::int64_t sample = blockIdx.y, begin = sample * length;
  double chosen = 0.0, probability = 0.0;
  for (std::int64_t t = threadIdx.x; t < length; t += sum_threads) {
    const std::int64_t at = (begin + t) * experts + expert;
    chosen += weights[at] > A(0) ? 1.0 : 0.0;
    probability += static_cast<double>(probabilities[at]);
  }
  chosen = sum_of_row(chosen, shared[0]);
  probability = sum_of_row(probability, shared[1]);
  if (threadIdx.x > 0) return;
  double* const of_sample = sums + sample * (2 * experts + 1);
  of_sample[expert] = chosen;
  of_sample[experts + expert] = probability;
  if (expert == 0) of_sample[2 * experts] = static_cast<double>(length);
}

__global__ void add_kernel(const double* sums, std::int64_t samples, int experts, double scale, double* loss) {
  double total = 0.0;
  for (std::int64_t i = threadIdx.x; i < samples * experts; i += lanes_of_warp) {
    const double* const of_sample = sums + i / experts * (2 * experts + 1);
    const double tokens = of_sample[2 * experts];
    total += of_sample[i % experts] / tokens * (of_sample[experts + i % experts] / tokens);
  }
  total = sum_of_lanes(total);
  if (threadIdx.x == 0) *loss += scale * experts * total;
}

template <class A>
__global__ void gradient_kernel(const double* sums, std::int64_t tokens_of_sample, std::int64_t elements, int experts,
                                double scale, A* d_probabilities) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * sum_threads + threadIdx.x;
  if (i >= elements) return;
  const double* const of_sample = sums + i / experts / tokens_of_sample * (2 * experts + 1);
  const double tokens = of_sample[2 * experts];
  d_probabilities[i] = static_cast<A>(scale * experts * of_sample[i % experts] / tokens / tokens);
}

}  // namespace

void router_loss_sums(const Execution& execution, const Tensor& weights, const Tensor& probabilities,
                      const Tensor& sums) {
  const std::int64_t experts = weights.size(1), batch = sums.size(0);
  FULMEN_CHECK(batch <= 65535, "{} samples of a router's loss", batch);
  dispatch_floating(weights.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    sums_kernel<A>
        <<<dim3(static_cast<unsigned>(experts), static_cast<unsigned>(batch)), sum_threads, 0, stream_of(execution)>>>(
            pointer_to<const A>(weights), pointer_to<const A>(probabilities), weights.size(0) / batch,
            static_cast<int>(experts), pointer_to<double>(sums));
    FULMEN_CUDA_CHECK(cudaGetLastError());
  });
}

void router_loss_add(const Execution& execution, const Tensor& sums, double scale, const Tensor& loss) {
  add_kernel<<<1, lanes_of_warp, 0, stream_of(execution)>>>(pointer_to<const double>(sums), sums.size(0),
                                                            static_cast<int>((sums.size(1) - 1) / 2), scale,
                                                            pointer_to<double>(loss));
  FULMEN_CUDA_CHECK(cudaGetLastError());
}

void router_loss_backward(const Execution& execution, const Tensor& sums, double scale, const Tensor& d_probabilities) {
  const std::int64_t elements = d_probabilities.elements();
  if (elements == 0) return;
  dispatch_floating(d_probabilities.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    gradient_kernel<A>
        <<<static_cast<unsigned>(divide_up(elements, sum_threads)), sum_threads, 0, stream_of(execution)>>>(
            pointer_to<const double>(sums), d_probabilities.size(0) / sums.size(0), elements,
            static_cast<int>(d_probabilities.size(1)), scale, pointer_to<A>(d_probabilities));
    FULMEN_CUDA_CHECK(cudaGetLastError());
  });
}

}  // namespace fulmen::cuda
