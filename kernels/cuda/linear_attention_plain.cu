// Plain linear attention on a GPU (Lightning Attention-2, arXiv 2401.04658, algorithms 1 and 2): matrix products of all
// tiles at once in cuBLAS. Between them stand the mask over a tile's scores and the scan over a sequence's states.
#include "kernels/cuda/linear_attention_plain.h"

#include <algorithm>

#include "framework/cuda_check.h"
#include "kernels/cuda/batched_product.h"
#include "kernels/cuda/linear_attention_states.h"
#include "kernels/cuda/linear_attention_tiles.cuh"

namespace fulmen::cuda {
namespace {

// Sequences are taken in groups whose tiles stay below this number; a single sequence is the least.
constexpr std::int64_t most_scratch_bytes = std::int64_t{1} << 30;

constexpr int mask_threads = 256, scan_threads = 256;
constexpr int scores_per_tile = tile_tokens * tile_tokens;

// scores[t, s] *= decay^(t - s) for s <= t of the same document, and 0 elsewhere; [tiles, tile_tokens, tile_tokens].
template <class A>
__global__ void mask_scores_kernel(AttentionTiles tiles, A* scores) {
  __shared__ A powers[tile_tokens];
  __shared__ int begins[tile_tokens];  // the first token of the tile that each token sees
  const TilePlace place = place_of(tiles, blockIdx.x);
  if (threadIdx.x < tile_tokens) {
    const int t = static_cast<int>(threadIdx.x);
    powers[t] = decay_power<A>(tiles.slope[place.head], t);
    const std::int64_t begin = t < place.tokens ? document_begin(tiles, place, t) - place.first : tile_tokens;
    begins[t] = begin > 0 ? static_cast<int>(begin) : 0;
  }
  __syncthreads();
  A* const own = scores + std::int64_t{blockIdx.x} * scores_per_tile;
#pragma unroll 4
  for (int i = threadIdx.x; i < scores_per_tile; i += mask_threads) {
    const int t = i / tile_tokens, s = i % tile_tokens;
    own[i] = s <= t && s >= begins[t] ? own[i] * powers[t - s] : A(0);
  }
}

// Each tile's sum for the state becomes the state that it starts from. Backwards, its term of the state's adjoint
// becomes the adjoint after it. states [tiles, elements] in place; from, to [batch * heads, elements], or null.
template <class A>
__global__ void scan_states_kernel(AttentionTiles tiles, std::int64_t elements, unsigned blocks_per_sequence,
                                   bool backwards, const A* from, A* states, A* to) {
  const std::int64_t sequence = blockIdx.x / blocks_per_sequence;
  const std::int64_t element = std::int64_t{blockIdx.x % blocks_per_sequence} * scan_threads + threadIdx.x;
  if (element >= elements) return;
  const std::int64_t outside = (tiles.first_sequence + sequence) * elements + element;
  TilePlace place = place_of(tiles, static_cast<unsigned>(sequence * tiles.chunks));
  const double slope = tiles.slope[place.head];
  const A whole_tile = decay_power<A>(slope, tile_tokens);
  A carry = from != nullptr ? from[outside] : A(0);
  A* const own = states + sequence * tiles.chunks * elements + element;
  constexpr int ahead = 8;  // independent loads in flight
  for (std::int64_t i = 0; i < tiles.chunks; i += ahead) {
    A added[ahead];
#pragma unroll
    for (int k = 0; k < ahead; ++k)
      added[k] = i + k < tiles.chunks ? own[(backwards ? tiles.chunks - 1 - i - k : i + k) * elements] : A(0);
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      if (i + k >= tiles.chunks) break;
      const std::int64_t chunk = backwards ? tiles.chunks - 1 - i - k : i + k;
      place.move_to(tiles, chunk);
      own[chunk * elements] = carry;
      const A decay = place.tokens == tile_tokens ? whole_tile : decay_power<A>(slope, place.tokens);
      carry = reached_by_state(tiles, place, place.tokens - 1) ? decay * carry + added[k] : added[k];
    }
  }
  if (to != nullptr) to[outside] = carry;
}

template <class A>
void mask_scores(const Execution& execution, const AttentionTiles& tiles, A* scores) {
  mask_scores_kernel<<<static_cast<unsigned>(tiles.count()), mask_threads, 0,
                       static_cast<cudaStream_t>(execution.stream.handle)>>>(tiles, scores);
  FULMEN_CUDA_CHECK_LAUNCH();
}

template <class A>
void scan_states(const Execution& execution, const AttentionTiles& tiles, bool backwards, const Tensor& from, A* states,
                 const Tensor& to) {
  const std::int64_t elements = std::int64_t{tiles.state_width} * tiles.value_width;
  const auto blocks = static_cast<unsigned>((elements + scan_threads - 1) / scan_threads);
  scan_states_kernel<<<static_cast<unsigned>(tiles.sequences * blocks), scan_threads, 0,
                       static_cast<cudaStream_t>(execution.stream.handle)>>>(
      tiles, elements, blocks, backwards, from ? from.as<A>() : nullptr, states, to ? to.as<A>() : nullptr);
  FULMEN_CUDA_CHECK_LAUNCH();
}

AttentionTiles describe_tiles(const LinearAttentionInputs& inputs) {
  AttentionTiles tiles{};
  tiles.batch = inputs.query.size(0), tiles.length = inputs.query.size(1), tiles.heads = inputs.query.size(2);
  tiles.key_width = static_cast<int>(inputs.query.size(3));
  tiles.state_width = inputs.theta ? 2 * tiles.key_width : tiles.key_width;
  tiles.value_width = static_cast<int>(inputs.value.size(3));
  tiles.chunks = (tiles.length + tile_tokens - 1) / tile_tokens;
  tiles.slope = inputs.slope.as<double>();
  return tiles;
}

// Where each matrix of a group's tiles begins, in one piece of scratch.
template <class A>
class Matrices {
 public:
  // Elements per tile, in the order of the pointers taken.
  Matrices(const Execution& execution, std::int64_t tiles, std::int64_t elements_per_tile)
      : next_(execution.scratch->take(dtype_of<A>, {tiles * elements_per_tile}).template as<A>()), tiles_(tiles) {}

