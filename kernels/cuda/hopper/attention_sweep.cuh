// Shared by the sweeps of linear attention over a sequence. A block takes one head of one row (or a piece of it) chunk
// by chunk; its warpgroups have roles:
//   copies    one warp loads tiles ahead of their use, another stores finished tiles;
//   states    hold the state S [D, D] in registers, fp32, 64 of its rows each; publish it to shared memory in bf16
//   before
//             each chunk, and update it: S = carry * S + (factor * phi(A))^T B, with A and B two tiles of the chunk;
//   outputs   one warpgroup that turns tiles and the published state into the chunk's results.
// Forward sweeps have A = key, B = value; reverse sweeps A = query, B = d_output.
#pragma once

#include "framework/device.h"
#include "kernels/cuda/hopper/attention_features.cuh"

namespace fulmen::cuda::hopper {

// The problem as every sweep sees it. Pieces cut rows at multiples of a chunk when there are too few heads to fill the
// GPU.
struct Sweep {
  int length = 0, heads = 0;
  int piece_tokens = 0, pieces = 1, first_piece = 0;  // the grid's second dimension counts from first_piece
  const double* slope = nullptr;                      // [heads]
  Rotation rotation;
  // Per token of [batch, length], or null when every row is one document: where in the row its document begins (-1 for
  // a row's first) and ends (past the row for its last).
  const int* document_begin = nullptr;
  const int* document_end = nullptr;
  // fp32 [D, D] before the piece (after it, in reverse): at (row * heads + head) * state_stride + piece * piece_stride;
  // null for zero.
  const float* incoming = nullptr;
  std::int64_t incoming_stride = 0, incoming_piece_stride = 0;
  // Where the state goes after the last token of the piece (in reverse: before the first) `outgoing_piece`, or of every
  // piece when that is -1; null for nowhere.
  float* outgoing = nullptr;
  std::int64_t outgoing_stride = 0, outgoing_piece_stride = 0;
  int outgoing_piece = -1;
};

// A block's place in the problem.
struct Place {
  int head, piece, row;
  int begin, end;  // tokens of the row
  __device__ explicit Place(const Sweep& sweep)
      : head(blockIdx.x),
        piece(sweep.first_piece + blockIdx.y),
        row(blockIdx.z),
        begin(piece * sweep.piece_tokens),
        end(min(sweep.length, begin + sweep.piece_tokens)) {}
  __device__ int chunks() const { return (end - begin + chunk_tokens - 1) / chunk_tokens; }
};

// A constant decay per head, exp(-slope) a token, as powers in shared memory: nothing ever grows. Other kinds of decay
// answer the same four questions.
struct ConstantDecay {
  static constexpr int past = chunk_tokens - 1, table_size = past + chunk_tokens + 1;
  const float* powers;  // powers[past + t] = exp(-slope t) for t in [0, 64], 0 for t in [-63, -1]

  __device__ static void prepare(float* powers, double slope) {
    for (int i = threadIdx.x; i < table_size; i += blockDim.x)
      powers[i] = i < past ? 0.0f : static_cast<float>(exp(-slope * (i - past)));
  }
  __device__ float between(int query, int key) const {
    return powers[past + query - key];
  }  // 0 when the key comes later
  __device__ float from_start(int query) const { return powers[past + query + 1]; }
  __device__ float to_end(int key, int tokens) const { return powers[past + tokens - 1 - key]; }  // 0 past the tokens
  __device__ float across(int tokens) const { return powers[past + tokens]; }
};
inline constexpr int decay_bytes = 512;
static_assert(ConstantDecay::table_size * sizeof(float) <= decay_bytes);

// Where documents begin and end in a chunk, relative to its first token. `present` is false when every row is one
// document: then all of this vanishes.
template <bool present>
struct ChunkDocuments {
  int first_begin = -1;  // of the document of the chunk's first token; negative: before the chunk
  int first_end = 1 << 30;
  int last_begin = -1;
  const int* begins = nullptr;
  const int* ends = nullptr;
  int chunk_begin = 0, tokens = chunk_tokens;

