// The kernels that linear attention with wide heads is made of, as their launchers take them. Rows are cut into wide
// chunks of 256 tokens. All tiles are boxes of 64 tokens x 64 columns, as tensor maps have them.
//
//   states    sweep a row and leave, in bf16, the state before each wide chunk (after it, in reverse);
//   scores    P = (q k^T) .* M and dP = (d_output v^T) .* M within a chunk, in bf16, or their transposes;
//   products  of a chunk's tokens, in two phases summed up in fp32: X = diag(f) A B, then X += scores C.
//
// The last make output (A = q, B = state, C = v), d_query (d_output, state^T, k), d_key (v, d_state^T, q) and d_value
// (k, d_state, d_output).
//
// Costs for keys of 256 and values of 512, in operations and bytes a token and head, counting whole tiles:
//
//              forward                                     backward
//   states     0.52 M, with keys split in two parts       1.05 M
//   scores     0.10 M                                      0.29 M
//   products   0.46 M                                      1.18 M
//   bytes      3 KiB of q, k, v, o; k and v read again;    5 KiB of inputs and gradients, most of them twice;
//              1 KiB of states, 0.4 KiB of scores twice    2 KiB of states, 1.1 KiB of scores twice
//
// 8 x 2048 tokens of 8 heads take 0.14 TFLOP and 1.0 GB forward, 0.33 TFLOP and 2.4 GB backward. Shorter chunks would
// move more states, longer chunks would have more scores.
#pragma once

#include "kernels/cuda/hopper/linear_attention_sweeps.cuh"

namespace fulmen::cuda::hopper {

inline constexpr int wide_chunk_tokens = 256;
inline constexpr int product_rows = 128;     // tokens of a tile of scores or results: two warpgroups' 64
inline constexpr int product_columns = 256;  // columns of a tile of results
inline constexpr int chunk_tiles = wide_chunk_tokens / product_rows;
inline constexpr int slice_columns = 128;  // of the values, in a block that sweeps over states

// Batches, heads and wide chunks, counted through as [row, head, chunk]: where states and scores lie.
struct WideShape {
  int batch = 0, heads = 0, chunks = 0;
  int key_width = 0, value_width = 0;  // multiples of 64; keys of at most 256
  __host__ __device__ std::int64_t count() const { return static_cast<std::int64_t>(batch) * heads * chunks; }
};

// The sweep tells length, heads, slope, documents, the state that rows begin with and where their last state goes.
struct WideStatesArguments {
  CUtensorMap a, b;    // key and value, or in reverse query and d_output
  CUtensorMap states;  // bf16 [count, key width, 1, value width]
  bool publish = false;
  WideShape shape;
  Sweep sweep;
};

struct ScoresJob {
  CUtensorMap rows, columns;       // query and key, or d_output and value
  CUtensorMap direct, transposed;  // bf16 [count, 256, 1, 256] of queries and keys; of keys and queries
  int steps = 0;                   // of 64 columns of the tensors
  bool stores_direct = false, stores_transposed = false;
};

struct ScoresArguments {
  ScoresJob jobs[2];
  int job_count = 0;
  WideShape shape;
  Sweep sweep;  // length, heads, slope, documents
};

struct ProductsJob {
  CUtensorMap a, b, scores, c, result;
  int steps = 0;              // of 64 summed elements in the first phase
  int columns = 0;            // of the result
  bool b_transposed = false;  // B's rows are the result's columns
  bool reverse = false;       // scores are of keys and queries, and B is the gradient of the state after the chunk
  __host__ __device__ int column_tiles() const { return (columns + product_columns - 1) / product_columns; }
};

struct ProductsArguments {
  ProductsJob jobs[3];
  int job_count = 0;
  WideShape shape;
  Sweep sweep;  // length, heads, slope, documents
};

void launch_wide_states(const WideStatesArguments& arguments, bool reverse, cudaStream_t stream);
void launch_scores(const ScoresArguments& arguments, cudaStream_t stream);
void launch_products(const ProductsArguments& arguments, int multiprocessors, cudaStream_t stream);

// sums [batch * length, heads]: of the squares of x, bf16 [batch, length, heads, width].
struct SquareSumsArguments {
  const __nv_bfloat16* x = nullptr;
  HeadStrides strides;
  int batch = 0, length = 0, heads = 0, width = 0;
  float* sums = nullptr;
};
void launch_square_sums(const SquareSumsArguments& arguments, cudaStream_t stream);

// Barriers of a ring of stages between those who fill them and the warps that take them.
template <int stages>
struct StageBarriers {
  Barrier loaded[stages], released[stages];
  __device__ void initialize(int fillers, int consumer_warps) {
    for (int s = 0; s < stages; ++s) {
      barrier_init(&loaded[s], fillers);
      barrier_init(&released[s], consumer_warps);
    }
    barrier_init_fence();
  }
};

// Panels of 64 x 64 that a warpgroup has written to shared memory go out through the copy engine. Each warpgroup has a
// place of its own there, and a barrier of its own by name.
struct Staging {
  char* memory;
  int warpgroup;
  __device__ bool leads() const { return threadIdx.x % warpgroup_threads == 0; }
  __device__ std::uint32_t tile() const { return shared_address(memory); }
  // Each name is a constant: where the compiler does not know the name, the block takes all 16 barriers.
  __device__ void synchronize() const {
    switch (warpgroup) {
      case 0: return named_barrier(1, warpgroup_threads);
      case 1: return named_barrier(2, warpgroup_threads);
      case 2: return named_barrier(3, warpgroup_threads);
      default: return named_barrier(4, warpgroup_threads);
    }
  }
  // Before it is written again.
  __device__ void wait_until_free() const {
    if (leads()) wait_stores_read<0>();
    synchronize();
  }
  // After it was written: whether this thread is to start the stores.
  __device__ bool written() const {
    proxy_fence();
    synchronize();
    return leads();
  }
  __device__ void finish() const {
    if (leads()) wait_stores();
  }
};

}  // namespace fulmen::cuda::hopper
