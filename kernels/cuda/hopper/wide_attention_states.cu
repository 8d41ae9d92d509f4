// States of wide heads: a block sweeps over a row for all keys and a slice of 128 values of one head,
//   S = carry S + (factor K)^T V per 64 tokens,
// 64 keys a warpgroup, in fp32. In reverse with queries and output gradients. In the last warpgroup one warp loads, and
// one makes the factors: the others' registers are full.
#include "kernels/cuda/hopper/wide_attention_kernels.cuh"

namespace fulmen::cuda::hopper {

namespace {

// How a chunk of 64 tokens enters the state.
struct alignas(16) ChunkWeights {
  float factors[chunk_tokens];  // of its tokens
  float carry;                  // of the state so far
};

constexpr int stages = 3, most_warpgroups = 4, slice_panels = slice_columns / panel_columns;
constexpr int stage_bytes = (most_warpgroups + slice_panels) * panel_bytes;
constexpr int staging_offset = stages * stage_bytes;
constexpr int staging_bytes = slice_panels * panel_bytes;  // of a warpgroup
constexpr int weights_offset = staging_offset + most_warpgroups * staging_bytes;
constexpr int powers_offset = weights_offset + stages * static_cast<int>(sizeof(ChunkWeights));
constexpr int barriers_offset = powers_offset + decay_bytes;
constexpr int shared_bytes = barriers_offset + sizeof(StageBarriers<stages>) + 1024;
static_assert(shared_bytes <= 227 * 1024);
constexpr int most_threads = (most_warpgroups + 1) * warpgroup_threads;
// A block of n + 1 warpgroups starts with as many registers a thread as there are for five.
constexpr int registers_at_start = 65536 / most_threads / 8 * 8, registers_of_state = 112, registers_of_rest = 32;
static_assert(most_warpgroups * registers_of_state + registers_of_rest <= (most_warpgroups + 1) * registers_at_start);
static_assert(registers_of_state + registers_of_rest <= 2 * registers_at_start);
constexpr int chunks_of_wide = wide_chunk_tokens / chunk_tokens;

struct StatesBlock {
  char* memory = aligned_shared_memory();
  int slice = blockIdx.x, head = blockIdx.y, row = blockIdx.z;
  int warpgroups, length, chunks;
  __device__ explicit StatesBlock(const WideStatesArguments& arguments)
      : warpgroups(arguments.shape.key_width / panel_columns),
        length(arguments.sweep.length),
        chunks((length + chunk_tokens - 1) / chunk_tokens) {}
  __device__ StageBarriers<stages>& barriers() const {
    return *reinterpret_cast<StageBarriers<stages>*>(memory + barriers_offset);
  }
  __device__ ConstantDecay decay() const { return {reinterpret_cast<const float*>(memory + powers_offset)}; }
  __device__ ChunkWeights& weights(int index) const {
    return reinterpret_cast<ChunkWeights*>(memory + weights_offset)[index];
  }
  __device__ char* stage(int index) const { return memory + index * stage_bytes; }
};

// One lane: of each chunk the keys, panel after panel, then the slice of the values.
template <bool reverse>
__device__ __forceinline__ void load_chunks(const WideStatesArguments& arguments, const StatesBlock& block) {
  Ring<stages> ring;
  StageBarriers<stages>& barriers = block.barriers();
#pragma unroll 1
  for (int i = 0; i < block.chunks; ++i, ring.advance()) {
    const int token = (reverse ? block.chunks - 1 - i : i) * chunk_tokens;
    Barrier* const loaded = &barriers.loaded[ring.index];
    char* const stage = block.stage(ring.index);
    barrier_wait(&barriers.released[ring.index], ring.parity ^ 1);
    barrier_expect(loaded, (block.warpgroups + slice_panels) * panel_bytes);
#pragma unroll 1
    for (int panel = 0; panel < block.warpgroups; ++panel)
      load_tile(&arguments.a, stage + panel * panel_bytes, loaded,
                {panel * panel_columns, block.head, token, block.row});
#pragma unroll 1
    for (int panel = 0; panel < slice_panels; ++panel)
      load_tile(&arguments.b, stage + (most_warpgroups + panel) * panel_bytes, loaded,
                {block.slice * slice_columns + panel * panel_columns, block.head, token, block.row});
  }
}

// One warp: of each chunk the weights, two tokens a lane.
template <bool documents_present, bool reverse>
__device__ __forceinline__ void weigh_chunks(const WideStatesArguments& arguments, const StatesBlock& block) {
  Ring<stages> ring;
  StageBarriers<stages>& barriers = block.barriers();
  const ConstantDecay decay = block.decay();
#pragma unroll 1
  for (int i = 0; i < block.chunks; ++i, ring.advance()) {
    const int begin = (reverse ? block.chunks - 1 - i : i) * chunk_tokens;
    const int tokens = min(chunk_tokens, block.length - begin);
    const ChunkDocuments<documents_present> documents(arguments.sweep, block.row, begin, tokens);
    barrier_wait(&barriers.released[ring.index], ring.parity ^ 1);
    ChunkWeights& weights = block.weights(ring.index);
    for (int t = threadIdx.x % 32; t < chunk_tokens; t += 32) {
      const bool counts = reverse ? documents.reaches_start(t) : documents.joins_state(t);
      weights.factors[t] = !counts ? 0.0f : reverse ? decay.from_start(t) : decay.to_end(t, tokens);
    }
    if (threadIdx.x % 32 == 0) weights.carry = documents.state_passes() ? decay.across(tokens) : 0.0f;
    warp_arrive(&barriers.loaded[ring.index]);
  }
}

// One of the warpgroups that hold the state.
template <bool reverse>
class WideStateRole {
 public:
  __device__ WideStateRole(const WideStatesArguments& arguments, const StatesBlock& block)
      : arguments_(arguments),
        block_(block),
        group_(threadIdx.x / warpgroup_threads),
        staging_{block.memory + staging_offset + group_ * staging_bytes, group_} {}

