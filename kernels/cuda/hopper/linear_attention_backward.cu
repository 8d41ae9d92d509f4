// The backward sweeps on Hopper (Lightning Attention-2, arXiv 2401.04658, algorithm 2), per chunk of 64 tokens:
//   forward in the sequence, with the states S of the forward pass made again:
//     dq = [(do v^T) .* M] k + diag(decay^(j + 1)) do S^T
//   in reverse, with dS, the gradient of the state after the chunk:
//     dv = [(q k^T) .* M]^T do + diag(decay^(m - 1 - i)) k dS,   dk = [(do v^T) .* M]^T q + diag(decay^(m - 1 - i)) v
//     dS^T
// q and k are activated; their gradients pass through the activation on the way out.
#include "kernels/cuda/hopper/linear_attention_sweeps.cuh"

namespace fulmen::cuda::hopper {

namespace {

// Where the warps of a block leave what they summed up of d_theta.
template <int D>
__device__ __forceinline__ double* d_theta_of(const Sweep& sweep, const Place& place) {
  return sweep.rotation.d_theta +
         (static_cast<std::int64_t>(place.row) * sweep.pieces + place.piece) * 4 * sweep.heads * D;
}

template <int n>
__device__ __forceinline__ void multiply(float (&results)[n], const float (&factors)[n]) {
#pragma unroll
  for (int j = 0; j < n; ++j) results[j] *= factors[j];
}

// Tiles of a stage: key, value, d_output, query. d_query takes the query's place.
template <int D>
using QueryShared = SharedLayout<D, 4, D == 128 ? 3 : 6>;

template <class Block, int D, Feature feature, bool documents_present>
__device__ __forceinline__ void run_query_outputs(const BackwardQueryArguments& arguments, const Block& block) {
  const Place& place = block.place;
  auto& barriers = block.barriers;
  const ThreadPlace at;
  ThetaSums<D> theta_sums;
  Ring<Block::stages> ring;
  const int chunks = place.chunks();
  for (int i = 0; i < chunks; ++i, ring.advance()) {
    const int begin = place.begin + i * chunk_tokens;
    const int tokens = min(chunk_tokens, place.end - begin);
    const ChunkDocuments<documents_present> documents(arguments.sweep, place, begin, tokens);
    const std::uint32_t key = block.tile(ring.index, 0), value = block.tile(ring.index, 1);
    const std::uint32_t d_output = block.tile(ring.index, 2), query = block.tile(ring.index, 3);

    barrier_wait(&barriers.loaded[ring.index], ring.parity);
    float scores[32];
    start_products<Major::summed, D / 16>(scores, TileRows{d_output}, TileRows{value});

    barrier_wait(&barriers.published, i & 1);
    float d_query[D / 2];
    start_products<Major::summed, D / 16>(d_query, TileRows{d_output}, TileRows{block.state, state_panel<D>});

    products_wait<1>();
    pin(scores);
    std::uint32_t p[4][4];
    mask_scores<false>(scores, block.decay, documents, at, p);
    products_wait<0>();
    pin(d_query);
    warp_arrive(&barriers.consumed);
    scale_rows(d_query, documents.reads_state(at.row) ? block.decay.from_start(at.row) : 0.0f,
               documents.reads_state(at.row + 8) ? block.decay.from_start(at.row + 8) : 0.0f);
    pin(d_query);
    if constexpr (feature != Feature::plain) barrier_wait(&barriers.mapped[ring.index], ring.parity);
    start_products<Major::outer, 4, true>(d_query, p, TileColumns{key});
    float factors[D / 2];
    if constexpr (feature == Feature::silu) load_derivatives<D>(query, at, block.features, factors);
    Previous<D> previous;
    if constexpr (block.features.rotates) previous.load(arguments.add_to, place, begin, tokens, at);
    products_wait<0>();
    pin(d_query);
    hold(p);
    if constexpr (feature == Feature::silu) multiply(d_query, factors);
    if constexpr (block.features.rotates) {
      differentiate_rotation<D>(query, at, block.features, begin, d_query, theta_sums);
      previous.add(d_query);
    }
    __syncwarp();
    store_results<D>(d_query, query, at);
    warp_arrive<true>(&barriers.finished[ring.index]);
  }
  if constexpr (block.features.rotates)
    theta_sums.store(d_theta_of<D>(arguments.sweep, place), arguments.sweep.heads, place.head, at);
}

template <int D, Feature feature, bool documents_present, class Decay>
__global__ void __launch_bounds__(block_threads<D>, 1)
    backward_query_kernel(const __grid_constant__ BackwardQueryArguments arguments) {
  using Parts = Block<QueryShared<D>, D, feature, Decay>;
  const Parts block(arguments.sweep, 1);
  const int role = threadIdx.x / warpgroup_threads;
  if (role == 0) {
    lower_registers<copy_registers>();
    if (threadIdx.x == 0)
      run_loads<D>(block, {&arguments.key, &arguments.value, &arguments.d_output, &arguments.query}, false);
    else if (threadIdx.x == 32)
      run_stores<D>(block, {&arguments.d_query}, {3}, false);
  } else if (role == 1) {
    raise_registers<output_registers<D>>();
    run_query_outputs<Parts, D, feature, documents_present>(arguments, block);
  } else {
    raise_registers<state_registers<D>>();
    StateRole<Parts, D, feature, documents_present, false, true>(arguments.sweep, block, role - 2).run();
  }
}

// Tiles of a stage: query, d_output, key, value. d_key and d_value take the places of key and value.
template <int D>
using KeyValueShared = SharedLayout<D, 4, D == 128 ? 3 : 6>;

// Scores of a chunk's keys and values, masked, as operands, and what the state after the chunk adds to d_value.
template <class Block, int D, Feature feature, class Documents>
__device__ __forceinline__ void make_key_value_scores(const Block& block, const Ring<Block::stages>& ring, int chunk,
                                                      int begin, const Documents& documents, const ThreadPlace& at,
                                                      std::uint32_t (&p)[4][4], std::uint32_t (&d_p)[4][4],
                                                      float (&d_value)[D / 2]) {
  const std::uint32_t query = block.tile(ring.index, 0), d_output = block.tile(ring.index, 1);
  const std::uint32_t key = block.tile(ring.index, 2), value = block.tile(ring.index, 3);
  float scores[32], d_scores[32];
  start_products<Major::summed, D / 16>(d_scores, TileRows{value}, TileRows{d_output});
  Fragments<D> k_rows;
  if constexpr (feature == Feature::silu)
    load_fragments_keep_derivatives<D>(key, at, block.features, k_rows);
  else
    load_fragments<D>(key, at, block.features, begin, k_rows);
  if constexpr (feature != Feature::plain) barrier_wait(&block.barriers.mapped[ring.index], ring.parity);
  start_products<Major::summed, D / 16>(scores, k_rows.step, TileRows{query});
  barrier_wait(&block.barriers.published, chunk & 1);
  start_products<Major::outer, D / 16>(d_value, k_rows.step, TileColumns{block.state, state_panel<D>});
  products_wait<2>();
  pin(d_scores);
  mask_scores<true>(d_scores, block.decay, documents, at, d_p);
  products_wait<1>();
  pin(scores);
  mask_scores<true>(scores, block.decay, documents, at, p);
  products_wait<0>();
  pin(d_value);
  hold(k_rows.step);
}

template <class Block, int D, Feature feature, bool documents_present>
__device__ __forceinline__ void run_key_value_outputs(const BackwardKeyValueArguments& arguments, const Block& block) {
  const Place& place = block.place;
  auto& barriers = block.barriers;
  const ThreadPlace at;
  ThetaSums<D> theta_sums;
  Ring<Block::stages> ring;
  const int chunks = place.chunks();
  for (int i = 0; i < chunks; ++i, ring.advance()) {
    const int begin = place.begin + (chunks - 1 - i) * chunk_tokens;
    const int tokens = min(chunk_tokens, place.end - begin);
    const ChunkDocuments<documents_present> documents(arguments.sweep, place, begin, tokens);
    const std::uint32_t query = block.tile(ring.index, 0), d_output = block.tile(ring.index, 1);
    const std::uint32_t key = block.tile(ring.index, 2), value = block.tile(ring.index, 3);
    const float first = documents.joins_state(at.row) ? block.decay.to_end(at.row, tokens) : 0.0f;
    const float second = documents.joins_state(at.row + 8) ? block.decay.to_end(at.row + 8, tokens) : 0.0f;

    barrier_wait(&barriers.loaded[ring.index], ring.parity);
    std::uint32_t p[4][4], d_p[4][4];
    float d_value[D / 2], d_key[D / 2];
    make_key_value_scores<Block, D, feature>(block, ring, i, begin, documents, at, p, d_p, d_value);
    scale_rows(d_value, first, second);
    pin(d_value);
    start_products<Major::outer, 4, true>(d_value, p, TileColumns{d_output});
    start_products<Major::summed, D / 16>(d_key, TileRows{value}, TileRows{block.state, state_panel<D>});
    products_wait<0>();
    pin(d_value);
    pin(d_key);
    hold(p);
    warp_arrive(&barriers.consumed);
    scale_rows(d_key, first, second);
    pin(d_key);
    start_products<Major::outer, 4, true>(d_key, d_p, TileColumns{query});
    Previous<D> previous;
    if constexpr (block.features.rotates) {
      previous.load(arguments.add_value_to, place, begin, tokens, at);
      previous.add(d_value);
    }
    named_barrier(1, warpgroup_threads);  // all warps' products have read the value
    store_results<D>(d_value, value, at);
    KeptDerivatives<D> derivatives;
    if constexpr (feature == Feature::silu) derivatives.load(key, at);
    if constexpr (block.features.rotates) previous.load(arguments.add_key_to, place, begin, tokens, at);
    products_wait<0>();
    pin(d_key);
    hold(d_p);
    if constexpr (feature == Feature::silu) derivatives.multiply(d_key);
    if constexpr (block.features.rotates) {
      differentiate_rotation<D>(key, at, block.features, begin, d_key, theta_sums);
      previous.add(d_key);
    }
    __syncwarp();
    store_results<D>(d_key, key, at);
    warp_arrive<true>(&barriers.finished[ring.index]);
  }
  if constexpr (block.features.rotates)
    theta_sums.store(d_theta_of<D>(arguments.sweep, place), arguments.sweep.heads, place.head, at);
}

template <int D, Feature feature, bool documents_present, class Decay>
__global__ void __launch_bounds__(block_threads<D>, 1)
    backward_key_value_kernel(const __grid_constant__ BackwardKeyValueArguments arguments) {
  using Parts = Block<KeyValueShared<D>, D, feature, Decay>;
  const Parts block(arguments.sweep, 1);
  const int role = threadIdx.x / warpgroup_threads;
  if (role == 0) {
    lower_registers<copy_registers>();
    if (threadIdx.x == 0)
      run_loads<D>(block, {&arguments.query, &arguments.d_output, &arguments.key, &arguments.value}, true);
    else if (threadIdx.x == 32)
      run_stores<D>(block, {&arguments.d_key, &arguments.d_value}, {2, 3}, true);
  } else if (role == 1) {
    raise_registers<output_registers<D>>();
    run_key_value_outputs<Parts, D, feature, documents_present>(arguments, block);
  } else {
    raise_registers<state_registers<D>>();
    StateRole<Parts, D, feature, documents_present, true, true>(arguments.sweep, block, role - 2).run();
  }
}

}  // namespace

void launch_backward_query(const BackwardQueryArguments& arguments, const SweepShape& shape, cudaStream_t stream) {
  with_kind(shape, arguments.sweep, [&]<int D, Feature feature, bool documents>() {
    launch_sweep(backward_query_kernel<D, feature, documents, ConstantDecay>, block_threads<D>, QueryShared<D>::bytes,
                 shape.grid, stream, arguments);
  });
}

void launch_backward_key_value(const BackwardKeyValueArguments& arguments, const SweepShape& shape,
                               cudaStream_t stream) {
  with_kind(shape, arguments.sweep, [&]<int D, Feature feature, bool documents>() {
    launch_sweep(backward_key_value_kernel<D, feature, documents, ConstantDecay>, block_threads<D>,
                 KeyValueShared<D>::bytes, shape.grid, stream, arguments);
  });
}

}  // namespace fulmen::cuda::hopper
