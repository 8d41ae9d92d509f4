// The results of wide heads: per tile of 128 tokens and 256 columns X = diag(f) A B, the share of the state, and X +=
// scores C, the share of the chunk. Blocks stay and take tile after tile; the copy engine runs ahead over the ends of
// tiles.
#include <algorithm>

#include "kernels/cuda/hopper/wide_attention_kernels.cuh"

namespace fulmen::cuda::hopper {

namespace {

constexpr int stages = 3, warpgroups = 2;
constexpr int row_panels = product_rows / chunk_tokens, column_panels = product_columns / panel_columns;
constexpr int stage_bytes = (row_panels + column_panels) * panel_bytes;
constexpr int staging_offset = stages * stage_bytes;
constexpr int staging_bytes = column_panels * panel_bytes;  // of a warpgroup
constexpr int barriers_offset = staging_offset + warpgroups * staging_bytes;
constexpr int shared_bytes = barriers_offset + sizeof(StageBarriers<stages>) + 1024;
static_assert(shared_bytes <= 227 * 1024);
constexpr int threads = (warpgroups + 1) * warpgroup_threads;
constexpr int registers_of_maker = 240, registers_of_loader = 24;

// A tile of a job's results.
struct ProductsTile {
  int job, row_tile, column_tile;
  int index, head, row, begin, tokens;  // of the chunk
  // Steps of 64 tokens over which scores and C are summed up: up to the tile's last query, or from its first key.
  int first_step, end_step;

  __device__ ProductsTile(const ProductsArguments& arguments, std::int64_t tile, int of_chunk) {
    const WideShape& shape = arguments.shape;
    int place = static_cast<int>(tile % of_chunk);
    for (job = 0; place >= chunk_tiles * arguments.jobs[job].column_tiles(); ++job)
      place -= chunk_tiles * arguments.jobs[job].column_tiles();
    column_tile = place / chunk_tiles;
    row_tile = (place + column_tile) % chunk_tiles;  // turned, as first and last rows differ in steps
    index = static_cast<int>(tile / of_chunk);
    const int chunk = index % shape.chunks, row_head = index / shape.chunks;
    head = row_head % shape.heads, row = row_head / shape.heads;
    begin = chunk * wide_chunk_tokens;
    tokens = min(wide_chunk_tokens, arguments.sweep.length - begin);
    constexpr int steps_of_tile = product_rows / chunk_tokens;
    const int all = (tokens + chunk_tokens - 1) / chunk_tokens;
    first_step = arguments.jobs[job].reverse ? row_tile * steps_of_tile : 0;
    end_step = arguments.jobs[job].reverse ? all : min(all, (row_tile + 1) * steps_of_tile);
  }
  __device__ bool is_empty() const { return row_tile * product_rows >= tokens; }
};

struct ProductsBlock {
  char* memory = aligned_shared_memory();
  int tiles_of_chunk = 0;
  std::int64_t tiles;
  __device__ explicit ProductsBlock(const ProductsArguments& arguments) {
    for (int job = 0; job < arguments.job_count; ++job)
      tiles_of_chunk += chunk_tiles * arguments.jobs[job].column_tiles();
    tiles = arguments.shape.count() * tiles_of_chunk;
  }
  __device__ StageBarriers<stages>& barriers() const {
    return *reinterpret_cast<StageBarriers<stages>*>(memory + barriers_offset);
  }
  __device__ char* stage(int index) const { return memory + index * stage_bytes; }
};

// One lane.
class Loader {
 public:
  __device__ explicit Loader(const ProductsBlock& block) : block_(block) {}

  __device__ __forceinline__ void load(const ProductsJob& job, const ProductsTile& tile) {
    const int column = tile.column_tile * product_columns, first_row = tile.row_tile * product_rows;
#pragma unroll 1
    for (int s = 0; s < job.steps; ++s) {
      begin_stage();
      load_rows(job.a, {s * panel_columns, tile.head, tile.begin + first_row, tile.row});
#pragma unroll
      for (int panel = 0; panel < column_panels; ++panel) {
        const int outer = column + panel * panel_columns, summed = s * panel_columns;
        load_panel(job.b, row_panels + panel,
                   {job.b_transposed ? summed : outer, 0, job.b_transposed ? outer : summed, tile.index});
      }
      ring_.advance();
    }
#pragma unroll 1
    for (int s = tile.first_step; s < tile.end_step; ++s) {
      begin_stage();
      load_rows(job.scores, {s * chunk_tokens, 0, first_row, tile.index});
#pragma unroll
      for (int panel = 0; panel < column_panels; ++panel)
        load_panel(job.c, row_panels + panel,
                   {column + panel * panel_columns, tile.head, tile.begin + s * chunk_tokens, tile.row});
      ring_.advance();
    }
  }