  __device__ __forceinline__ void run() {
    float state[slice_columns / 2];
    load(state);
    Ring<stages> ring;
#pragma unroll 1
    for (int i = 0; i < block_.chunks; ++i, ring.advance()) {
      const int chunk = reverse ? block_.chunks - 1 - i : i;
      const bool first_of_wide =
          reverse ? i == 0 || chunk % chunks_of_wide == chunks_of_wide - 1 : chunk % chunks_of_wide == 0;
      if (arguments_.publish && first_of_wide) publish(state, chunk / chunks_of_wide);
      barrier_wait(&block_.barriers().loaded[ring.index], ring.parity);
      const ChunkWeights& weights = block_.weights(ring.index);
      const float carry = weights.carry;
#pragma unroll
      for (int j = 0; j < slice_columns / 2; ++j) state[j] *= carry;
      const std::uint32_t stage = shared_address(block_.stage(ring.index));
      // By halves, for the sake of registers: other warpgroups' products run meanwhile.
      add_half<0>(stage, weights, state);
      add_half<1>(stage, weights, state);
      warp_arrive(&block_.barriers().released[ring.index]);
    }
    finish(state);
    staging_.finish();
  }

 private:
  // Adds the products of 32 tokens. As operand A the keys are scaled and then the sum of two bf16 numbers: rounded to
  // one, they would have as large a part in the error of what is read from the state as the state's own rounding.
  template <int half>
  __device__ __forceinline__ void add_half(std::uint32_t stage, const ChunkWeights& weights,
                                           float (&state)[slice_columns / 2]) const {
    constexpr int steps = 2, first_step = half * steps;
    std::uint32_t a[2 * steps][4];  // the first parts, the remainders
    // Rows of the operand are the tile's columns, the summed dimension its tokens.
    const std::uint32_t keys = element_address(stage + group_ * panel_bytes, panel_bytes,
                                               (at_.lane / 16) * 8 + at_.lane % 8, 2 * at_.warp + (at_.lane / 8) % 2);
#pragma unroll
    for (int k = 0; k < steps; ++k) {
      std::uint32_t pairs[4];
      load_matrices_transposed(keys + (first_step + k) * 16 * 128, pairs);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int token = 16 * (first_step + k) + at_.column + 8 * (r >> 1);  // and the next
        const float2 factor = *reinterpret_cast<const float2*>(weights.factors + token);
        const float first = low_half(pairs[r]) * factor.x, second = high_half(pairs[r]) * factor.y;
        a[k][r] = pack(first, second);
        a[steps + k][r] = pack(first - low_half(a[k][r]), second - high_half(a[k][r]));
      }
    }
    pin(state);
    const std::uint32_t values = stage + most_warpgroups * panel_bytes;
    products_begin();
#pragma unroll
    for (int k = 0; k < 2 * steps; ++k)
      product<Major::outer>(state, a[k], along_columns(values, panel_bytes, first_step + k % steps), true);
    products_commit();
    products_wait<0>();
    pin(state);
    hold(a);
  }

