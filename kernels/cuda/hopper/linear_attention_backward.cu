// The backward sweeps on Hopper (Lightning Attention-2, arXiv 2401.04658, algorithm 2), per chunk of 64 tokens:
//   forward in the sequence, with the states S of the forward pass made again:
//     dq = [(do v^T) .* M] k + diag(decay^(j + 1)) do S^T
//   in reverse, with dS, the gradient of the state after the chunk:
//     dv = [(q k^T) .* M]^T do + diag(decay^(m - 1 - i)) k dS,   dk = [(do v^T) .* M]^T q + diag(decay^(m - 1 - i)) v dS^T
// q and k are the activated ones; their gradients pass through the activation on the way out.
#include "kernels/cuda/hopper/linear_attention_sweeps.cuh"

namespace fulmen::cuda::hopper {

namespace {

// act'(x) of a tile of raw inputs, as products lay out their results.
template <int D, Activation activation>
__device__ __forceinline__ void load_derivatives(std::uint32_t tile, const ThreadPlace& at, float (&factors)[D / 2]) {
  if constexpr (activation != Activation::none) {
#pragma unroll
    for (int g = 0; g < D / 16; ++g) {
      std::uint32_t raw[4];
      load_matrices(element_address(tile, panel_bytes, 16 * at.warp + at.lane % 16, 2 * g + at.lane / 16), raw);
#pragma unroll
      for (int r = 0; r < 4; ++r)
        derivatives<activation>(low_half(raw[r]), high_half(raw[r]), factors[8 * g + 2 * r], factors[8 * g + 2 * r + 1]);
    }
  }
}

template <Activation activation, int n>
__device__ __forceinline__ void multiply(float (&results)[n], const float (&factors)[n]) {
  if constexpr (activation != Activation::none) {
#pragma unroll
    for (int j = 0; j < n; ++j) results[j] *= factors[j];
  }
}

// Tiles of a stage: key, value, d_output, query. d_query takes the query's place.
template <int D>
using QueryShared = SharedLayout<D, 4, D == 128 ? 3 : 6>;

template <int D, Activation activation, bool documents_present, class Decay>
__device__ __forceinline__ void run_query_outputs(const BackwardQueryArguments& arguments, const Place& place, const Decay& decay,
                                                  std::uint32_t stage_memory, std::uint32_t state_memory,
                                                  Barriers<QueryShared<D>::stages>& barriers) {
  constexpr int tiles = QueryShared<D>::tiles, state_panel = D * panel_columns * 2;
  const ThreadPlace at;
  Ring<QueryShared<D>::stages> ring;
  const int chunks = place.chunks();
  for (int i = 0; i < chunks; ++i, ring.advance()) {
    const int begin = place.begin + i * chunk_tokens;
    const ChunkDocuments<documents_present> documents(arguments.sweep, place, begin, min(chunk_tokens, place.end - begin));
    const std::uint32_t key = stage_memory + ring.index * tiles * tile_bytes<D>;
    const std::uint32_t value = key + tile_bytes<D>, d_output = value + tile_bytes<D>, query = d_output + tile_bytes<D>;

    barrier_wait(&barriers.loaded[ring.index], ring.parity);
    float scores[32];
    products_begin();
#pragma unroll
    for (int k = 0; k < D / 16; ++k)
      product<Major::summed>(scores, along_rows(d_output, panel_bytes, k), along_rows(value, panel_bytes, k), k > 0);
    products_commit();

    barrier_wait(&barriers.published, i & 1);
    float d_query[D / 2];
    products_begin();
#pragma unroll
    for (int k = 0; k < D / 16; ++k)
      product<Major::summed>(d_query, along_rows(d_output, panel_bytes, k), along_rows(state_memory, state_panel, k), k > 0);
    products_commit();

    products_wait<1>();
    pin(scores);
    std::uint32_t p[4][4];
    mask_scores<false>(scores, decay, documents, at, p);
    products_wait<0>();
    pin(d_query);
    warp_arrive(&barriers.consumed);
    scale_rows(d_query, documents.reads_state(at.row) ? decay.from_start(at.row) : 0.0f,
               documents.reads_state(at.row + 8) ? decay.from_start(at.row + 8) : 0.0f);
    pin(d_query);
    if constexpr (activation != Activation::none) barrier_wait(&barriers.activated[ring.index], ring.parity);
    products_begin();
#pragma unroll
    for (int k = 0; k < 4; ++k) product<Major::outer>(d_query, p[k], along_columns(key, panel_bytes, k), true);
    products_commit();
    float factors[D / 2];
    load_derivatives<D, activation>(query, at, factors);
    products_wait<0>();
    pin(d_query);
    hold(p);
    multiply<activation>(d_query, factors);
    __syncwarp();
    store_results<D>(d_query, query, at);
    warp_arrive<true>(&barriers.finished[ring.index]);
  }
}

template <int D, Activation activation, bool documents_present, class Decay>
__global__ void __launch_bounds__(block_threads<D>, 1)
    backward_query_kernel(const __grid_constant__ BackwardQueryArguments arguments) {
  using Shared = QueryShared<D>;
  char* const memory = aligned_shared_memory();
  const std::uint32_t stage_memory = shared_address(memory), state_memory = stage_memory + Shared::state_offset;
  float* const powers = reinterpret_cast<float*>(memory + Shared::powers_offset);
  auto& barriers = *reinterpret_cast<Barriers<Shared::stages>*>(memory + Shared::barriers_offset);
  const Place place(arguments.sweep);
  if (threadIdx.x == 0) barriers.initialize(4 * state_groups<D>, 1);
  Decay::prepare(powers, arguments.sweep.slope[place.head]);
  __syncthreads();
  const Decay decay{powers};

  const int role = threadIdx.x / warpgroup_threads;
  if (role == 0) {
    lower_registers<copy_registers>();
    if (threadIdx.x == 0) {
      const CUtensorMap* const maps[4] = {&arguments.key, &arguments.value, &arguments.d_output, &arguments.query};
      run_loads<D, 4, Shared::stages>(maps, place, false, memory, barriers);
    } else if (threadIdx.x == 32) {
      run_stores<D, 4, Shared::stages>({&arguments.d_query}, {3}, place, false, memory, barriers);
    }
  } else if (role == 1) {
    raise_registers<output_registers<D>>();
    run_query_outputs<D, activation, documents_present>(arguments, place, decay, stage_memory, state_memory, barriers);
  } else {
    raise_registers<state_registers<D>>();
    StateRole<D, 4, Shared::stages, activation, documents_present, false, true, Decay>(
        arguments.sweep, place, decay, role - 2, stage_memory, state_memory, barriers).run();
  }
}

// Tiles of a stage: query, d_output, key, value. d_key and d_value take the places of key and value.
template <int D>
using KeyValueShared = SharedLayout<D, 4, D == 128 ? 3 : 6>;

template <int D, Activation activation, bool documents_present, class Decay>
__device__ __forceinline__ void run_key_value_outputs(const BackwardKeyValueArguments& arguments, const Place& place,
                                                      const Decay& decay, std::uint32_t stage_memory,
                                                      std::uint32_t state_memory,
                                                      Barriers<KeyValueShared<D>::stages>& barriers) {
  constexpr int tiles = KeyValueShared<D>::tiles, state_panel = D * panel_columns * 2;
  const ThreadPlace at;
  Ring<KeyValueShared<D>::stages> ring;
  const int chunks = place.chunks();
  for (int i = 0; i < chunks; ++i, ring.advance()) {
    const int begin = place.begin + (chunks - 1 - i) * chunk_tokens;
    const int tokens = min(chunk_tokens, place.end - begin);
    const ChunkDocuments<documents_present> documents(arguments.sweep, place, begin, tokens);
    const std::uint32_t query = stage_memory + ring.index * tiles * tile_bytes<D>;
    const std::uint32_t d_output = query + tile_bytes<D>, key = d_output + tile_bytes<D>, value = key + tile_bytes<D>;
    const float first = documents.joins_state(at.row) ? decay.to_end(at.row, tokens) : 0.0f;
    const float second = documents.joins_state(at.row + 8) ? decay.to_end(at.row + 8, tokens) : 0.0f;

    barrier_wait(&barriers.loaded[ring.index], ring.parity);
    std::uint32_t p[4][4], d_p[4][4];
    float d_value[D / 2], d_key[D / 2];
    {
      float scores[32], d_scores[32];
      products_begin();
#pragma unroll
      for (int k = 0; k < D / 16; ++k)
        product<Major::summed>(d_scores, along_rows(value, panel_bytes, k), along_rows(d_output, panel_bytes, k), k > 0);
      products_commit();

      Fragments<D> k_rows;
      load_fragments<D, activation>(key, at, k_rows);
      if constexpr (activation != Activation::none) barrier_wait(&barriers.activated[ring.index], ring.parity);
      products_begin();
#pragma unroll
      for (int k = 0; k < D / 16; ++k) product<Major::summed>(scores, k_rows.step[k], along_rows(query, panel_bytes, k), k > 0);
      products_commit();
      barrier_wait(&barriers.published, i & 1);
      products_begin();
#pragma unroll
      for (int k = 0; k < D / 16; ++k)
        product<Major::outer>(d_value, k_rows.step[k], along_columns(state_memory, state_panel, k), k > 0);
      products_commit();
      products_wait<2>();
      pin(d_scores);
      mask_scores<true>(d_scores, decay, documents, at, d_p);
      products_wait<1>();
      pin(scores);
      mask_scores<true>(scores, decay, documents, at, p);
      products_wait<0>();
      pin(d_value);
      hold(k_rows.step);
    }
    scale_rows(d_value, first, second);
    pin(d_value);
    products_begin();
#pragma unroll
    for (int k = 0; k < 4; ++k) product<Major::outer>(d_value, p[k], along_columns(d_output, panel_bytes, k), true);
    products_commit();
#pragma unroll
    for (int k = 0; k < D / 16; ++k)
      product<Major::summed>(d_key, along_rows(value, panel_bytes, k), along_rows(state_memory, state_panel, k), k > 0);
    products_commit();
    products_wait<0>();
    pin(d_value);
    pin(d_key);
    hold(p);
    warp_arrive(&barriers.consumed);
    scale_rows(d_key, first, second);
    pin(d_key);
    products_begin();
#pragma unroll
    for (int k = 0; k < 4; ++k) product<Major::outer>(d_key, d_p[k], along_columns(query, panel_bytes, k), true);
    products_commit();
    if (arguments.add_to != nullptr) add_previous<D>(d_value, arguments.add_to, arguments.add_strides, place, begin, tokens, at);
    named_barrier(1, warpgroup_threads);   // all warps' products have read the value
    store_results<D>(d_value, value, at);
    float factors[D / 2];
    load_derivatives<D, activation>(key, at, factors);
    products_wait<0>();
    pin(d_key);
    hold(d_p);
    multiply<activation>(d_key, factors);
    __syncwarp();
    store_results<D>(d_key, key, at);
    warp_arrive<true>(&barriers.finished[ring.index]);
  }
}

template <int D, Activation activation, bool documents_present, class Decay>
__global__ void __launch_bounds__(block_threads<D>, 1)
    backward_key_value_kernel(const __grid_constant__ BackwardKeyValueArguments arguments) {
  using Shared = KeyValueShared<D>;
  char* const memory = aligned_shared_memory();
  const std::uint32_t stage_memory = shared_address(memory), state_memory = stage_memory + Shared::state_offset;
  float* const powers = reinterpret_cast<float*>(memory + Shared::powers_offset);
  auto& barriers = *reinterpret_cast<Barriers<Shared::stages>*>(memory + Shared::barriers_offset);
  const Place place(arguments.sweep);
  if (threadIdx.x == 0) barriers.initialize(4 * state_groups<D>, 1);
  Decay::prepare(powers, arguments.sweep.slope[place.head]);
  __syncthreads();
  const Decay decay{powers};

  const int role = threadIdx.x / warpgroup_threads;
  if (role == 0) {
    lower_registers<copy_registers>();
    if (threadIdx.x == 0) {
      const CUtensorMap* const maps[4] = {&arguments.query, &arguments.d_output, &arguments.key, &arguments.value};
      run_loads<D, 4, Shared::stages>(maps, place, true, memory, barriers);
    } else if (threadIdx.x == 32) {
      run_stores<D, 4, Shared::stages>({&arguments.d_key, &arguments.d_value}, {2, 3}, place, true, memory, barriers);
    }
  } else if (role == 1) {
    raise_registers<output_registers<D>>();
    run_key_value_outputs<D, activation, documents_present>(arguments, place, decay, stage_memory, state_memory, barriers);
  } else {
    raise_registers<state_registers<D>>();
    StateRole<D, 4, Shared::stages, activation, documents_present, true, true, Decay>(
        arguments.sweep, place, decay, role - 2, stage_memory, state_memory, barriers).run();
  }
}

}  // namespace

void launch_backward_query(const BackwardQueryArguments& arguments, const SweepShape& shape, cudaStream_t stream) {
  with_kind(shape, arguments.sweep, [&]<int D, Activation activation, bool documents>() {
    launch_sweep(backward_query_kernel<D, activation, documents, ConstantDecay>, block_threads<D>, QueryShared<D>::bytes, shape.grid,
                 stream, arguments);
  });
}

void launch_backward_key_value(const BackwardKeyValueArguments& arguments, const SweepShape& shape, cudaStream_t stream) {
  with_kind(shape, arguments.sweep, [&]<int D, Activation activation, bool documents>() {
    launch_sweep(backward_key_value_kernel<D, activation, documents, ConstantDecay>, block_threads<D>, KeyValueShared<D>::bytes,
                 shape.grid, stream, arguments);
  });
}

}  // namespace fulmen::cuda::hopper
