// Norms with a gain on a GPU. RMSNorm and its zero-centred form keep a row in registers between its sum and its result.
// LayerNorm, whose variance wants the mean first, reads it again from the cache. The gradients of gain and bias take a
// pass of their own.
#include "kernels/cuda/device_columns.cuh"
#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/device_vector.cuh"
#include "kernels/norm.h"

namespace fulmen::cuda {
namespace {

// As the passes without a gain: only the sum, rounded to T, enters the statistics and the result.
template <class T>
struct GainNormForward {
  using Sum = Accumulated<T>;
  static constexpr bool finishes = true;
  template <int length>
  struct Loaded {
    Packet<T, length> residual, branch;
  };
  struct Row {
    Sum inverse;
  };
  Rows<T> residual, branch, sum, normed;
  const T* gain;
  Sum offset;  // added to the gain
  Sum* inverse_rms;
  Sum width, epsilon;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    Loaded<length> loaded;
    loaded.residual = load_packet<length>(residual.at(row, column));
    if (branch.data != nullptr) loaded.branch = load_packet<length>(branch.at(row, column));
    return loaded;
  }
  __device__ __forceinline__ void begin(std::int64_t, int, int, Row&, Sum&) const {}
  // Leaves the sum in `residual`.
  template <int length>
  __device__ __forceinline__ Sum contribution(Loaded<length>& loaded, std::int64_t row, std::int64_t column) const {
    if (branch.data != nullptr) {
      const Packet<T, length> a = loaded.residual, b = loaded.branch;
      loaded.residual = make_packet<T, length>([&](int i) { return a[i] + b[i]; });
      store_packet(sum.at(row, column), loaded.residual);
    }
    Sum squares = 0;
#pragma unroll
    for (int i = 0; i < length; ++i) squares += loaded.residual[i] * loaded.residual[i];
    return squares;
  }
  __device__ __forceinline__ void combine(std::int64_t row, Sum squares, Row& of_row, bool writes) const {
    of_row.inverse = Sum(1) / sqrt(squares / width + epsilon);
    if (writes) inverse_rms[row] = of_row.inverse;
  }
  template <int length>
  __device__ __forceinline__ Loaded<length> reload(std::int64_t row, std::int64_t column) const {
    Loaded<length> loaded;
    loaded.residual = load_packet<length>((branch.data != nullptr ? sum : residual).at(row, column));
    return loaded;
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, const Row& of_row, std::int64_t row,
                                         std::int64_t column) const {
    const Packet<T, length> gains = load_packet<length>(gain + column);
    store_packet(normed.at(row, column), make_packet<T, length>([&](int i) {
                   return loaded.residual[i] * of_row.inverse * (offset + gains[i]);
                 }));
  }
};

template <class T>
struct GainNormBackward {
  using Sum = Accumulated<T>;
  static constexpr bool finishes = true;
  template <int length>
  struct Loaded {
    Packet<T, length> d_normed, sum, d_residual;
  };
  struct Row {
    Sum inverse, coefficient;  // the factors of d_normed * gain and of `sum` in the gradient
  };
  Rows<T> d_normed, sum, d_residual, d_sum, normed;  // d_residual and normed may be none
  const T* gain;
  Sum offset;
  const Sum* inverse_rms;
  Sum width;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    Loaded<length> loaded;
    loaded.d_normed = load_packet<length>(d_normed.at(row, column));
    loaded.sum = load_packet<length>(sum.at(row, column));
    if (d_residual.data != nullptr) loaded.d_residual = load_packet<length>(d_residual.at(row, column));
    return loaded;
  }
  __device__ __forceinline__ void begin(std::int64_t row, int, int, Row& of_row, Sum&) const {
    of_row.inverse = inverse_rms[row];
  }
  template <int length>
  __device__ __forceinline__ Sum contribution(const Loaded<length>& loaded, std::int64_t, std::int64_t column) const {
    const Packet<T, length> gains = load_packet<length>(gain + column);
    Sum dot = 0;
#pragma unroll
    for (int i = 0; i < length; ++i) dot += loaded.d_normed[i] * (offset + gains[i]) * loaded.sum[i];
    return dot;
  }
  __device__ __forceinline__ void combine(std::int64_t, Sum dot, Row& of_row, bool) const {
    const Sum inverse = of_row.inverse;
    of_row.coefficient = inverse * inverse * (dot * inverse) / width;
  }
  template <int length>
  __device__ __forceinline__ Loaded<length> reload(std::int64_t row, std::int64_t column) const {
    return load<length>(row, column);
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, const Row& of_row, std::int64_t row,
                                         std::int64_t column) const {
    const Packet<T, length> gains = load_packet<length>(gain + column);
    const Sum inverse = of_row.inverse;
    const bool past_the_norm = d_residual.data != nullptr;
    store_packet(d_sum.at(row, column), make_packet<T, length>([&](int i) {
                   const Sum d_n = loaded.d_normed[i] * (offset + gains[i]);
                   const Sum gradient = inverse * d_n - of_row.coefficient * loaded.sum[i];
                   return past_the_norm ? loaded.d_residual[i] + gradient : gradient;
                 }));
    if (normed.data != nullptr)
      store_packet(normed.at(row, column),
                   make_packet<T, length>([&](int i) { return loaded.sum[i] * inverse * (offset + gains[i]); }));
  }
};

