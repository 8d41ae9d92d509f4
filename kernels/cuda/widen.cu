// Adds fp32 products to fp64 matrices. Only runs that keep gradients in fp64 come here: plain rather than fast.
#include "kernels/cuda/widen.h"

#include <algorithm>

#include "framework/cuda_check.h"

namespace fulmen::cuda {
namespace {

constexpr int threads = 256;
constexpr std::int64_t most_blocks = 8192;

__global__ void widen_kernel(const float* __restrict__ narrow, double* __restrict__ wide, std::int64_t elements,
                             std::int64_t columns, std::int64_t stride, bool accumulate) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * threads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x; i < elements; i += step) {
    const std::int64_t row = i / columns;
    double& target = wide[row * stride + (i - row * columns)];
    target = (accumulate ? target : 0.0) + static_cast<double>(narrow[i]);
  }
}

}  // namespace

void widen(const Execution& execution, const Tensor& narrow, bool accumulate, const Tensor& wide) {
  const std::int64_t elements = narrow.elements();
  if (elements == 0) return;
  FULMEN_CHECK(narrow.is_contiguous() && narrow.shape() == wide.shape(), "widening {} to {}", narrow.describe(),
               wide.describe());
  const auto blocks = static_cast<unsigned>(std::min((elements + threads - 1) / threads, most_blocks));
  widen_kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(execution.stream.handle)>>>(
      narrow.as<float>(), wide.as<double>(), elements, narrow.size(1), wide.stride(0), accumulate);
  FULMEN_CUDA_CHECK_LAUNCH();
}

}  // namespace fulmen::cuda
