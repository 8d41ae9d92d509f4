// Preparations for the sweeps: where documents begin and end, and the states between the pieces of a row.
#include "kernels/cuda/hopper/linear_attention_sweeps.cuh"

namespace fulmen::cuda::hopper {

namespace {

constexpr int block_size = 256;

// A thread per token finds its segment by bisection.
__global__ void documents_kernel(const std::int64_t* segments, std::int64_t count, std::int64_t tokens,
                                 std::int64_t length, int* begins, int* ends) {
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (token >= tokens) return;
  std::int64_t low = 0, high = count;  // segments[low] <= token < segments[high]
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
  constexpr int at_once = 8;  // pieces whose states are fetched before the first is needed
  const Sweep& sweep = arguments.sweep;
  const int head = blockIdx.y;  // over rows and heads
  const int element = 4 * (blockIdx.x * block_size + threadIdx.x);
  if (element >= arguments.elements || head >= rows_heads) return;
  const int row = head / sweep.heads, pieces = sweep.pieces;
  const double slope = sweep.slope[head % sweep.heads];
  const float whole = static_cast<float>(exp(-slope * sweep.piece_tokens));
  const float rest =
      static_cast<float>(exp(-slope * (sweep.length - (pieces - 1) * sweep.piece_tokens)));  // of the row's last piece
  const auto place = [&](int piece) {
    return (static_cast<std::int64_t>(head) * pieces + piece) * arguments.elements + element;
  };
  float4 carry = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (arguments.initial != nullptr)
    carry = *reinterpret_cast<const float4*>(arguments.initial + head * arguments.initial_stride + element);
  for (int first = 0; first < pieces; first += at_once) {
    float4 own[at_once];
    bool passes[at_once];
#pragma unroll
    for (int j = 0; j < at_once; ++j) {
      const int i = first + j, piece = reverse ? pieces - 1 - i : i;
      own[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f), passes[j] = true;
      if (i >= pieces) continue;
      // The state of the last piece reaches no piece, and was formed only if it is asked for.
      if (i + 1 < pieces || arguments.last != nullptr)
        own[j] = *reinterpret_cast<const float4*>(arguments.own + place(piece));
      if (sweep.document_begin == nullptr) continue;
      const int begin = piece * sweep.piece_tokens, end = min(sweep.length, begin + sweep.piece_tokens);
      passes[j] = sweep.document_begin[static_cast<std::int64_t>(row) * sweep.length + end - 1] < begin;
    }
#pragma unroll
    for (int j = 0; j < at_once; ++j) {
      const int i = first + j, piece = reverse ? pieces - 1 - i : i;
      if (i >= pieces) continue;
      if (arguments.incoming != nullptr) *reinterpret_cast<float4*>(arguments.incoming + place(piece)) = carry;
      const float decay = !passes[j] ? 0.0f : piece + 1 == pieces ? rest : whole;
      carry = make_float4(carry.x * decay + own[j].x, carry.y * decay + own[j].y, carry.z * decay + own[j].z,
                          carry.w * decay + own[j].w);
    }
  }
  if (arguments.last != nullptr)
    *reinterpret_cast<float4*>(arguments.last + head * arguments.last_stride + element) = carry;
}

}  // namespace

void launch_documents(const std::int64_t* segments, std::int64_t count, std::int64_t batch, std::int64_t length,
                      int* begins, int* ends, cudaStream_t stream) {
  const std::int64_t tokens = batch * length, blocks = (tokens + block_size - 1) / block_size;
  documents_kernel<<<static_cast<unsigned>(blocks), block_size, 0, stream>>>(segments, count, tokens, length, begins,
                                                                             ends);
  FULMEN_CUDA_CHECK_LAUNCH();
}

void launch_scan(const ScanArguments& arguments, int batch, bool reverse, cudaStream_t stream) {
  const int rows_heads = batch * arguments.sweep.heads;
  const dim3 grid((arguments.elements / 4 + block_size - 1) / block_size, rows_heads);
  scan_kernel<<<grid, block_size, 0, stream>>>(arguments, rows_heads, reverse);
  FULMEN_CUDA_CHECK_LAUNCH();
}

}  // namespace fulmen::cuda::hopper