  __device__ ChunkDocuments(const Sweep& sweep, const Place& place, int begin, int count)
      : ChunkDocuments(sweep, place.row, begin, count) {}
  __device__ ChunkDocuments(const Sweep& sweep, int row, int begin, int count) {
    if constexpr (present) {
      const std::int64_t offset = static_cast<std::int64_t>(row) * sweep.length + begin;
      begins = sweep.document_begin + offset;
      ends = sweep.document_end + offset;
      chunk_begin = begin;
      tokens = count;
      first_begin = begins[0] - begin;
      first_end = ends[0] - begin;
      last_begin = begins[count - 1] - begin;
    }
  }
  // The document of token i of the chunk, relative to the chunk.
  __device__ int begin_of(int i) const { return !present || i >= tokens ? -1 : __ldg(begins + i) - chunk_begin; }
  __device__ int end_of(int i) const { return !present || i >= tokens ? 1 << 30 : __ldg(ends + i) - chunk_begin; }
  __device__ bool state_passes() const { return !present || last_begin < 0; }
  __device__ bool reads_state(int i) const { return begin_of(i) < 0; }
  __device__ bool joins_state(int i) const { return !present || i >= last_begin; }
  // In reverse: whether a query's gradient reaches the state before the chunk.
  __device__ bool reaches_start(int i) const { return !present || (first_begin < 0 && i < first_end); }
};

// Scores [64, 64] of queries (rows) and keys, decayed and masked, as operand A of four steps; `transposed`: of keys
// (rows) and queries.
template <bool transposed, bool documents_present, class Decay>
__device__ __forceinline__ void mask_scores(const float (&scores)[32], const Decay& decay,
                                            const ChunkDocuments<documents_present>& documents, const ThreadPlace& at,
                                            std::uint32_t (&fragments)[4][4]) {
  int low[2], high[2];  // the columns of the rows' own documents
  if constexpr (documents_present) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = at.row + 8 * half;
      low[half] = transposed ? 0 : documents.begin_of(row);
      high[half] = transposed ? documents.end_of(row) : chunk_tokens;
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    float value[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = at.row + 8 * (e >> 1), column = 8 * j + at.column + (e & 1);
      value[e] = scores[4 * j + e] * (transposed ? decay.between(column, row) : decay.between(row, column));
      if constexpr (documents_present) value[e] = column >= low[e >> 1] && column < high[e >> 1] ? value[e] : 0.0f;
    }
    fragments[j / 2][2 * (j % 2)] = pack(value[0], value[1]);
    fragments[j / 2][2 * (j % 2) + 1] = pack(value[2], value[3]);
  }
}

// results[row, :] *= factor of the row.
template <int n>
__device__ __forceinline__ void scale_rows(float (&results)[n], float first, float second) {
#pragma unroll
  for (int j = 0; j < n / 4; ++j) {
    results[4 * j] *= first, results[4 * j + 1] *= first;
    results[4 * j + 2] *= second, results[4 * j + 3] *= second;
  }
}

// The barriers between the roles.
template <int stages>
struct Barriers {
  Barrier loaded[stages];    // by the copy engine
  Barrier mapped[stages];    // tile A became its features, in place, by the states
  Barrier finished[stages];  // results lie in a tile: the outputs are done with the stage
  Barrier released[stages];  // may be loaded again
  Barrier published;         // the state before a chunk
  Barrier consumed;          // by the outputs

  // `store_arrivals`: 1 when a warp stores results, 0 without outputs.
  __device__ void initialize(int state_warps, int store_arrivals) {
    for (int s = 0; s < stages; ++s) {
      barrier_init(&loaded[s], 1);
      barrier_init(&mapped[s], state_warps);
      barrier_init(&finished[s], 4);
      barrier_init(&released[s], state_warps + store_arrivals);
    }
    barrier_init(&published, state_warps);
    barrier_init(&consumed, 4);
    barrier_init_fence();
  }
};

// A block's shared memory: stages of tiles, the published state if any, powers of the decay, LRPE's turns, barriers.
// The state has one place only: it is read early in a chunk and written late in the chunk before. Memory is better
// spent on another stage, since the pipeline has to cover the latency of copies.
template <int D, int tiles_of_stage, int stage_count, bool publishes = true>
struct SharedLayout {
  static constexpr int tiles = tiles_of_stage, stages = stage_count;
  static constexpr int state_offset = stages * tiles * tile_bytes<D>;
  static constexpr int powers_offset = state_offset + (publishes ? state_bytes<D> : 0);
  static constexpr int turns_offset = powers_offset + decay_bytes;
  static constexpr int barriers_offset = turns_offset + D * static_cast<int>(sizeof(std::uint64_t));
  static constexpr int bytes = barriers_offset + sizeof(Barriers<stage_count>) + 1024;  // the last to align the first
  static_assert(bytes <= 227 * 1024);
};

