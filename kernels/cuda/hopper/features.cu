// Activated and rotated queries, keys and values.
#include "kernels/cuda/hopper/features.h"

#include <cuda_bf16.h>

#include "framework/cuda_check.h"

namespace fulmen::cuda::hopper {

namespace {

constexpr int tokens_per_block = 64;   // a block sums d_theta of one head over so many tokens

struct View {
  const __nv_bfloat16* data;
  std::int64_t row, token, head;       // strides
  __device__ std::int64_t offset(int b, std::int64_t t, int h) const { return b * row + t * token + h * head; }
};

View view_of(const Tensor& x) {
  return {static_cast<const __nv_bfloat16*>(x.data()), x.stride(0), x.stride(1), x.stride(2)};
}

struct Sizes {
  std::int64_t length;
  int heads, width;
};

__device__ float activated(Activation activation, float x) {
  const float sigmoid = 1.0f / (1.0f + expf(-x));
  return activation == Activation::silu ? x * sigmoid : activation == Activation::sigmoid ? sigmoid : x;
}

__device__ float derivative(Activation activation, float x) {
  const float sigmoid = 1.0f / (1.0f + expf(-x));
  if (activation == Activation::silu) return sigmoid * (1.0f + x * (1.0f - sigmoid));
  return activation == Activation::sigmoid ? sigmoid * (1.0f - sigmoid) : 1.0f;
}

// The angle is formed and reduced in double precision: at position 131072 fp32 would be off by 5e-3.
__device__ void rotation(double theta, std::int64_t position, float& cosine, float& sine) {
  constexpr double two_pi = 6.283185307179586476925286766559;
  const double angle = theta * static_cast<double>(position);
  sincosf(static_cast<float>(angle - two_pi * rint(angle / two_pi)), &sine, &cosine);
}

// A block takes one head and tokens_per_block tokens; threads run over columns.
__global__ void features_kernel(View x, Activation activation, const double* theta, const std::int64_t* positions, Sizes sizes,
                                __nv_bfloat16* out) {
  const int head = blockIdx.y, row = blockIdx.z;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * tokens_per_block;
  const std::int64_t end = min(begin + tokens_per_block, sizes.length);
  const int out_width = theta == nullptr ? sizes.width : 2 * sizes.width;
  for (std::int64_t t = begin + threadIdx.y; t < end; t += blockDim.y) {
    const std::int64_t token = row * sizes.length + t;
    for (int c = threadIdx.x; c < sizes.width; c += blockDim.x) {
      const float value = activated(activation, __bfloat162float(x.data[x.offset(row, t, head) + c]));
      __nv_bfloat16* const to = out + (token * sizes.heads + head) * out_width + c;
      if (theta == nullptr) {
        *to = __float2bfloat16(value);
      } else {
        float cosine, sine;
        rotation(theta[head * sizes.width + c], positions[token], cosine, sine);
        to[0] = __float2bfloat16(value * cosine);
        to[sizes.width] = __float2bfloat16(value * sine);
      }
    }
  }
}

// partial [blocks of tokens of all rows, heads, width]: d_theta of each block.
__global__ void differentiate_kernel(View x, Activation activation, const double* theta, const std::int64_t* positions,
                                     Sizes sizes, const __nv_bfloat16* d_out, View d_x, double* partial) {
  extern __shared__ double sums[];   // [blockDim.y, width]
  const int head = blockIdx.y, row = blockIdx.z;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * tokens_per_block;
  const std::int64_t end = min(begin + tokens_per_block, sizes.length);
  const int out_width = theta == nullptr ? sizes.width : 2 * sizes.width;
  for (int c = threadIdx.x; c < sizes.width; c += blockDim.x) {
    double sum = 0.0;
    for (std::int64_t t = begin + threadIdx.y; t < end; t += blockDim.y) {
      const std::int64_t token = row * sizes.length + t;
      const float raw = __bfloat162float(x.data[x.offset(row, t, head) + c]);
      const __nv_bfloat16* const d = d_out + (token * sizes.heads + head) * out_width + c;
      float d_value = __bfloat162float(d[0]);
      if (theta != nullptr) {
        float cosine, sine;
        rotation(theta[head * sizes.width + c], positions[token], cosine, sine);
        const float d_cosine = d_value, d_sine = __bfloat162float(d[sizes.width]);
        d_value = d_cosine * cosine + d_sine * sine;
        sum += static_cast<double>(positions[token]) *
               static_cast<double>(activated(activation, raw) * (d_sine * cosine - d_cosine * sine));
      }
      const_cast<__nv_bfloat16*>(d_x.data)[d_x.offset(row, t, head) + c] =
          __float2bfloat16(d_value * derivative(activation, raw));
    }
    if (theta != nullptr) sums[threadIdx.y * sizes.width + c] = sum;
  }
  if (theta == nullptr) return;
  __syncthreads();
  if (threadIdx.y != 0) return;
  const std::int64_t block = static_cast<std::int64_t>(blockIdx.z) * gridDim.x + blockIdx.x;
  for (int c = threadIdx.x; c < sizes.width; c += blockDim.x) {
    double sum = 0.0;
    for (int y = 0; y < blockDim.y; ++y) sum += sums[y * sizes.width + c];
    partial[(block * sizes.heads + head) * sizes.width + c] = sum;
  }
}

// total [n] += sum over blocks of partial [blocks, n], a block of threads for each element.
__global__ void sum_partial_kernel(const double* partial, std::int64_t blocks, std::int64_t n, double* total) {
  __shared__ double sums[256];
  const std::int64_t element = blockIdx.x;
  double sum = 0.0;
  for (std::int64_t b = threadIdx.x; b < blocks; b += blockDim.x) sum += partial[b * n + element];
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) total[element] += sums[0];
}

const dim3 threads(64, 4);

dim3 grid_of(const Tensor& x) {
  return dim3(static_cast<unsigned>((x.size(1) + tokens_per_block - 1) / tokens_per_block), static_cast<unsigned>(x.size(2)),
              static_cast<unsigned>(x.size(0)));
}

Sizes sizes_of(const Tensor& x) { return {x.size(1), static_cast<int>(x.size(2)), static_cast<int>(x.size(3))}; }

}  // namespace

