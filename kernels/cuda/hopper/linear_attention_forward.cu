// The forward sweep on Hopper: o = [(q k^T) .* M] v + diag(decay^(j + 1)) q S, per chunk of 64 tokens (Lightning
// Attention-2, arXiv 2401.04658, algorithm 1). Also the sweeps that make only states, for sequences cut into pieces.
#include "kernels/cuda/hopper/linear_attention_sweeps.cuh"

namespace fulmen::cuda::hopper {

namespace {

// Tiles of a stage: key, value, query. The output takes the query's place once that is in registers.
template <int D>
using ForwardShared = SharedLayout<D, 3, D == 128 ? 4 : 8>;

// The sum of the squares of each of a chunk's outputs.
template <int D>
__device__ __forceinline__ void store_square_sums(const float (&output)[D / 2], const ForwardArguments& arguments,
                                                  const Place& place, int begin, int tokens, const ThreadPlace& at) {
  float sums[2] = {0.0f, 0.0f};
#pragma unroll
  for (int j = 0; j < D / 8; ++j) {
    sums[0] += output[4 * j] * output[4 * j] + output[4 * j + 1] * output[4 * j + 1];
    sums[1] += output[4 * j + 2] * output[4 * j + 2] + output[4 * j + 3] * output[4 * j + 3];
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sums[half] += __shfl_xor_sync(0xffffffffu, sums[half], 1);
    sums[half] += __shfl_xor_sync(0xffffffffu, sums[half], 2);
    const int token = at.row + 8 * half;
    if (at.lane % 4 == 0 && token < tokens)
      arguments.square_sums[(static_cast<std::int64_t>(place.row) * arguments.sweep.length + begin + token) *
                                arguments.sweep.heads +
                            place.head] = sums[half];
  }
}

template <class Block, int D, Feature feature, bool documents_present>
__device__ __forceinline__ void run_outputs(const ForwardArguments& arguments, const Block& block) {
  const Place& place = block.place;
  auto& barriers = block.barriers;
  const ThreadPlace at;
  Ring<Block::stages> ring, ahead;
  const int chunks = place.chunks();
  Fragments<D> q, next;
  const auto load_query = [&](int i, Fragments<D>& fragments) {
    barrier_wait(&barriers.loaded[ahead.index], ahead.parity);
    load_fragments<D>(block.tile(ahead.index, 2), at, block.features, place.begin + i * chunk_tokens, fragments);
    ahead.advance();
  };
  load_query(0, q);
  for (int i = 0; i < chunks; ++i, ring.advance()) {
    const int begin = place.begin + i * chunk_tokens;
    const int tokens = min(chunk_tokens, place.end - begin);
    const ChunkDocuments<documents_present> documents(arguments.sweep, place, begin, tokens);
    const std::uint32_t key = block.tile(ring.index, 0), value = block.tile(ring.index, 1),
                        query = block.tile(ring.index, 2);

    if constexpr (feature != Feature::plain) barrier_wait(&barriers.mapped[ring.index], ring.parity);
    float scores[32];
    start_products<Major::summed, D / 16>(scores, q.step, TileRows{key});

    barrier_wait(&barriers.published, i & 1);
    float output[D / 2];
    start_products<Major::outer, D / 16>(output, q.step, TileColumns{block.state, state_panel<D>});

    products_wait<1>();
    pin(scores);
    std::uint32_t p[4][4];
    mask_scores<false>(scores, block.decay, documents, at, p);
    products_wait<0>();
    pin(output);
    hold(q.step);
    warp_arrive(&barriers.consumed);
    scale_rows(output, documents.reads_state(at.row) ? block.decay.from_start(at.row) : 0.0f,
               documents.reads_state(at.row + 8) ? block.decay.from_start(at.row + 8) : 0.0f);
    pin(output);
    start_products<Major::outer, 4, true>(output, p, TileColumns{value});
    Previous<D> previous;
    if constexpr (block.features.rotates) previous.load(arguments.add_to, place, begin, tokens, at);
    // The next chunk's queries are made ready while the products run.
    if (i + 1 < chunks) load_query(i + 1, next);
    products_wait<0>();
    pin(output);
    hold(p);

    if constexpr (block.features.rotates) previous.add(output);
    if (arguments.square_sums != nullptr) store_square_sums<D>(output, arguments, place, begin, tokens, at);
    store_results<D>(output, query, at);
    warp_arrive<true>(&barriers.finished[ring.index]);
    q = next;
  }
}

template <int D, Feature feature, bool documents_present, class Decay>
__global__ void __launch_bounds__(block_threads<D>, 1)
    forward_kernel(const __grid_constant__ ForwardArguments arguments) {
  using Parts = Block<ForwardShared<D>, D, feature, Decay>;
  const Parts block(arguments.sweep, 1);
  const int role = threadIdx.x / warpgroup_threads;
  if (role == 0) {
    lower_registers<copy_registers>();
    if (threadIdx.x == 0)
      run_loads<D>(block, {&arguments.key, &arguments.value, &arguments.query}, false);
    else if (threadIdx.x == 32)
      run_stores<D>(block, {&arguments.output}, {2}, false);
  } else if (role == 1) {
    raise_registers<output_registers<D>>();
    run_outputs<Parts, D, feature, documents_present>(arguments, block);
  } else {
    raise_registers<state_registers<D>>();
    StateRole<Parts, D, feature, documents_present, false, true>(arguments.sweep, block, role - 2).run();
  }
}

// Leaves the part of a piece that reaches the state past it (in reverse: before it). That is the document at that end,
// as far as decay lets its tokens be seen. Beyond, they have lost 40 bits, which neither the state's fp32 sums nor what
// is read of it in bf16 shows.
__device__ void leave_what_counts(const Sweep& sweep, bool reverse, Place& place) {
  constexpr double lost = 27.8;  // 2^-40
  const std::int64_t row = static_cast<std::int64_t>(place.row) * sweep.length;
  const double seen = lost / sweep.slope[place.head];  // infinite for none
  int tokens = place.end - place.begin;
  if (seen < tokens) tokens = static_cast<int>(seen) + 1;
  if (sweep.document_begin != nullptr)
    tokens = min(tokens, reverse ? sweep.document_end[row + place.begin] - place.begin
                                 : place.end - sweep.document_begin[row + place.end - 1]);
  // Whole chunks, as the piece has them.
  if (reverse)
    place.end = min(place.end, place.begin + (tokens + chunk_tokens - 1) / chunk_tokens * chunk_tokens);
  else
    place.begin += max(0, place.end - place.begin - tokens) / chunk_tokens * chunk_tokens;
}

// States alone: tiles A and B of a stage, no outputs.
template <int D>
using StatesShared = SharedLayout<D, 2, 6, false>;

template <int D, Feature feature, bool documents_present, bool reverse, class Decay>
__global__ void __launch_bounds__(warpgroup_threads*(1 + state_groups<D>), 1)
    states_kernel(const __grid_constant__ StatesArguments arguments) {
  using Parts = Block<StatesShared<D>, D, feature, Decay>;
  Parts block(arguments.sweep, 0);
  leave_what_counts(arguments.sweep, reverse, block.place);
  const int role = threadIdx.x / warpgroup_threads;
  if (role == 0) {
    if (threadIdx.x == 0) run_loads<D>(block, {&arguments.a, &arguments.b}, true);
  } else {
    StateRole<Parts, D, feature, documents_present, reverse, false>(arguments.sweep, block, role - 1).run();
  }
}

}  // namespace

void launch_forward(const ForwardArguments& arguments, const SweepShape& shape, cudaStream_t stream) {
  with_kind(shape, arguments.sweep, [&]<int D, Feature feature, bool documents>() {
    launch_sweep(forward_kernel<D, feature, documents, ConstantDecay>, block_threads<D>, ForwardShared<D>::bytes,
                 shape.grid, stream, arguments);
  });
}

void launch_states(const StatesArguments& arguments, const SweepShape& shape, bool reverse, cudaStream_t stream) {
  with_kind(shape, arguments.sweep, [&]<int D, Feature feature, bool documents>() {
    constexpr int threads = warpgroup_threads * (1 + state_groups<D>);
    if (reverse)
      launch_sweep(states_kernel<D, feature, documents, true, ConstantDecay>, threads, StatesShared<D>::bytes,
                   shape.grid, stream, arguments);
    else
      launch_sweep(states_kernel<D, feature, documents, false, ConstantDecay>, threads, StatesShared<D>::bytes,
                   shape.grid, stream, arguments);
  });
}

}  // namespace fulmen::cuda::hopper