// The stage of a ring and the parity of its barriers as the i-th chunk has them.
template <int stages>
struct Ring {
  int index = 0;
  std::uint32_t parity = 0;
  __device__ void advance() {
    if (++index == stages) index = 0, parity ^= 1;
  }
};

// The block's dynamic shared memory, aligned to what swizzled tiles need.
__device__ __forceinline__ char* aligned_shared_memory() {
  extern __shared__ char raw[];
  return raw + ((1024 - (shared_address(raw) & 1023)) & 1023);
}

// Shared by all roles of a block.
template <class Shared, int D, Feature feature, class Decay>
struct Block {
  static constexpr int tiles = Shared::tiles, stages = Shared::stages;

  // Every thread of the block. `store_arrivals`: 1 when a warp stores results, 0 without outputs.
  __device__ __forceinline__ Block(const Sweep& sweep, int store_arrivals)
      : memory(aligned_shared_memory()),
        state(shared_address(memory) + Shared::state_offset),
        barriers(*reinterpret_cast<Barriers<stages>*>(memory + Shared::barriers_offset)),
        place(sweep),
        decay{reinterpret_cast<float*>(memory + Shared::powers_offset)},
        features(sweep.rotation, reinterpret_cast<std::uint64_t*>(memory + Shared::turns_offset), place.row,
                 place.end) {
    if (threadIdx.x == 0) barriers.initialize(4 * state_groups<D>, store_arrivals);
    Decay::prepare(reinterpret_cast<float*>(memory + Shared::powers_offset), sweep.slope[place.head]);
    features.template prepare<D>(sweep.rotation, place.head,
                                 reinterpret_cast<std::uint64_t*>(memory + Shared::turns_offset));
    __syncthreads();
  }
  __device__ __forceinline__ std::uint32_t tile(int stage, int index) const {
    return shared_address(memory) + (stage * tiles + index) * tile_bytes<D>;
  }

  char* memory;
  std::uint32_t state;  // where it is published
  Barriers<stages>& barriers;
  Place place;
  Decay decay;
  FeatureMap<feature> features;
};

// The loading warp's lane: tile t of a chunk from maps[t].
template <int D, class Block>
__device__ __forceinline__ void run_loads(const Block& block, const CUtensorMap* const (&maps)[Block::tiles],
                                          bool reverse) {
  Ring<Block::stages> ring;
  const int chunks = block.place.chunks();
#pragma unroll 1
  for (int i = 0; i < chunks; ++i, ring.advance()) {
    const int token = block.place.begin + (reverse ? chunks - 1 - i : i) * chunk_tokens;
    barrier_wait(&block.barriers.released[ring.index], ring.parity ^ 1);
    barrier_expect(&block.barriers.loaded[ring.index], Block::tiles * tile_bytes<D>);
    char* const stage = block.memory + ring.index * Block::tiles * tile_bytes<D>;
#pragma unroll
    for (int t = 0; t < Block::tiles; ++t)
#pragma unroll
      for (int panel = 0; panel < D / panel_columns; ++panel)
        load_tile(maps[t], stage + t * tile_bytes<D> + panel * panel_bytes, &block.barriers.loaded[ring.index],
                  {panel * panel_columns, block.place.head, token, block.place.row});
  }
}

// The storing warp's lane: stores tile results[t] of each finished stage through maps[t], then releases the stage.
template <int D, class Block, int count>
__device__ __forceinline__ void run_stores(const Block& block, const CUtensorMap* const (&maps)[count],
                                           const int (&results)[count], bool reverse) {
  Ring<Block::stages> ring;
  const int chunks = block.place.chunks();
#pragma unroll 1
  for (int i = 0; i < chunks; ++i, ring.advance()) {
    const int token = block.place.begin + (reverse ? chunks - 1 - i : i) * chunk_tokens;
    barrier_wait(&block.barriers.finished[ring.index], ring.parity);
#pragma unroll
    for (int t = 0; t < count; ++t) {
      const char* const tile = block.memory + (ring.index * Block::tiles + results[t]) * tile_bytes<D>;
#pragma unroll
      for (int panel = 0; panel < D / panel_columns; ++panel)
        store_tile(maps[t], tile + panel * panel_bytes,
                   {panel * panel_columns, block.place.head, token, block.place.row});
    }
    commit_stores();
    wait_stores_read<0>();
    barrier_arrive(&block.barriers.released[ring.index]);
  }
  wait_stores();
}