  // In bf16, for the products of a wide chunk.
  __device__ __forceinline__ void publish(const float (&state)[slice_columns / 2], int wide_chunk) const {
    staging_.wait_until_free();
    store_results<slice_columns>(state, staging_.tile(), at_);
    if (!staging_.written()) return;
    const int index = (block_.row * arguments_.shape.heads + block_.head) * arguments_.shape.chunks + wide_chunk;
#pragma unroll 1
    for (int panel = 0; panel < slice_panels; ++panel) {
      const int column = block_.slice * slice_columns + panel * panel_columns;
      if (column < arguments_.shape.value_width)
        store_tile(&arguments_.states, staging_.memory + panel * panel_bytes,
                   {column, 0, group_ * panel_columns, index});
    }
    commit_stores();
  }

  // Where this thread's elements of a state begin, fp32 [key width, value width].
  __device__ std::int64_t offset(std::int64_t stride) const {
    return (static_cast<std::int64_t>(block_.row) * arguments_.shape.heads + block_.head) * stride +
           static_cast<std::int64_t>(64 * group_ + at_.row) * arguments_.shape.value_width + first_column();
  }
  __device__ int first_column() const { return block_.slice * slice_columns + at_.column; }
  // The slice's columns 8 j and the next may lie past the last.
  __device__ bool is_there(int j) const { return first_column() + 8 * j < arguments_.shape.value_width; }

  __device__ __forceinline__ void load(float (&state)[slice_columns / 2]) const {
#pragma unroll
    for (int j = 0; j < slice_columns / 2; ++j) state[j] = 0.0f;
    if (arguments_.sweep.incoming == nullptr) return;
    const float* const from = arguments_.sweep.incoming + offset(arguments_.sweep.incoming_stride);
#pragma unroll
    for (int j = 0; j < slice_columns / 8; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (!is_there(j)) continue;
        const float2 pair = *reinterpret_cast<const float2*>(from + 8 * half * arguments_.shape.value_width + 8 * j);
        state[4 * j + 2 * half] = pair.x, state[4 * j + 2 * half + 1] = pair.y;
      }
  }

  __device__ __forceinline__ void finish(const float (&state)[slice_columns / 2]) const {
    if (arguments_.sweep.outgoing == nullptr) return;
    float* const to = arguments_.sweep.outgoing + offset(arguments_.sweep.outgoing_stride);
#pragma unroll
    for (int j = 0; j < slice_columns / 8; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (is_there(j))
          *reinterpret_cast<float2*>(to + 8 * half * arguments_.shape.value_width + 8 * j) =
              make_float2(state[4 * j + 2 * half], state[4 * j + 2 * half + 1]);
  }

  const WideStatesArguments& arguments_;
  const StatesBlock& block_;
  const ThreadPlace at_;
  int group_;
  Staging staging_;
};

template <bool documents_present, bool reverse>
__global__ void __launch_bounds__(most_threads, 1)
    wide_states_kernel(const __grid_constant__ WideStatesArguments arguments) {
  const StatesBlock block(arguments);
  if (threadIdx.x == 0) block.barriers().initialize(2, 4 * block.warpgroups);
  ConstantDecay::prepare(reinterpret_cast<float*>(block.memory + powers_offset), arguments.sweep.slope[block.head]);
  __syncthreads();
  const int warp = threadIdx.x / 32 - 4 * block.warpgroups;  // of the last warpgroup
  if (warp < 0) {
    raise_registers<registers_of_state>();
    WideStateRole<reverse>(arguments, block).run();
  } else {
    lower_registers<registers_of_rest>();
    if (warp == 1)
      weigh_chunks<documents_present, reverse>(arguments, block);
    else if (warp == 0 && threadIdx.x % 32 == 0)
      load_chunks<reverse>(arguments, block);
  }
}

}  // namespace

void launch_wide_states(const WideStatesArguments& arguments, bool reverse, cudaStream_t stream) {
  const WideShape& shape = arguments.shape;
  const dim3 grid((shape.value_width + slice_columns - 1) / slice_columns, shape.heads, shape.batch);
  const int threads = (shape.key_width / panel_columns + 1) * warpgroup_threads;
  const auto launch = [&](auto kernel) { launch_sweep(kernel, threads, shared_bytes, grid, stream, arguments); };
  if (arguments.sweep.document_begin == nullptr)
    reverse ? launch(wide_states_kernel<false, true>) : launch(wide_states_kernel<false, false>);
  else
    reverse ? launch(wide_states_kernel<true, true>) : launch(wide_states_kernel<true, false>);
}

}  // namespace fulmen::cuda::hopper