  A* take(std::int64_t elements) {
    A* const result = next_;
    next_ += tiles_ * elements;
    return result;
  }

 private:
  A* next_;
  std::int64_t tiles_;
};

// Sequences of a group: as many as the scratch holds, shared out evenly.
std::int64_t sequences_per_group(const AttentionTiles& tiles, std::int64_t bytes_per_tile) {
  const std::int64_t sequences = tiles.batch * tiles.heads;
  const std::int64_t most = std::max<std::int64_t>(1, most_scratch_bytes / (tiles.chunks * bytes_per_tile));
  const std::int64_t groups = (sequences + most - 1) / most;
  return (sequences + groups - 1) / groups;
}

// Calls f(tiles) for each group.
template <class F>
void for_each_group(AttentionTiles tiles, std::int64_t most, F&& f) {
  const std::int64_t sequences = tiles.batch * tiles.heads;
  for (std::int64_t first = 0; first < sequences; first += most) {
    tiles.first_sequence = first;
    tiles.sequences = std::min(most, sequences - first);
    f(tiles);
  }
}

// Per tile: O = diag(decay^1 ... decay^m) Q S + ((Q K^T) .* M) V, S being the state before it.
template <class A>
void forward(const Execution& execution, AttentionTiles tiles, const LinearAttentionInputs& inputs,
             const LinearAttentionOutputs& outputs) {
  const std::int64_t keys = std::int64_t{tile_tokens} * tiles.state_width;
  const std::int64_t values = std::int64_t{tile_tokens} * tiles.value_width;
  const std::int64_t state = std::int64_t{tiles.state_width} * tiles.value_width;
  const std::int64_t per_tile = 2 * keys + 3 * values + scores_per_tile + state;
  const std::int64_t most = sequences_per_group(tiles, per_tile * static_cast<std::int64_t>(sizeof(A)));
  Matrices<A> matrices(execution, most * tiles.chunks, per_tile);
  A *const query = matrices.take(keys), *const key = matrices.take(keys);
  A *const value = matrices.take(values), *const weighted_value = matrices.take(values);
  A *const output = matrices.take(values), *const from_state = weighted_value;  // the latter needed no more by then
  A *const scores = matrices.take(scores_per_tile), *const states = matrices.take(state);

  const BatchedMatrix<A> q{query, tile_tokens, tiles.state_width}, k{key, tile_tokens, tiles.state_width};
  const BatchedMatrix<A> v{value, tile_tokens, tiles.value_width}, b_v{weighted_value, tile_tokens, tiles.value_width};
  const BatchedMatrix<A> p{scores, tile_tokens, tile_tokens}, s{states, tiles.state_width, tiles.value_width};
  const BatchedProducts products(execution);
  for_each_group(tiles, most, [&](const AttentionTiles& group) {
    const std::int64_t count = group.count();
    load_query_key(execution, group, inputs, query, key);
    load_value(execution, group, inputs.value, inputs.value_activation, TokenWeight::to_end, value, weighted_value);
    products.multiply(q, k.transpose(), scores, count);
    mask_scores(execution, group, scores);
    products.multiply(p, v, output, count);
    products.multiply(k.transpose(), b_v, states, count);
    scan_states(execution, group, false, inputs.initial_state, states, outputs.final_state);
    products.multiply(q, s, from_state, count);
    store_output<A>(execution, group, from_state, output, outputs);
  });
}

// Per tile, with P = (Q K^T) .* M, dP = (dO V^T) .* M, S the state before it, dS the adjoint of the state after it,
// a = diag(decay^1 ... decay^m) and b = diag(decay^(m-1) ... decay^0):
//   dQ = a dO S^T + dP K,   dK = b V dS^T + dP^T Q,   dV = b K dS + P^T dO
template <class A>
void backward(const Execution& execution, AttentionTiles tiles, const LinearAttentionInputs& inputs,
              const LinearAttentionGradients& gradients) {
  const std::int64_t keys = std::int64_t{tile_tokens} * tiles.state_width;
  const std::int64_t values = std::int64_t{tile_tokens} * tiles.value_width;
  const std::int64_t state = std::int64_t{tiles.state_width} * tiles.value_width;
  const std::int64_t per_tile = 3 * keys + 4 * values + 2 * scores_per_tile + 2 * state;
  const std::int64_t most = sequences_per_group(tiles, per_tile * static_cast<std::int64_t>(sizeof(A)));
  Matrices<A> matrices(execution, most * tiles.chunks, per_tile);
  A *const query = matrices.take(keys), *const key = matrices.take(keys), *const d_query = matrices.take(keys);
  A *const value = matrices.take(values), *const weighted_value = matrices.take(values);
  A *const d_output = matrices.take(values), *const weighted_d_output = matrices.take(values);
  A *const scores = matrices.take(scores_per_tile), *const d_scores = matrices.take(scores_per_tile);
  A *const states = matrices.take(state), *const adjoints = matrices.take(state);
  // Each takes the place of a factor that is needed no more by then.
  A *const d_value = value, *const d_value_from_state = weighted_d_output, *const d_key = key;
  double* theta_shares = nullptr;
  if (inputs.theta)
    theta_shares = execution.scratch->take(DType::fp64, {tiles.batch * tiles.heads, tiles.chunks, tiles.key_width})
                       .template as<double>();

  const BatchedMatrix<A> q{query, tile_tokens, tiles.state_width}, k{key, tile_tokens, tiles.state_width};
  const BatchedMatrix<A> v{value, tile_tokens, tiles.value_width}, b_v{weighted_value, tile_tokens, tiles.value_width};
  const BatchedMatrix<A> d_o{d_output, tile_tokens, tiles.value_width};
  const BatchedMatrix<A> a_d_o{weighted_d_output, tile_tokens, tiles.value_width};
  const BatchedMatrix<A> p{scores, tile_tokens, tile_tokens}, d_p{d_scores, tile_tokens, tile_tokens};
  const BatchedMatrix<A> s{states, tiles.state_width, tiles.value_width};
  const BatchedMatrix<A> d_s{adjoints, tiles.state_width, tiles.value_width};
  const BatchedProducts products(execution);
  for_each_group(tiles, most, [&](const AttentionTiles& group) {
    const std::int64_t count = group.count();
    load_query_key(execution, group, inputs, query, key);
    load_value(execution, group, inputs.value, inputs.value_activation, TokenWeight::to_end, value, weighted_value);
    load_value(execution, group, gradients.d_output, Activation::none, TokenWeight::from_start, d_output,
               weighted_d_output);
    products.multiply(q, k.transpose(), scores, count);
    mask_scores(execution, group, scores);
    products.multiply(d_o, v.transpose(), d_scores, count);
    mask_scores(execution, group, d_scores);
    products.multiply(k.transpose(), b_v, states, count);
    scan_states(execution, group, false, inputs.initial_state, states, Tensor());
    products.multiply(q.transpose(), a_d_o, adjoints, count);
    scan_states(execution, group, true, gradients.d_final_state, adjoints, gradients.d_initial_state);

    products.multiply(a_d_o, s.transpose(), d_query, count);
    products.multiply(d_p, k, d_query, count, true);
    products.multiply(p.transpose(), d_o, d_value, count);
    products.multiply(k, d_s, d_value_from_state, count);
    products.multiply(b_v, d_s.transpose(), d_key, count);
    products.multiply(d_p.transpose(), q, d_key, count, true);
    store_value_gradient<A>(execution, group, d_value_from_state, d_value, inputs, gradients.d_value);
    store_query_key_gradients<A>(execution, group, d_query, d_key, inputs, gradients.d_query, gradients.d_key,
                                 theta_shares);
  });
  if (inputs.theta) add_theta_gradients(execution, tiles, theta_shares, gradients.d_theta.as<double>());
}

// As forward, the states alone: what each tile adds, then the scan.
template <class A>
void final_state(const Execution& execution, const AttentionTiles& tiles, const LinearAttentionInputs& inputs,
                 const Tensor& to) {
  const std::int64_t keys = std::int64_t{tile_tokens} * tiles.state_width;
  const std::int64_t values = std::int64_t{tile_tokens} * tiles.value_width;
  const std::int64_t state = std::int64_t{tiles.state_width} * tiles.value_width;
  const std::int64_t per_tile = 2 * keys + 2 * values + state;
  const std::int64_t most = sequences_per_group(tiles, per_tile * static_cast<std::int64_t>(sizeof(A)));
  Matrices<A> matrices(execution, most * tiles.chunks, per_tile);
  A *const query = matrices.take(keys), *const key = matrices.take(keys);
  A *const value = matrices.take(values), *const weighted_value = matrices.take(values),
           *const states = matrices.take(state);
  const BatchedMatrix<A> k{key, tile_tokens, tiles.state_width}, b_v{weighted_value, tile_tokens, tiles.value_width};
  const BatchedProducts products(execution);
  for_each_group(tiles, most, [&](const AttentionTiles& group) {
    load_query_key(execution, group, inputs, query, key);
    load_value(execution, group, inputs.value, inputs.value_activation, TokenWeight::to_end, value, weighted_value);
    products.multiply(k.transpose(), b_v, states, group.count());
    scan_states(execution, group, false, Tensor(), states, to);
  });
}

// As backward, the adjoints alone.
template <class A>
void initial_state_gradient(const Execution& execution, const AttentionTiles& tiles,
                            const LinearAttentionInputs& inputs, const Tensor& d_output, const Tensor& to) {
  const std::int64_t keys = std::int64_t{tile_tokens} * tiles.state_width;
  const std::int64_t values = std::int64_t{tile_tokens} * tiles.value_width;
  const std::int64_t state = std::int64_t{tiles.state_width} * tiles.value_width;
  const std::int64_t per_tile = 2 * keys + 2 * values + state;
  const std::int64_t most = sequences_per_group(tiles, per_tile * static_cast<std::int64_t>(sizeof(A)));
  Matrices<A> matrices(execution, most * tiles.chunks, per_tile);
  A *const query = matrices.take(keys), *const key = matrices.take(keys);
  A *const rows = matrices.take(values), *const weighted = matrices.take(values),
           *const adjoints = matrices.take(state);
  const BatchedMatrix<A> q{query, tile_tokens, tiles.state_width}, a_d_o{weighted, tile_tokens, tiles.value_width};
  const BatchedProducts products(execution);
  for_each_group(tiles, most, [&](const AttentionTiles& group) {
    load_query_key(execution, group, inputs, query, key);
    load_value(execution, group, d_output, Activation::none, TokenWeight::from_start, rows, weighted);
    products.multiply(q.transpose(), a_d_o, adjoints, group.count());
    scan_states(execution, group, true, Tensor(), adjoints, to);
  });
}

template <class A>
void set_zero(const Execution& execution, A* memory, std::int64_t elements) {
  FULMEN_CUDA_CHECK(cudaMemsetAsync(memory, 0, static_cast<std::size_t>(elements) * sizeof(A),
                                    static_cast<cudaStream_t>(execution.stream.handle)));
}

// Per tile: O += diag(decay^1 ... decay^m) Q S, S being what is left of the initial state before it.
template <class A>
void add_initial_state(const Execution& execution, const AttentionTiles& tiles, const LinearAttentionInputs& inputs,
                       const LinearAttentionOutputs& outputs) {
  const std::int64_t keys = std::int64_t{tile_tokens} * tiles.state_width;
  const std::int64_t values = std::int64_t{tile_tokens} * tiles.value_width;
  const std::int64_t state = std::int64_t{tiles.state_width} * tiles.value_width;
  const std::int64_t per_tile = 2 * keys + 2 * values + state;
  const std::int64_t most = sequences_per_group(tiles, per_tile * static_cast<std::int64_t>(sizeof(A)));
  Matrices<A> matrices(execution, most * tiles.chunks, per_tile);
  A *const query = matrices.take(keys), *const key = matrices.take(keys);
  A *const output = matrices.take(values), *const from_state = matrices.take(values),
           *const states = matrices.take(state);
  const BatchedMatrix<A> q{query, tile_tokens, tiles.state_width}, s{states, tiles.state_width, tiles.value_width};
  const BatchedProducts products(execution);
  for_each_group(tiles, most, [&](const AttentionTiles& group) {
    load_query_key(execution, group, inputs, query, key);
    load_value(execution, group, outputs.output, Activation::none, TokenWeight::from_start, output, from_state);
    set_zero(execution, states, group.count() * state);
    scan_states(execution, group, false, inputs.initial_state, states, Tensor());
    products.multiply(q, s, from_state, group.count());
    store_output<A>(execution, group, from_state, output, outputs);
  });
}

// Per tile: dK = b V dS^T and dV = b K dS, dS being what is left of the final state's gradient behind it.
template <class A>
void final_state_gradients(const Execution& execution, const AttentionTiles& tiles, const LinearAttentionInputs& inputs,
                           const LinearAttentionGradients& gradients) {
  const std::int64_t keys = std::int64_t{tile_tokens} * tiles.state_width;
  const std::int64_t values = std::int64_t{tile_tokens} * tiles.value_width;
  const std::int64_t state = std::int64_t{tiles.state_width} * tiles.value_width;
  const std::int64_t per_tile = 3 * keys + 4 * values + state;
  const std::int64_t most = sequences_per_group(tiles, per_tile * static_cast<std::int64_t>(sizeof(A)));
  Matrices<A> matrices(execution, most * tiles.chunks, per_tile);
  A *const query = matrices.take(keys), *const key = matrices.take(keys), *const d_key = matrices.take(keys);
  A *const value = matrices.take(values), *const weighted_value = matrices.take(values);
  A *const from_state = matrices.take(values), *const from_tile = matrices.take(values);
  A* const adjoints = matrices.take(state);
  A* const d_query = query;  // of no query, once the features have been read
  double* theta_shares = nullptr;
  if (inputs.theta)
    theta_shares = execution.scratch->take(DType::fp64, {tiles.batch * tiles.heads, tiles.chunks, tiles.key_width})
                       .template as<double>();
  const BatchedMatrix<A> k{key, tile_tokens, tiles.state_width}, b_v{weighted_value, tile_tokens, tiles.value_width};
  const BatchedMatrix<A> d_s{adjoints, tiles.state_width, tiles.value_width};
  const BatchedProducts products(execution);
  for_each_group(tiles, most, [&](const AttentionTiles& group) {
    const std::int64_t count = group.count();
    load_query_key(execution, group, inputs, query, key);
    load_value(execution, group, inputs.value, inputs.value_activation, TokenWeight::to_end, value, weighted_value);
    set_zero(execution, adjoints, count * state);
    scan_states(execution, group, true, gradients.d_final_state, adjoints, Tensor());
    products.multiply(k, d_s, from_state, count);
    products.multiply(b_v, d_s.transpose(), d_key, count);
    set_zero(execution, from_tile, count * values);
    set_zero(execution, d_query, count * keys);
    store_value_gradient<A>(execution, group, from_state, from_tile, inputs, gradients.d_value);
    store_query_key_gradients<A>(execution, group, d_query, d_key, inputs, gradients.d_query, gradients.d_key,
                                 theta_shares);
  });
  if (inputs.theta) add_theta_gradients(execution, tiles, theta_shares, gradients.d_theta.as<double>());
}

// The document begins, then f(A{}, tiles) with the accumulation type, within a frame of scratch.
template <class F>
void run_on_tiles(const Execution& execution, const LinearAttentionInputs& inputs, F&& f) {
  Arena::Frame frame(*execution.scratch);
  AttentionTiles tiles = describe_tiles(inputs);
  auto* const begins = execution.scratch->take(DType::int64, {tiles.batch * tiles.length}).as<std::int64_t>();
  document_begins(execution, inputs.segments, tiles.batch, tiles.length, begins);
  tiles.document_begins = begins;
  dispatch_fp32_fp64(accumulation_dtype(inputs.query.dtype()), [&]<class A>(A) { f(A{}, tiles); });
}

}  // namespace

