// Scores of wide heads within a chunk of 256 tokens: P = (rows columns^T) .* M, rounded to bf16, in tiles of 128 x 128
// of which those above the diagonal are left out.
#include "kernels/cuda/hopper/wide_attention_kernels.cuh"

namespace fulmen::cuda::hopper {

namespace {

constexpr int stages = 3, warpgroups = 2, tile_panels = product_rows / panel_columns;
constexpr int operand_bytes = tile_panels * panel_bytes;  // 128 tokens x 64 columns
constexpr int stage_bytes = 2 * operand_bytes;
// Once all is summed up, the stages become the places that tiles leave from: 128 x 64 each warpgroup, both ways.
constexpr int staging_bytes = tile_panels * panel_bytes;
static_assert(2 * warpgroups * staging_bytes <= stages * stage_bytes);
constexpr int powers_offset = stages * stage_bytes;
constexpr int barriers_offset = powers_offset + wide_chunk_tokens * static_cast<int>(sizeof(float));
constexpr int shared_bytes = barriers_offset + sizeof(StageBarriers<stages>) + 1024;
static_assert(2 * (shared_bytes + 1024) <= 228 * 1024, "two blocks of a multiprocessor");
constexpr int threads = warpgroups * warpgroup_threads + 32;
constexpr int tile_pairs = chunk_tiles * (chunk_tiles + 1) / 2;
constexpr int everybody = 5;  // a barrier's name; the warpgroups' own come before

// A tile of the scores of a job: 128 queries and 128 keys. Jobs of a chunk follow each other, the last chunk first: the
// caches still hold its keys.
struct ScoresTile {
  int job, query, key;          // first tokens, of the chunk
  int index, head, row, begin;  // of the chunk
  int tokens;
  __device__ explicit ScoresTile(const ScoresArguments& arguments) {
    const WideShape& shape = arguments.shape;
    const int of_chunk = tile_pairs * arguments.job_count;
    const int place = blockIdx.x % of_chunk, pair = place % tile_pairs;
    index = static_cast<int>(shape.count()) - 1 - static_cast<int>(blockIdx.x / of_chunk);
    job = place / tile_pairs;
    const int query_tile = pair == 0 ? 0 : 1, key_tile = pair == 2 ? 1 : 0;  // of two tiles a chunk
    query = query_tile * product_rows, key = key_tile * product_rows;
    const int chunk = index % shape.chunks, row_head = index / shape.chunks;
    head = row_head % shape.heads, row = row_head / shape.heads;
    begin = chunk * wide_chunk_tokens;
    tokens = min(wide_chunk_tokens, arguments.sweep.length - begin);
  }
};
static_assert(chunk_tiles == 2);

struct ScoresBlock {
  char* memory = aligned_shared_memory();
  __device__ StageBarriers<stages>& barriers() const {
    return *reinterpret_cast<StageBarriers<stages>*>(memory + barriers_offset);
  }
  __device__ float* powers() const { return reinterpret_cast<float*>(memory + powers_offset); }
  __device__ char* stage(int index) const { return memory + index * stage_bytes; }
};

__device__ __forceinline__ void load_operands(const ScoresJob& job, const ScoresTile& tile, const ScoresBlock& block) {
  Ring<stages> ring;
#pragma unroll 1
  for (int s = 0; s < job.steps; ++s, ring.advance()) {
    Barrier* const loaded = &block.barriers().loaded[ring.index];
    char* const stage = block.stage(ring.index);
    barrier_wait(&block.barriers().released[ring.index], ring.parity ^ 1);
    barrier_expect(loaded, stage_bytes);
#pragma unroll
    for (int panel = 0; panel < tile_panels; ++panel) {
      load_tile(&job.rows, stage + panel * panel_bytes, loaded,
                {s * panel_columns, tile.head, tile.begin + tile.query + panel * chunk_tokens, tile.row});
      load_tile(&job.columns, stage + operand_bytes + panel * panel_bytes, loaded,
                {s * panel_columns, tile.head, tile.begin + tile.key + panel * chunk_tokens, tile.row});
    }
  }
}

// Sums up 64 rows of the tile.
__device__ __forceinline__ void add_up(const ScoresJob& job, const ScoresBlock& block, int warpgroup,
                                       float (&scores)[64]) {
  Ring<stages> ring;
  int previous = 0;
#pragma unroll 1
  for (int s = 0; s < job.steps; ++s) {
    barrier_wait(&block.barriers().loaded[ring.index], ring.parity);
    const std::uint32_t rows = shared_address(block.stage(ring.index)) + warpgroup * panel_bytes;
    const std::uint32_t columns = shared_address(block.stage(ring.index)) + operand_bytes;
    products_begin();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      product<Major::summed>(scores, along_rows(rows, panel_bytes, k), along_rows(columns, panel_bytes, k), true);
    products_commit();
    if (s > 0) {
      products_wait<1>();
      warp_arrive(&block.barriers().released[previous]);
    }
    previous = ring.index;
    ring.advance();
  }
  products_wait<0>();
  pin(scores);
}

// A warpgroup's 64 x 128 scores, decayed and masked, in bf16: as two panels of 64 x 64, and transposed as two more.
template <bool documents_present>
class ScoresWriter {
 public:
  __device__ ScoresWriter(const ScoresArguments& arguments, const ScoresTile& tile, const float* powers,
                          const Staging& direct, const Staging& transposed)
      : job_(arguments.jobs[tile.job]), direct_(direct.tile()), transposed_(transposed.tile()) {
    const ChunkDocuments<documents_present> documents(arguments.sweep, tile.row, tile.begin, tile.tokens);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = tile.query + 64 * direct.warpgroup + at_.row + 8 * half;
      distance_[half] = query - tile.key - at_.column;
      farthest_[half] = query - documents.begin_of(query);  // where the query's own document begins
    }
    powers_ = powers;
  }