// 64 columns of tile A's features, transposed.
struct StateFeatures {
  std::uint32_t step[4][4];
};

// Operand A of a state's update: features, scaled, as the sum of two bf16 numbers. Rounded to one, they would have as
// large a part in the error of what is read from the state as the state's own rounding. LRPE's half features are
// rounded to one: they leave no registers for more.
template <Feature feature>
struct StateOperand {
  static constexpr int parts = is_rotated(feature) ? 1 : 2;
  std::uint32_t step[4 * parts][4];  // the first parts, the remainders
};

// One of the warpgroups that hold the state; `group` says which 64 rows. Tiles A and B are the first two of a stage.
// States that are not published are wanted at one end of a piece only. They take the last chunk first either way. A
// sweep that follows and begins with the first chunk finds that in the L2 cache.
template <class Block, int D, Feature feature, bool documents_present, bool reverse, bool publish>
class StateRole {
 public:
  __device__ StateRole(const Sweep& sweep, const Block& block, int group)
      : sweep_(sweep),
        block_(block),
        place_(block.place),
        barriers_(block.barriers),
        group_(group),
        chunks_(place_.chunks()) {}

  __device__ __forceinline__ void run() {
    float state[D / 2];
    load(state);
    StateFeatures features;
    Ring<Block::stages> ring, ahead;
    prepare(0, ahead, features);
    ahead.advance();
    float weight = 1.0f;  // of what the chunk makes of zero, in the state that is wanted
    for (int i = 0; i < chunks_; ++i, ring.advance()) {
      if constexpr (publish) {
        barrier_wait(&barriers_.consumed, (i & 1) ^ 1);
        store(state);
        warp_arrive<true>(&barriers_.published);
      }
      const Chunk chunk = chunk_of(i);
      const ChunkDocuments<documents_present> documents(sweep_, place_, chunk.begin, chunk.tokens);
      const float carry = documents.state_passes() ? block_.decay.across(chunk.tokens) : 0.0f;
      if constexpr (!backwards) {
#pragma unroll
        for (int j = 0; j < D / 2; ++j) state[j] *= carry;
      }
      StateOperand<feature> a;
      scale(features, documents, chunk.tokens, weight, a);
      if constexpr (backwards) weight *= carry;
      pin(state);
      const std::uint32_t tile_b = block_.tile(ring.index, 1);
      products_begin();
#pragma unroll
      for (int k = 0; k < 4 * a.parts; ++k)
        product<Major::outer>(state, a.step[k], along_columns(tile_b, panel_bytes, k % 4), true);
      products_commit();
      // The next chunk's features are made while the products run.
      if (i + 1 < chunks_) {
        prepare(i + 1, ahead, features);
        ahead.advance();
      }
      products_wait<0>();
      pin(state);
      hold(a.step);
      warp_arrive(&barriers_.released[ring.index]);
    }
    finish(state);
  }

 private:
  static constexpr bool backwards = !reverse && !publish;  // from where the state is wanted
  struct Chunk {
    int begin, tokens;
  };
  __device__ Chunk chunk_of(int i) const {
    const int begin = place_.begin + (reverse || backwards ? chunks_ - 1 - i : i) * chunk_tokens;
    return {begin, min(chunk_tokens, place_.end - begin)};
  }

  __device__ int token(int k, int t) const { return 16 * k + at_.column + (t & 1) + 8 * (t >> 1); }