 private:
  __device__ __forceinline__ void begin_stage() {
    barrier_wait(&block_.barriers().released[ring_.index], ring_.parity ^ 1);
    barrier_expect(&block_.barriers().loaded[ring_.index], stage_bytes);
  }
  __device__ __forceinline__ void load_panel(const CUtensorMap& map, int panel, Coordinates at) {
    load_tile(&map, block_.stage(ring_.index) + panel * panel_bytes, &block_.barriers().loaded[ring_.index], at);
  }
  __device__ __forceinline__ void load_rows(const CUtensorMap& map, Coordinates at) {
#pragma unroll
    for (int panel = 0; panel < row_panels; ++panel, at.token += chunk_tokens) load_panel(map, panel, at);
  }

  const ProductsBlock& block_;
  Ring<stages> ring_;
};

// A warpgroup, which makes 64 rows of each tile.
template <bool documents_present>
class Maker {
 public:
  __device__ Maker(const ProductsArguments& arguments, const ProductsBlock& block)
      : arguments_(arguments),
        block_(block),
        warpgroup_(threadIdx.x / warpgroup_threads),
        staging_{block.memory + staging_offset + warpgroup_ * staging_bytes, warpgroup_} {}

  __device__ __forceinline__ void make(const ProductsJob& job, const ProductsTile& tile) {
    const ChunkDocuments<documents_present> documents(arguments_.sweep, tile.row, tile.begin, tile.tokens);
    const int token = tile.row_tile * product_rows + 64 * warpgroup_ + at_.row;
    const float first = factor_of(job, tile, documents, token), second = factor_of(job, tile, documents, token + 8);
    // Zeros, since undefined registers would count as live from tile to tile and be spilled.
    float results[product_columns / 2] = {};
    pin(results);
    if (job.b_transposed)
      add_up<Major::summed>(job.steps, results);
    else
      add_up<Major::outer>(job.steps, results);
    scale_rows(results, first, second);
    pin(results);
    add_up<Major::outer>(tile.end_step - tile.first_step, results);
    store(job, tile, results);
  }
  __device__ void finish() const { staging_.finish(); }

 private:
  // How much of a row's share of the state there is.
  __device__ float factor_of(const ProductsJob& job, const ProductsTile& tile,
                             const ChunkDocuments<documents_present>& documents, int token) const {
    if (token >= tile.tokens) return 0.0f;
    if (job.reverse ? !documents.joins_state(token) : !documents.reads_state(token)) return 0.0f;
    const int distance = job.reverse ? tile.tokens - 1 - token : token + 1;
    return static_cast<float>(exp(-arguments_.sweep.slope[tile.head] * distance));
  }

  template <Major major>
  __device__ static std::uint64_t step_of(std::uint32_t panels, int k) {
    return major == Major::summed ? along_rows(panels, panel_bytes, k) : along_columns(panels, panel_bytes, k);
  }

  // Adds the products of the next `steps` stages, at least one.
  template <Major major>
  __device__ __forceinline__ void add_up(int steps, float (&results)[product_columns / 2]) {
    int previous = 0;
#pragma unroll 1
    for (int s = 0; s < steps; ++s) {
      barrier_wait(&block_.barriers().loaded[ring_.index], ring_.parity);
      const std::uint32_t stage = shared_address(block_.stage(ring_.index));
      const std::uint32_t rows = stage + warpgroup_ * panel_bytes, columns = stage + row_panels * panel_bytes;
      products_begin();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        product<major>(results, along_rows(rows, panel_bytes, k), step_of<major>(columns, k), true);
      products_commit();
      if (s > 0) {
        products_wait<1>();
        warp_arrive(&block_.barriers().released[previous]);
      }
      previous = ring_.index;
      ring_.advance();
    }
    products_wait<0>();
    pin(results);
    warp_arrive(&block_.barriers().released[previous]);
  }