  __device__ __forceinline__ void write(const float (&scores)[64]) const {
#pragma unroll
    for (int g = 0; g < 8; ++g) {  // 16 keys
      std::uint32_t r[4];
#pragma unroll
      for (int m = 0; m < 4; ++m)
        r[m] = pack(masked(scores[8 * g + 2 * m], m % 2, 16 * g + 8 * (m / 2)),
                    masked(scores[8 * g + 2 * m + 1], m % 2, 16 * g + 8 * (m / 2) + 1));
      if (job_.stores_direct)
        store_matrices(element_address(direct_, panel_bytes, 16 * at_.warp + at_.lane % 16, 2 * g + at_.lane / 16), r);
      if (job_.stores_transposed)
        store_matrices_transposed(
            element_address(transposed_ + (g / 4) * panel_bytes, panel_bytes,
                            16 * (g % 4) + (at_.lane / 16) * 8 + at_.lane % 8, 2 * at_.warp + (at_.lane / 8) % 2),
            r);
    }
  }

 private:
  // The score of a key that lies `offset` behind the thread's first.
  __device__ __forceinline__ float masked(float score, int half, int offset) const {
    const int distance = distance_[half] - offset;
    if (distance < 0 || (documents_present && distance > farthest_[half])) return 0.0f;
    return score * powers_[distance];
  }

  const ScoresJob& job_;
  std::uint32_t direct_, transposed_;
  const float* powers_;
  const ThreadPlace at_;
  int distance_[2], farthest_[2];
};

template <bool documents_present>
__device__ __forceinline__ void make_scores(const ScoresArguments& arguments, const ScoresTile& tile,
                                            const ScoresBlock& block) {
  const ScoresJob& job = arguments.jobs[tile.job];
  const int warpgroup = threadIdx.x / warpgroup_threads;
  float scores[64] = {};
  pin(scores);
  add_up(job, block, warpgroup, scores);
  named_barrier(everybody, warpgroups * warpgroup_threads);  // all products have read the stages
  const Staging direct{block.memory + warpgroup * staging_bytes, warpgroup};
  const Staging transposed{block.memory + (warpgroups + warpgroup) * staging_bytes, warpgroup};
  ScoresWriter<documents_present>(arguments, tile, block.powers(), direct, transposed).write(scores);
  if (!direct.written()) return;
#pragma unroll 1
  for (int panel = 0; panel < tile_panels; ++panel) {
    const int query = tile.query + 64 * warpgroup, key = tile.key + 64 * panel;
    if (job.stores_direct) store_tile(&job.direct, direct.memory + panel * panel_bytes, {key, 0, query, tile.index});
    if (job.stores_transposed)
      store_tile(&job.transposed, transposed.memory + panel * panel_bytes, {query, 0, key, tile.index});
  }
  commit_stores();
  wait_stores();
}

template <bool documents_present>
__global__ void __launch_bounds__(threads, 2) scores_kernel(const __grid_constant__ ScoresArguments arguments) {
  const ScoresTile tile(arguments);
  if (tile.query >= tile.tokens) return;  // the whole block
  const ScoresBlock block;
  if (threadIdx.x == 0) block.barriers().initialize(1, 4 * warpgroups);
  const double slope = arguments.sweep.slope[tile.head];
  for (int i = threadIdx.x; i < wide_chunk_tokens; i += threads)
    block.powers()[i] = static_cast<float>(exp(-slope * i));
  __syncthreads();
  constexpr int loader = warpgroups * warpgroup_threads;
  if (threadIdx.x < loader) {
    make_scores<documents_present>(arguments, tile, block);
  } else {
    if (threadIdx.x == loader) load_operands(arguments.jobs[tile.job], tile, block);
  }
}

}  // namespace

void launch_scores(const ScoresArguments& arguments, cudaStream_t stream) {
  const std::int64_t blocks = arguments.shape.count() * tile_pairs * arguments.job_count;
  FULMEN_CHECK(blocks <= 0x7fffffff, "{} tiles of scores are too many for one launch", blocks);
  const auto launch = [&](auto kernel) {
    launch_sweep(kernel, threads, shared_bytes, dim3(static_cast<unsigned>(blocks)), stream, arguments);
  };
  arguments.sweep.document_begin == nullptr ? launch(scores_kernel<false>) : launch(scores_kernel<true>);
}

}  // namespace fulmen::cuda::hopper