// d_normed n and d_normed, of a row's packet. A row's statistics are `stride` values: the inverse root, and the mean.
template <class T, bool centred>
struct WeightGradients {
  using Sum = Accumulated<T>;
  static constexpr int sums = centred ? 2 : 1;
  Rows<T> d_normed, sum;
  const Sum* statistics;

  template <int length>
  __device__ __forceinline__ void add(std::int64_t row, std::int64_t column, Sum (&totals)[sums][length]) const {
    const Packet<T, length> upstream = load_packet<length>(d_normed.at(row, column));
    const Packet<T, length> x = load_packet<length>(sum.at(row, column));
    const Sum inverse = statistics[row * sums], mean = centred ? statistics[row * sums + 1] : Sum(0);
#pragma unroll
    for (int i = 0; i < length; ++i) {
      totals[0][i] += upstream[i] * ((x[i] - mean) * inverse);
      if constexpr (centred) totals[1][i] += upstream[i];
    }
  }
};

constexpr int layer_threads = 256;  // a row's

// The sum over a block, which every thread gets. `shared` may be used again.
template <class Sum>
__device__ Sum sum_of_block(Sum value, Sum* shared) {
  const Sum sum = sum_of_row(value, shared);
  __syncthreads();
  return sum;
}

template <class T>
__global__ void __launch_bounds__(layer_threads)
    layer_norm_kernel(Rows<T> residual, Rows<T> branch, Rows<T> sum, Rows<T> normed, const T* gain, const T* bias,
                      Accumulated<T>* statistics, std::int64_t width, Accumulated<T> epsilon) {
  using Sum = Accumulated<T>;
  __shared__ Sum shared[layer_threads / lanes_of_warp];
  const std::int64_t row = blockIdx.x;
  const Rows<T> x = branch.data != nullptr ? sum : residual;
  Sum total = 0;
  for (std::int64_t j = threadIdx.x; j < width; j += layer_threads) {
    if (branch.data != nullptr)
      *sum.at(row, j) = round_to<T>(to_accumulated(*residual.at(row, j)) + to_accumulated(*branch.at(row, j)));
    total += to_accumulated(*x.at(row, j));
  }
  const Sum mean = sum_of_block(total, shared) / static_cast<Sum>(width);
  Sum squares = 0;
  for (std::int64_t j = threadIdx.x; j < width; j += layer_threads) {
    const Sum apart = to_accumulated(*x.at(row, j)) - mean;
    squares += apart * apart;
  }
  const Sum inverse = Sum(1) / sqrt(sum_of_block(squares, shared) / static_cast<Sum>(width) + epsilon);
  if (threadIdx.x == 0) {
    statistics[2 * row] = inverse;
    statistics[2 * row + 1] = mean;
  }
  for (std::int64_t j = threadIdx.x; j < width; j += layer_threads)
    *normed.at(row, j) = round_to<T>((to_accumulated(*x.at(row, j)) - mean) * inverse * to_accumulated(gain[j]) +
                                     to_accumulated(bias[j]));
}

// d_residual and normed may be none. A thread writes only where it alone has read.
template <class T>
__global__ void __launch_bounds__(layer_threads)
    layer_norm_backward_kernel(Rows<T> d_normed, Rows<T> x, Rows<T> d_residual, Rows<T> d_sum, Rows<T> normed,
                               const T* gain, const T* bias, const Accumulated<T>* statistics, std::int64_t width) {
  using Sum = Accumulated<T>;
  __shared__ Sum shared[layer_threads / lanes_of_warp];
  const std::int64_t row = blockIdx.x;
  const Sum inverse = statistics[2 * row], mean = statistics[2 * row + 1];
  Sum plain = 0, with_normed = 0;
  for (std::int64_t j = threadIdx.x; j < width; j += layer_threads) {
    const Sum d_n = to_accumulated(*d_normed.at(row, j)) * to_accumulated(gain[j]);
    plain += d_n;
    with_normed += d_n * ((to_accumulated(*x.at(row, j)) - mean) * inverse);
  }
  plain = sum_of_block(plain, shared) / static_cast<Sum>(width);
  with_normed = sum_of_block(with_normed, shared) / static_cast<Sum>(width);
  for (std::int64_t j = threadIdx.x; j < width; j += layer_threads) {
    const Sum factor = to_accumulated(gain[j]), n = (to_accumulated(*x.at(row, j)) - mean) * inverse;
    const Sum gradient = inverse * (to_accumulated(*d_normed.at(row, j)) * factor - n * with_normed - plain);
    const Sum past = d_residual.data != nullptr ? to_accumulated(*d_residual.at(row, j)) : Sum(0);
    *d_sum.at(row, j) = round_to<T>(past + gradient);
    if (normed.data != nullptr) *normed.at(row, j) = round_to<T>(n * factor + to_accumulated(bias[j]));
  }
}