  __device__ __forceinline__ void prepare(int i, const Ring<Block::stages>& ring, StateFeatures& features) {
    const Chunk chunk = chunk_of(i);
    barrier_wait(&barriers_.loaded[ring.index], ring.parity);
    const std::uint32_t tile = block_.tile(ring.index, 0) + group_ * panel_bytes;
    // Rows of the operand are the tile's columns, the summed dimension its tokens.
    const std::uint32_t address =
        element_address(tile, panel_bytes, (at_.lane / 16) * 8 + at_.lane % 8, 2 * at_.warp + (at_.lane / 8) % 2);
#pragma unroll
    for (int k = 0; k < 4; ++k) load_matrices_transposed(address + k * 16 * 128, features.step[k]);
    if constexpr (feature != Feature::plain) {
      const int column = 64 * group_ + 16 * at_.warp + at_.lane / 4;  // and column + 8
      std::uint64_t turns[2] = {0, 0};
      if constexpr (block_.features.rotates)
        turns[0] = block_.features.turns(column), turns[1] = block_.features.turns(column + 8);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        std::uint32_t positions[4] = {0, 0, 0, 0};
        if constexpr (block_.features.rotates) {
#pragma unroll
          for (int t = 0; t < 4; ++t) positions[t] = block_.features.position(chunk.begin + token(k, t));
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          float value[2] = {low_half(features.step[k][r]), high_half(features.step[k][r])};
          block_.features.activate(value[0], value[1]);
          if constexpr (block_.features.rotates) {
#pragma unroll
            for (int e = 0; e < 2; ++e)
              value[e] *= block_.features.sine(block_.features.angle(turns[r & 1], positions[e + 2 * (r >> 1)]));
          }
          features.step[k][r] = pack(value[0], value[1]);
        }
        if constexpr (publish) store_matrices_transposed(address + k * 16 * 128, features.step[k]);
      }
      if constexpr (publish) warp_arrive<true>(&barriers_.mapped[ring.index]);
    }
  }

  __device__ __forceinline__ void scale(const StateFeatures& features,
                                        const ChunkDocuments<documents_present>& documents, int tokens, float weight,
                                        StateOperand<feature>& a) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        float factor[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int t = token(k, e + 2 * (r >> 1));
          const bool counts = reverse ? documents.reaches_start(t) : documents.joins_state(t);
          factor[e] = reverse ? block_.decay.from_start(t) : block_.decay.to_end(t, tokens);
          if constexpr (backwards) factor[e] *= weight;
          if (!counts) factor[e] = 0.0f;
        }
        const float first = low_half(features.step[k][r]) * factor[0],
                    second = high_half(features.step[k][r]) * factor[1];
        const std::uint32_t rounded = pack(first, second);
        a.step[k][r] = rounded;
        if constexpr (a.parts > 1) a.step[4 + k][r] = pack(first - low_half(rounded), second - high_half(rounded));
      }
    }
  }

  __device__ std::int64_t head() const { return static_cast<std::int64_t>(place_.row) * sweep_.heads + place_.head; }

  __device__ __forceinline__ void load(float (&state)[D / 2]) const {
    if (sweep_.incoming == nullptr) {
#pragma unroll
      for (int j = 0; j < D / 2; ++j) state[j] = 0.0f;
      return;
    }
    const float* const from = sweep_.incoming + head() * sweep_.incoming_stride +
                              place_.piece * sweep_.incoming_piece_stride + (64 * group_ + at_.row) * D + at_.column;
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 pair = *reinterpret_cast<const float2*>(from + 8 * half * D + 8 * j);
        state[4 * j + 2 * half] = pair.x, state[4 * j + 2 * half + 1] = pair.y;
      }
  }

  // In bf16, for the outputs.
  __device__ __forceinline__ void store(const float (&state)[D / 2]) const {
#pragma unroll
    for (int g = 0; g < D / 16; ++g) {
      const float* const d = state + 8 * g;
      const std::uint32_t r[4] = {pack(d[0], d[1]), pack(d[2], d[3]), pack(d[4], d[5]), pack(d[6], d[7])};
      store_matrices(element_address(block_.state, state_panel<D>, 64 * group_ + 16 * at_.warp + at_.lane % 16,
                                     2 * g + at_.lane / 16),
                     r);
    }
  }

  __device__ __forceinline__ void finish(const float (&state)[D / 2]) const {
    if (sweep_.outgoing == nullptr || (sweep_.outgoing_piece >= 0 && sweep_.outgoing_piece != place_.piece)) return;
    float* const to = sweep_.outgoing + head() * sweep_.outgoing_stride + place_.piece * sweep_.outgoing_piece_stride +
                      (64 * group_ + at_.row) * D + at_.column;
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<float2*>(to + 8 * half * D + 8 * j) =
            make_float2(state[4 * j + 2 * half], state[4 * j + 2 * half + 1]);
  }

  const Sweep& sweep_;
  const Block& block_;
  const Place& place_;
  Barriers<Block::stages>& barriers_;
  const ThreadPlace at_;
  int group_, chunks_;
};

// How 65536 registers are dealt out among a block's warpgroups.
inline constexpr int copy_registers = 24;
template <int D>
inline constexpr int state_registers = D == 128 ? 136 : 232;
template <int D>
inline constexpr int output_registers = D == 128 ? 216 : 248;

template <int D>
inline constexpr int block_threads = warpgroup_threads*(2 + state_groups<D>);

}  // namespace fulmen::cuda::hopper