  __device__ __forceinline__ void store(const ProductsJob& job, const ProductsTile& tile,
                                        const float (&results)[product_columns / 2]) const {
    staging_.wait_until_free();
    store_results<product_columns>(results, staging_.tile(), at_);
    if (!staging_.written()) return;
    const int token = tile.begin + tile.row_tile * product_rows + 64 * warpgroup_;
#pragma unroll 1
    for (int panel = 0; panel < column_panels; ++panel) {
      const int column = tile.column_tile * product_columns + panel * panel_columns;
      if (column < job.columns && token < arguments_.sweep.length)
        store_tile(&job.result, staging_.memory + panel * panel_bytes, {column, tile.head, token, tile.row});
    }
    commit_stores();
  }

  const ProductsArguments& arguments_;
  const ProductsBlock& block_;
  const ThreadPlace at_;
  int warpgroup_;
  Staging staging_;
  Ring<stages> ring_;
};

template <bool documents_present>
__global__ void __launch_bounds__(threads, 1) products_kernel(const __grid_constant__ ProductsArguments arguments) {
  const ProductsBlock block(arguments);
  if (threadIdx.x == 0) block.barriers().initialize(1, 4 * warpgroups);
  __syncthreads();
  // Both roles meet the same tiles in the same order.
  const auto for_each_tile = [&](auto&& take) {
#pragma unroll 1
    for (std::int64_t i = blockIdx.x; i < block.tiles; i += gridDim.x) {
      const ProductsTile tile(arguments, i, block.tiles_of_chunk);
      if (!tile.is_empty()) take(arguments.jobs[tile.job], tile);
    }
  };
  constexpr int loader = warpgroups * warpgroup_threads;
  if (threadIdx.x < loader) {
    raise_registers<registers_of_maker>();
    Maker<documents_present> maker(arguments, block);
    for_each_tile([&](const ProductsJob& job, const ProductsTile& tile) { maker.make(job, tile); });
    maker.finish();
  } else {
    lower_registers<registers_of_loader>();
    if (threadIdx.x == loader) {
      Loader lane(block);
      for_each_tile([&](const ProductsJob& job, const ProductsTile& tile) { lane.load(job, tile); });
    }
  }
}

constexpr int square_threads = 256;

// A warp for a token and head.
__global__ void __launch_bounds__(square_threads) square_sums_kernel(const SquareSumsArguments arguments) {
  const std::int64_t i = (std::int64_t{blockIdx.x} * square_threads + threadIdx.x) / 32;
  if (i >= static_cast<std::int64_t>(arguments.batch) * arguments.length * arguments.heads) return;
  const std::int64_t token = i / arguments.heads;
  const __nv_bfloat16* const x = arguments.x + token / arguments.length * arguments.strides.row +
                                 token % arguments.length * arguments.strides.token +
                                 i % arguments.heads * arguments.strides.head;
  float sum = 0.0f;
  for (int column = 2 * (threadIdx.x % 32); column < arguments.width; column += 64) {
    const std::uint32_t pair = *reinterpret_cast<const std::uint32_t*>(x + column);
    sum += low_half(pair) * low_half(pair) + high_half(pair) * high_half(pair);
  }
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  if (threadIdx.x % 32 == 0) arguments.sums[i] = sum;
}

}  // namespace

void launch_products(const ProductsArguments& arguments, int multiprocessors, cudaStream_t stream) {
  std::int64_t tiles = 0;
  for (int job = 0; job < arguments.job_count; ++job)
    tiles += arguments.shape.count() * chunk_tiles * arguments.jobs[job].column_tiles();
  const dim3 grid(static_cast<unsigned>(std::min<std::int64_t>(tiles, multiprocessors)));
  const auto launch = [&](auto kernel) { launch_sweep(kernel, threads, shared_bytes, grid, stream, arguments); };
  arguments.sweep.document_begin == nullptr ? launch(products_kernel<false>) : launch(products_kernel<true>);
}

void launch_square_sums(const SquareSumsArguments& arguments, cudaStream_t stream) {
  const std::int64_t total = 32 * static_cast<std::int64_t>(arguments.batch) * arguments.length * arguments.heads;
  const std::int64_t blocks = (total + square_threads - 1) / square_threads;
  FULMEN_CHECK(blocks <= 0x7fffffff, "{} square sums are too many for one launch", total / 32);
  square_sums_kernel<<<static_cast<unsigned>(blocks), square_threads, 0, stream>>>(arguments);
  FULMEN_CUDA_CHECK_LAUNCH();
}

}  // namespace fulmen::cuda::hopper