unsigned row_blocks(std::int64_t rows) {
  FULMEN_CHECK(rows <= 0x7fffffff, "{} rows are too many for one launch", rows);
  return static_cast<unsigned>(rows);
}

template <class T>
Accumulated<T> offset_of(const NormWeights& weights) {
  return weights.kind == NormKind::zero_centred ? Accumulated<T>(1) : Accumulated<T>(0);
}

template <class T>
void add_weight_gradients(const Execution& execution, const Tensor& d_normed, const Tensor& sum,
                          const Tensor& statistics, const NormWeightGradients& gradients) {
  const std::int64_t tokens = sum.size(0), width = sum.size(1);
  const bool packets = width % row_packet<T> == 0 && packets_aligned(row_packet<T>, {d_normed, sum});
  dispatch_length<row_packet<T>>(packets, [&](auto length) {
    const auto add = [&]<bool centred>(std::initializer_list<Tensor> totals) {
      const WeightGradients<T, centred> operation{rows_of<T>(d_normed), rows_of<T>(sum),
                                                  pointer_to<Accumulated<T>>(statistics)};
      add_column_sums<length.value>(execution, operation, tokens, width, totals);
    };
    if (gradients.d_bias)
      add.template operator()<true>({gradients.d_gain, gradients.d_bias});
    else
      add.template operator()<false>({gradients.d_gain});
  });
}

}  // namespace

void weighted_norm_forward(const Execution& execution, const Tensor& residual, const Tensor& branch,
                           const NormWeights& weights, double epsilon, const Tensor& sum, const Tensor& normed,
                           const Tensor& statistics) {
  const std::int64_t tokens = residual.size(0), width = residual.size(1);
  dispatch_floating(residual.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    if (weights.kind == NormKind::layer) {
      layer_norm_kernel<T><<<row_blocks(tokens), layer_threads, 0, stream_of(execution)>>>(
          rows_of<T>(residual), rows_of<T>(branch), rows_of<T>(sum), rows_of<T>(normed), pointer_to<T>(weights.gain),
          pointer_to<T>(weights.bias), pointer_to<A>(statistics), width, static_cast<A>(epsilon));
      FULMEN_CUDA_CHECK_LAUNCH();
      return;
    }
    const GainNormForward<T> operation{rows_of<T>(residual),      rows_of<T>(branch),          rows_of<T>(sum),
                                       rows_of<T>(normed),        pointer_to<T>(weights.gain), offset_of<T>(weights),
                                       pointer_to<A>(statistics), static_cast<A>(width),       static_cast<A>(epsilon)};
    const bool packets =
        width % row_packet<T> == 0 && packets_aligned(row_packet<T>, {residual, branch, sum, normed, weights.gain});
    dispatch_length<row_packet<T>>(
        packets, [&](auto length) { launch_reduce_rows<length.value>(execution, operation, tokens, width); });
  });
}

void weighted_norm_backward(const Execution& execution, const Tensor& d_normed, const Tensor& sum,
                            const NormWeights& weights, const Tensor& statistics, const Tensor& d_residual,
                            const Tensor& d_sum, const Tensor& normed, const NormWeightGradients& gradients) {
  const std::int64_t tokens = sum.size(0), width = sum.size(1);
  dispatch_floating(sum.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    // Before anything is written where d_normed or sum lie.
    add_weight_gradients<T>(execution, d_normed, sum, statistics, gradients);
    if (weights.kind == NormKind::layer) {
      layer_norm_backward_kernel<T><<<row_blocks(tokens), layer_threads, 0, stream_of(execution)>>>(
          rows_of<T>(d_normed), rows_of<T>(sum), rows_of<T>(d_residual), rows_of<T>(d_sum), rows_of<T>(normed),
          pointer_to<T>(weights.gain), pointer_to<T>(weights.bias), pointer_to<A>(statistics), width);
      FULMEN_CUDA_CHECK_LAUNCH();
      return;
    }
    const GainNormBackward<T> operation{rows_of<T>(d_normed),  rows_of<T>(sum),           rows_of<T>(d_residual),
                                        rows_of<T>(d_sum),     rows_of<T>(normed),        pointer_to<T>(weights.gain),
                                        offset_of<T>(weights), pointer_to<A>(statistics), static_cast<A>(width)};
    const bool packets = width % row_packet<T> == 0 &&
                         packets_aligned(row_packet<T>, {d_normed, sum, d_residual, d_sum, normed, weights.gain});
    dispatch_length<row_packet<T>>(
        packets, [&](auto length) { launch_reduce_rows<length.value>(execution, operation, tokens, width); });
  });
}

}  // namespace fulmen::cuda
