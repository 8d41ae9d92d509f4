// What stands around the sweeps: where documents begin and end, and the states between the pieces of a row.
#include "kernels/cuda/hopper/linear_attention_sweeps.cuh"

namespace fulmen::cuda::hopper {

namespace {

constexpr int block_size = 256;

// A thread per token finds its segment by bisection.
__global__ void documents_kernel(const std::int64_t* segments, std::int64_t count, std::int64_t tokens, std::int64_t length,
                                 int* begins, int* ends) {
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (token >= tokens) return;
  std::int64_t low = 0, high = count;   // segments[low] <= token < segments[high]
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (segments[middle] <= token ? low : high) = middle;
  }
  const std::int64_t row_begin = token / length * length;
  const bool first = segments[low] == row_begin, last = segments[high] == row_begin + length;
  begins[token] = first ? -1 : static_cast<int>(segments[low] - row_begin);
  ends[token] = last ? 1 << 30 : static_cast<int>(segments[high] - row_begin);
}

__global__ void __launch_bounds__(block_size) scan_kernel(const ScanArguments arguments, int rows_heads, bool reverse) {
  const Sweep& sweep = arguments.sweep;
  const int head = blockIdx.y;   // over rows and heads
  const int element = 4 * (blockIdx.x * block_size + threadIdx.x);
  if (element >= arguments.elements || head >= rows_heads) return;
  const int row = head / sweep.heads;
  const double slope = sweep.slope[head % sweep.heads];
  float4 carry = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (arguments.initial != nullptr)
    carry = *reinterpret_cast<const float4*>(arguments.initial + head * arguments.initial_stride + element);
  for (int i = 0; i < sweep.pieces; ++i) {
    const int piece = reverse ? sweep.pieces - 1 - i : i;
    const int begin = piece * sweep.piece_tokens, end = min(sweep.length, begin + sweep.piece_tokens);
    float4* const place = reinterpret_cast<float4*>(
        arguments.states + (static_cast<std::int64_t>(head) * sweep.pieces + piece) * arguments.elements + element);
    const float4 own = i + 1 < sweep.pieces ? *place : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    *place = carry;
    const bool passes = sweep.document_begin == nullptr ||
                        sweep.document_begin[static_cast<std::int64_t>(row) * sweep.length + end - 1] < begin;
    const float decay = passes ? static_cast<float>(exp(-slope * (end - begin))) : 0.0f;
    carry = make_float4(carry.x * decay + own.x, carry.y * decay + own.y, carry.z * decay + own.z, carry.w * decay + own.w);
  }
}

}  // namespace

void launch_documents(const std::int64_t* segments, std::int64_t count, std::int64_t batch, std::int64_t length, int* begins,
                      int* ends, cudaStream_t stream) {
  const std::int64_t tokens = batch * length, blocks = (tokens + block_size - 1) / block_size;
  documents_kernel<<<static_cast<unsigned>(blocks), block_size, 0, stream>>>(segments, count, tokens, length, begins, ends);
  FULMEN_CUDA_CHECK_LAUNCH();
}

void launch_scan(const ScanArguments& arguments, int batch, bool reverse, cudaStream_t stream) {
  const int rows_heads = batch * arguments.sweep.heads;
  const dim3 grid((arguments.elements / 4 + block_size - 1) / block_size, rows_heads);
  scan_kernel<<<grid, block_size, 0, stream>>>(arguments, rows_heads, reverse);
  FULMEN_CUDA_CHECK_LAUNCH();
}

}  // namespace fulmen::cuda::hopper