void linear_attention_forward_plain(const Execution& execution, const LinearAttentionInputs& inputs,
                                    const LinearAttentionOutputs& outputs) {
  run_on_tiles(execution, inputs,
               [&]<class A>(A, const AttentionTiles& tiles) { forward<A>(execution, tiles, inputs, outputs); });
}

void linear_attention_backward_plain(const Execution& execution, const LinearAttentionInputs& inputs,
                                     const LinearAttentionGradients& gradients) {
  run_on_tiles(execution, inputs,
               [&]<class A>(A, const AttentionTiles& tiles) { backward<A>(execution, tiles, inputs, gradients); });
}

void linear_attention_final_state_plain(const Execution& execution, const LinearAttentionInputs& inputs,
                                        const Tensor& to) {
  LinearAttentionInputs keys = inputs;
  keys.query = inputs.key;  // in place of a query that is not read
  run_on_tiles(execution, keys,
               [&]<class A>(A, const AttentionTiles& tiles) { final_state<A>(execution, tiles, keys, to); });
}

void linear_attention_initial_state_gradient_plain(const Execution& execution, const LinearAttentionInputs& inputs,
                                                   const Tensor& d_output, const Tensor& to) {
  LinearAttentionInputs queries = inputs;
  queries.key = inputs.query;
  run_on_tiles(execution, queries, [&]<class A>(A, const AttentionTiles& tiles) {
    initial_state_gradient<A>(execution, tiles, queries, d_output, to);
  });
}

void linear_attention_add_initial_state_plain(const Execution& execution, const LinearAttentionInputs& inputs,
                                              const LinearAttentionOutputs& outputs) {
  run_on_tiles(execution, inputs, [&]<class A>(A, const AttentionTiles& tiles) {
    add_initial_state<A>(execution, tiles, inputs, outputs);
  });
}

void linear_attention_final_state_gradients_plain(const Execution& execution, const LinearAttentionInputs& inputs,
                                                  const LinearAttentionGradients& gradients) {
  const Arena::Frame frame(*execution.scratch);
  LinearAttentionInputs keys = inputs;
  keys.query = inputs.key;
  LinearAttentionGradients all = gradients;
  all.d_query = execution.scratch->take(inputs.key.dtype(), inputs.key.shape());  // zero, and used no further
  run_on_tiles(execution, keys,
               [&]<class A>(A, const AttentionTiles& tiles) { final_state_gradients<A>(execution, tiles, keys, all); });
}

}  // namespace fulmen::cuda
