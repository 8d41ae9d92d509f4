// Between strided tensors and the tiles of plain linear attention. A block has 32 columns of a tile and 8 of its tokens
// at a time.
#include "kernels/cuda/linear_attention_features.h"

#include "framework/cuda_check.h"
#include "kernels/cuda/device_reduce.cuh"
#include "kernels/cuda/linear_attention_tiles.cuh"

namespace fulmen::cuda {
namespace {

constexpr int block_columns = 32, block_tokens = 8;

dim3 block_of_threads() { return dim3(block_columns, block_tokens); }

dim3 blocks_of(const AttentionTiles& tiles, int width) {
  return dim3(static_cast<unsigned>(tiles.count()), static_cast<unsigned>((width + block_columns - 1) / block_columns));
}

cudaStream_t stream_of(const Execution& execution) { return static_cast<cudaStream_t>(execution.stream.handle); }

// The weight of each token of the tile, in shared memory. Every thread of the block calls it.
template <class A>
__device__ void token_weights(const AttentionTiles& tiles, const TilePlace& place, TokenWeight weight, A* weights) {
  const int t = static_cast<int>(threadIdx.y * block_columns + threadIdx.x);
  if (t < tile_tokens) {
    A result = 0;
    if (t < place.tokens) {
      const double slope = tiles.slope[place.head];
      const int last = place.tokens - 1;
      if (weight == TokenWeight::from_start) {
        if (reached_by_state(tiles, place, t)) result = decay_power<A>(slope, t + 1);
      } else if (document_begin(tiles, place, last) <= place.first + t) {
        result = decay_power<A>(slope, last - t);
      }
    }
    weights[t] = result;
  }
  __syncthreads();
}

__global__ void document_begins_kernel(const std::int64_t* segments, std::int64_t count, std::int64_t length,
                                       std::int64_t tokens, std::int64_t* begins) {
  const std::int64_t token = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (token >= tokens) return;
  if (segments == nullptr) {
    begins[token] = 0;
    return;
  }
  // The last of `count` offsets that is not beyond the token; the first is 0.
  std::int64_t low = 0, high = count;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (segments[middle] <= token ? low : high) = middle;
  }
  const std::int64_t begin = segments[low] - token / length * length;
  begins[token] = begin > 0 ? begin : 0;
}

template <class T>
__global__ void load_query_key_kernel(AttentionTiles tiles, HeadsView<const T> query, HeadsView<const T> key,
                                      Activation activation, Rotation rotation, Accumulated<T>* query_features,
                                      Accumulated<T>* key_features) {
  using A = Accumulated<T>;
  const TilePlace place = place_of(tiles, blockIdx.x);
  const int j = blockIdx.y * block_columns + threadIdx.x;
  if (j >= tiles.key_width) return;
  const bool rotated = rotation.theta_data != nullptr;
  const double theta = rotated ? rotation.theta_data[place.head * tiles.key_width + j] : 0.0;
#pragma unroll 4
  for (int t = threadIdx.y; t < tile_tokens; t += block_tokens) {
    const bool inside = t < place.tokens;
    const std::int64_t token = place.first + t;
    A q = 0, k = 0;
    if (inside) {
      q = activated(activation, to_accumulated(query.at(place.row, token, place.head)[j]));
      k = activated(activation, to_accumulated(key.at(place.row, token, place.head)[j]));
    }
    const std::int64_t at = (std::int64_t{blockIdx.x} * tile_tokens + t) * tiles.state_width + j;
    if (!rotated) {
      query_features[at] = q, key_features[at] = k;
      continue;
    }
    SineCosine<A> turn{0, 0};
    if (inside) turn = sine_cosine<A>(rotation.position(place.row, token) * theta);
    query_features[at] = q * turn.cosine, query_features[at + tiles.key_width] = q * turn.sine;
    key_features[at] = k * turn.cosine, key_features[at + tiles.key_width] = k * turn.sine;
  }
}

template <class T>
__global__ void load_value_kernel(AttentionTiles tiles, HeadsView<const T> x, Activation activation, TokenWeight weight,
                                  Accumulated<T>* rows, Accumulated<T>* weighted) {
  using A = Accumulated<T>;
  __shared__ A weights[tile_tokens];
  const TilePlace place = place_of(tiles, blockIdx.x);
  token_weights(tiles, place, weight, weights);
  const int j = blockIdx.y * block_columns + threadIdx.x;
  if (j >= tiles.value_width) return;
#pragma unroll 4
  for (int t = threadIdx.y; t < tile_tokens; t += block_tokens) {
    A value = 0;
    if (t < place.tokens)
      value = activated(activation, to_accumulated(x.at(place.row, place.first + t, place.head)[j]));
    const std::int64_t at = (std::int64_t{blockIdx.x} * tile_tokens + t) * tiles.value_width + j;
    rows[at] = value;
    weighted[at] = value * weights[t];
  }
}

// A warp has a token, so that its squares are summed in a fixed order.
template <class T>
__global__ void store_output_kernel(AttentionTiles tiles, const Accumulated<T>* from_state,
                                    const Accumulated<T>* from_tile, HeadsView<T> output, Accumulated<T>* square_sums) {
  using A = Accumulated<T>;
  __shared__ A weights[tile_tokens];
  const TilePlace place = place_of(tiles, blockIdx.x);
  token_weights(tiles, place, TokenWeight::from_start, weights);
  for (int t = threadIdx.y; t < place.tokens; t += block_tokens) {
    const std::int64_t begin = (std::int64_t{blockIdx.x} * tile_tokens + t) * tiles.value_width;
    const std::int64_t token = place.first + t;
    T* const to = output.at(place.row, token, place.head);
    A squares = 0;
#pragma unroll 4
    for (int j = threadIdx.x; j < tiles.value_width; j += block_columns) {
      const A value = weights[t] * from_state[begin + j] + from_tile[begin + j];
      to[j] = round_to<T>(value);
      squares += value * value;
    }
    if (square_sums == nullptr) continue;
    squares = sum_of_lanes(squares);
    if (threadIdx.x == 0) square_sums[(place.row * tiles.length + token) * tiles.heads + place.head] = squares;
  }
}

template <class T>
__global__ void store_value_gradient_kernel(AttentionTiles tiles, const Accumulated<T>* from_state,
                                            const Accumulated<T>* from_tile, HeadsView<const T> value,
                                            Activation activation, HeadsView<T> d_value) {
  using A = Accumulated<T>;
  __shared__ A weights[tile_tokens];
  const TilePlace place = place_of(tiles, blockIdx.x);
  token_weights(tiles, place, TokenWeight::to_end, weights);
  const int j = blockIdx.y * block_columns + threadIdx.x;
  if (j >= tiles.value_width) return;
#pragma unroll 4
  for (int t = threadIdx.y; t < place.tokens; t += block_tokens) {
    const std::int64_t at = (std::int64_t{blockIdx.x} * tile_tokens + t) * tiles.value_width + j;
    const std::int64_t token = place.first + t;
    A gradient = weights[t] * from_state[at] + from_tile[at];
    if (activation != Activation::none)
      gradient *= activation_derivative(activation, to_accumulated(value.at(place.row, token, place.head)[j]));
    d_value.at(place.row, token, place.head)[j] = round_to<T>(gradient);
  }
}

// The gradient of a query or key at one column of one token, and what it adds to the gradient of the angle.
template <class A>
struct ElementGradient {
  A value;
  double d_angle;
};

template <class A>
__device__ ElementGradient<A> element_gradient(Activation activation, A x, const A* d_features, int key_width,
                                               bool rotated, const SineCosine<A>& turn) {
  A gradient = d_features[0];
  double d_angle = 0.0;
  if (rotated) {
    const A d_cosine = d_features[0], d_sine = d_features[key_width];
    gradient = d_cosine * turn.cosine + d_sine * turn.sine;
    d_angle = static_cast<double>(activated(activation, x)) *
              (static_cast<double>(d_sine) * static_cast<double>(turn.cosine) -
               static_cast<double>(d_cosine) * static_cast<double>(turn.sine));
  }
  return {gradient * activation_derivative(activation, x), d_angle};
}

template <class T>
__global__ void store_query_key_gradients_kernel(AttentionTiles tiles, const Accumulated<T>* d_query_features,
                                                 const Accumulated<T>* d_key_features, HeadsView<const T> query,
                                                 HeadsView<const T> key, Activation activation, Rotation rotation,
                                                 HeadsView<T> d_query, HeadsView<T> d_key, double* theta_shares) {
  using A = Accumulated<T>;
  __shared__ double shares[block_tokens][block_columns];
  const TilePlace place = place_of(tiles, blockIdx.x);
  const int j = blockIdx.y * block_columns + threadIdx.x;
  const bool rotated = rotation.theta_data != nullptr, inside = j < tiles.key_width;
  const double theta = rotated && inside ? rotation.theta_data[place.head * tiles.key_width + j] : 0.0;
  double d_theta = 0.0;
#pragma unroll 2
  for (int t = threadIdx.y; inside && t < place.tokens; t += block_tokens) {
    const std::int64_t token = place.first + t;
    const std::int64_t at = (std::int64_t{blockIdx.x} * tile_tokens + t) * tiles.state_width + j;
    const double position = rotated ? rotation.position(place.row, token) : 0.0;
    SineCosine<A> turn{0, 0};
    if (rotated) turn = sine_cosine<A>(position * theta);
    const ElementGradient<A> of_query =
        element_gradient(activation, to_accumulated(query.at(place.row, token, place.head)[j]), d_query_features + at,
                         tiles.key_width, rotated, turn);
    const ElementGradient<A> of_key =
        element_gradient(activation, to_accumulated(key.at(place.row, token, place.head)[j]), d_key_features + at,
                         tiles.key_width, rotated, turn);
    d_query.at(place.row, token, place.head)[j] = round_to<T>(of_query.value);
    d_key.at(place.row, token, place.head)[j] = round_to<T>(of_key.value);
    d_theta += position * (of_query.d_angle + of_key.d_angle);
  }
  if (!rotated) return;
  shares[threadIdx.y][threadIdx.x] = d_theta;
  __syncthreads();
  if (threadIdx.y != 0 || !inside) return;
  double sum = 0.0;
  for (int y = 0; y < block_tokens; ++y) sum += shares[y][threadIdx.x];
  theta_shares[(tiles.first_sequence * tiles.chunks + blockIdx.x) * tiles.key_width + j] = sum;
}

constexpr int theta_threads = 32;  // that share out the shares of one element

__global__ void add_theta_gradients_kernel(AttentionTiles tiles, const double* theta_shares, double* d_theta) {
  __shared__ double sums[theta_threads][block_columns];
  const std::int64_t head = blockIdx.x;
  const int j = blockIdx.y * block_columns + threadIdx.x;
  double sum = 0.0;
  if (j < tiles.key_width) {
#pragma unroll 4
    for (std::int64_t i = threadIdx.y; i < tiles.batch * tiles.chunks; i += theta_threads) {
      const std::int64_t tile = (i / tiles.chunks * tiles.heads + head) * tiles.chunks + i % tiles.chunks;
      sum += theta_shares[tile * tiles.key_width + j];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || j >= tiles.key_width) return;
  sum = 0.0;
  for (int y = 0; y < theta_threads; ++y) sum += sums[y][threadIdx.x];
  d_theta[head * tiles.key_width + j] += sum;
}

// The dtypes whose sums are kept in A: fp64, or fp32 and bf16.
template <class A, class F>
void dispatch_narrow_dtype(DType dtype, F&& f) {
  dispatch_floating(dtype, [&]<class T>(T) {
    if constexpr (std::is_same_v<Accumulated<T>, A>) return f(T{});
    throw InternalError(fmt::format("tiles of another precision than {} needs", name_of(dtype)));
  });
}

}  // namespace

void document_begins(const Execution& execution, const Tensor& segments, std::int64_t batch, std::int64_t length,
                     std::int64_t* begins) {
  constexpr int threads = 256;
  const std::int64_t tokens = batch * length;
  document_begins_kernel<<<static_cast<unsigned>((tokens + threads - 1) / threads), threads, 0, stream_of(execution)>>>(
      segments ? segments.as<std::int64_t>() : nullptr, segments ? segments.elements() - 1 : 0, length, tokens, begins);
  FULMEN_CUDA_CHECK_LAUNCH();
}

template <class A>
void load_query_key(const Execution& execution, const AttentionTiles& tiles, const LinearAttentionInputs& inputs,
                    A* query, A* key) {
  dispatch_narrow_dtype<A>(inputs.query.dtype(), [&]<class T>(T) {
    load_query_key_kernel<T><<<blocks_of(tiles, tiles.key_width), block_of_threads(), 0, stream_of(execution)>>>(
        tiles, HeadsView<const T>(inputs.query), HeadsView<const T>(inputs.key), inputs.query_key_activation,
        Rotation(inputs.theta, inputs.positions), query, key);
    FULMEN_CUDA_CHECK_LAUNCH();
  });
}

template <class A>
void load_value(const Execution& execution, const AttentionTiles& tiles, const Tensor& x, Activation activation,
                TokenWeight weight, A* rows, A* weighted) {
  dispatch_narrow_dtype<A>(x.dtype(), [&]<class T>(T) {
    load_value_kernel<T><<<blocks_of(tiles, tiles.value_width), block_of_threads(), 0, stream_of(execution)>>>(
        tiles, HeadsView<const T>(x), activation, weight, rows, weighted);
    FULMEN_CUDA_CHECK_LAUNCH();
  });
}

template <class A>
void store_output(const Execution& execution, const AttentionTiles& tiles, const A* from_state, const A* from_tile,
                  const LinearAttentionOutputs& outputs) {
  dispatch_narrow_dtype<A>(outputs.output.dtype(), [&]<class T>(T) {
    store_output_kernel<T><<<blocks_of(tiles, 1), block_of_threads(), 0, stream_of(execution)>>>(
        tiles, from_state, from_tile, HeadsView<T>(outputs.output),
        outputs.square_sums ? outputs.square_sums.as<A>() : nullptr);
    FULMEN_CUDA_CHECK_LAUNCH();
  });
}

template <class A>
void store_value_gradient(const Execution& execution, const AttentionTiles& tiles, const A* from_state,
                          const A* from_tile, const LinearAttentionInputs& inputs, const Tensor& d_value) {
  dispatch_narrow_dtype<A>(d_value.dtype(), [&]<class T>(T) {
    store_value_gradient_kernel<T>
        <<<blocks_of(tiles, tiles.value_width), block_of_threads(), 0, stream_of(execution)>>>(
            tiles, from_state, from_tile, HeadsView<const T>(inputs.value), inputs.value_activation,
            HeadsView<T>(d_value));
    FULMEN_CUDA_CHECK_LAUNCH();
  });
}

template <class A>
void store_query_key_gradients(const Execution& execution, const AttentionTiles& tiles, const A* d_query_features,
                               const A* d_key_features, const LinearAttentionInputs& inputs, const Tensor& d_query,
                               const Tensor& d_key, double* theta_shares) {
  dispatch_narrow_dtype<A>(d_query.dtype(), [&]<class T>(T) {
    store_query_key_gradients_kernel<T>
        <<<blocks_of(tiles, tiles.key_width), block_of_threads(), 0, stream_of(execution)>>>(
            tiles, d_query_features, d_key_features, HeadsView<const T>(inputs.query), HeadsView<const T>(inputs.key),
            inputs.query_key_activation, Rotation(inputs.theta, inputs.positions), HeadsView<T>(d_query),
            HeadsView<T>(d_key), theta_shares);
    FULMEN_CUDA_CHECK_LAUNCH();
  });
}

void add_theta_gradients(const Execution& execution, const AttentionTiles& tiles, const double* theta_shares,
                         double* d_theta) {
  const dim3 blocks(static_cast<unsigned>(tiles.heads),
                    static_cast<unsigned>((tiles.key_width + block_columns - 1) / block_columns));
  add_theta_gradients_kernel<<<blocks, dim3(block_columns, theta_threads), 0, stream_of(execution)>>>(
      tiles, theta_shares, d_theta);
  FULMEN_CUDA_CHECK_LAUNCH();
}

#define FULMEN_INSTANTIATE(A)                                                                                        \
  template void load_query_key(const Execution&, const AttentionTiles&, const LinearAttentionInputs&, A*, A*);       \
  template void load_value(const Execution&, const AttentionTiles&, const Tensor&, Activation, TokenWeight, A*, A*); \
  template void store_output(const Execution&, const AttentionTiles&, const A*, const A*,                            \
                             const LinearAttentionOutputs&);                                                         \
  template void store_value_gradient(const Execution&, const AttentionTiles&, const A*, const A*,                    \
                                     const LinearAttentionInputs&, const Tensor&);                                   \
  template void store_query_key_gradients(const Execution&, const AttentionTiles&, const A*, const A*,               \
                                          const LinearAttentionInputs&, const Tensor&, const Tensor&, double*)
FULMEN_INSTANTIATE(float);
FULMEN_INSTANTIATE(double);
#undef FULMEN_INSTANTIATE

}  // namespace fulmen::cuda