void make_features(const Execution& execution, const Features& features, const Tensor& out) {
  features_kernel<<<grid_of(features.x), threads, 0, static_cast<cudaStream_t>(execution.stream.handle)>>>(
      view_of(features.x), features.activation, features.theta.as<double>(), features.positions.as<std::int64_t>(),
      sizes_of(features.x), static_cast<__nv_bfloat16*>(out.data()));
  FULMEN_CUDA_CHECK_LAUNCH();
}

void differentiate_features(const Execution& execution, const Features& features, const Tensor& d_out, const Tensor& d_x,
                            const Tensor& d_theta) {
  const auto stream = static_cast<cudaStream_t>(execution.stream.handle);
  const Arena::Frame frame(*execution.scratch);
  const dim3 grid = grid_of(features.x);
  const Sizes sizes = sizes_of(features.x);
  const std::int64_t blocks = static_cast<std::int64_t>(grid.x) * grid.z, n = static_cast<std::int64_t>(sizes.heads) * sizes.width;
  const Tensor partial = features.theta ? execution.scratch->take(DType::fp64, {blocks, n}) : Tensor();
  const std::size_t shared = features.theta ? threads.y * sizes.width * sizeof(double) : 0;
  differentiate_kernel<<<grid, threads, shared, stream>>>(
      view_of(features.x), features.activation, features.theta.as<double>(), features.positions.as<std::int64_t>(), sizes,
      static_cast<const __nv_bfloat16*>(d_out.data()), view_of(d_x), partial.as<double>());
  FULMEN_CUDA_CHECK_LAUNCH();
  if (features.theta.is_null()) return;
  sum_partial_kernel<<<static_cast<unsigned>(n), 256, 0, stream>>>(partial.as<double>(), blocks, n, d_theta.as<double>());
  FULMEN_CUDA_CHECK_LAUNCH();
}

}  // namespace fulmen::cuda::hopper
