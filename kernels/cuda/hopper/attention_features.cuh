// Features for products from the raw queries and keys in a tile, made in passing, and the way back. They are x,
// silu(x), or a half of LRPE's features (arXiv 2307.14995, section 3.1.1): act(x) cos(position theta) or act(x)
// sin(position theta).
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/hopper/attention_tiles.cuh"

namespace fulmen::cuda::hopper {

enum class Feature : std::uint8_t { plain, silu, rotated, rotated_silu };

inline constexpr bool has_silu(Feature feature) { return feature == Feature::silu || feature == Feature::rotated_silu; }
inline constexpr bool is_rotated(Feature feature) {
  return feature == Feature::rotated || feature == Feature::rotated_silu;
}

// LRPE as a sweep over either half needs it. The cosine is a sine a quarter turn ahead. Positions are below 2^32.
struct Rotation {
  const double* theta = nullptr;            // [heads, D]; null for no LRPE
  const std::int64_t* positions = nullptr;  // [batch, length]
  std::int64_t row_stride = 0, token_stride = 0;
  bool cosine = false;        // which half
  double* d_theta = nullptr;  // [rows, pieces, 4, heads, D], what each warp sums up, or null
};

// theta / 2 pi as a fraction of 2^64. Its products with positions wrap as angles do. Only theta / 2 pi itself is
// rounded, at 2^-64 of a turn.
__device__ __forceinline__ std::uint64_t turns_of(double theta) {
  constexpr double inverse = 0.15915494309189535, inverse_rest = -9.839338337591243e-18, one = 18446744073709551616.0;
  const double size = fabs(theta), turns = size * inverse, rest = fma(size, inverse, -turns) + size * inverse_rest;
  const std::uint64_t fraction =
      __double2ull_rn((turns - floor(turns)) * one) + static_cast<std::uint64_t>(__double2ll_rn(rest * one));
  return theta < 0 ? 0 - fraction : fraction;
}

// sigmoid of two numbers with three special-function operations. Far below zero the exponential is held at a size whose
// products stay finite; the result, 1e-25, is zero next to anything.
__device__ __forceinline__ void sigmoids(float a, float b, float& sigmoid_a, float& sigmoid_b) {
  constexpr float minus_log2_e = -1.4426950408889634f, most = 57.0f;
  float exp_a, exp_b, inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(exp_a) : "f"(fminf(a * minus_log2_e, most)));
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(exp_b) : "f"(fminf(b * minus_log2_e, most)));
  exp_a += 1.0f, exp_b += 1.0f;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(exp_a * exp_b));
  sigmoid_a = inverse * exp_b, sigmoid_b = inverse * exp_a;
}

// The derivative of silu(x), with its value and sigmoid(x).
__device__ __forceinline__ float silu_derivative(float silu, float sigmoid) {
  return sigmoid + silu * (1.0f - sigmoid);
}

// Two neighbouring columns of a row.
struct ColumnTurns {
  std::uint64_t first, second;
  __device__ ColumnTurns(const std::uint64_t* turns, int column) {
    const ulonglong2 both = *reinterpret_cast<const ulonglong2*>(turns + column);
    first = both.x, second = both.y;
  }
};

// The features of one head of one row.
template <Feature feature>
class FeatureMap {
 public:
  static constexpr bool rotates = is_rotated(feature);

  // turns: in shared memory, of every column; filled by `prepare`. `end`: past the last token that there is.
  __device__ FeatureMap(const Rotation& rotation, const std::uint64_t* turns, int row, int end)
      : turns_(turns),
        positions_(rotation.positions + row * rotation.row_stride),
        token_stride_(rotation.token_stride),
        last_token_(end - 1),
        phase_(rotation.cosine ? 1u << 30 : 0) {}

  template <int D>
  __device__ static void prepare(const Rotation& rotation, int head, std::uint64_t* turns) {
    if constexpr (rotates) {
      for (int i = threadIdx.x; i < D; i += blockDim.x) turns[i] = turns_of(rotation.theta[head * D + i]);
    }
  }

  __device__ __forceinline__ void activate(float& a, float& b) const {
    if constexpr (has_silu(feature)) {
      float sigmoid_a, sigmoid_b;
      sigmoids(a, b, sigmoid_a, sigmoid_b);
      a *= sigmoid_a, b *= sigmoid_b;
    }
  }
  // act(x) and act'(x) of two elements.
  __device__ __forceinline__ void differentiate(float& a, float& b, float& d_a, float& d_b) const {
    d_a = 1.0f, d_b = 1.0f;
    if constexpr (has_silu(feature)) {
      float sigmoid_a, sigmoid_b;
      sigmoids(a, b, sigmoid_a, sigmoid_b);
      a *= sigmoid_a, b *= sigmoid_b;
      d_a = silu_derivative(a, sigmoid_a), d_b = silu_derivative(b, sigmoid_b);
    }
  }

  __device__ __forceinline__ std::uint64_t turns(int column) const { return turns_[column]; }
  __device__ __forceinline__ ColumnTurns turns_at(int column) const { return ColumnTurns(turns_, column); }
  // The position of a token of the row; tokens past the last get its position.
  __device__ __forceinline__ std::uint32_t position(int token) const {
    return static_cast<std::uint32_t>(__ldg(positions_ + min(token, last_token_) * token_stride_));
  }
  // The angle in radians, between -pi and pi.
  __device__ __forceinline__ float angle(std::uint64_t turns, std::uint32_t position) const {
    constexpr float radians = 1.4629180792671596e-9f;  // 2 pi / 2^32
    const std::uint64_t low =
        static_cast<std::uint32_t>(turns) * std::uint64_t{position} + (std::uint64_t{phase_} << 32);
    const auto wrapped = static_cast<std::uint32_t>(turns >> 32) * position + static_cast<std::uint32_t>(low >> 32);
    return static_cast<float>(static_cast<std::int32_t>(wrapped)) * radians;
  }
  __device__ __forceinline__ static float sine(float angle) {
    float result;
    asm("sin.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(angle));
    return result;
  }
  __device__ __forceinline__ static float cosine(float angle) {
    float result;
    asm("cos.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(angle));
    return result;
  }

 private:
  const std::uint64_t* turns_;
  const std::int64_t* positions_;
  std::int64_t token_stride_;
  int last_token_;
  std::uint32_t phase_;  // 2^32 a turn
};

// Where the 16 columns of step k lie among a thread's four registers: register r has row + 8 (r % 2), columns 16 k +
// 8 (r / 2) + `column` and the next.
__device__ __forceinline__ std::uint32_t fragment_address(std::uint32_t tile, const ThreadPlace& at, int k) {
  return element_address(tile, panel_bytes, 16 * at.warp + at.lane % 16, 2 * k + at.lane / 16);
}

// The features of a tile's 64 rows as operand A; its first token is `begin`.
template <int D, Feature feature>
__device__ __forceinline__ void load_fragments(std::uint32_t tile, const ThreadPlace& at,
                                               const FeatureMap<feature>& map, int begin, Fragments<D>& fragments) {
#pragma unroll
  for (int k = 0; k < D / 16; ++k) load_matrices(fragment_address(tile, at, k), fragments.step[k]);
  if constexpr (feature != Feature::plain) {
    std::uint32_t positions[2] = {0, 0};
    if constexpr (map.rotates)
      positions[0] = map.position(begin + at.row), positions[1] = map.position(begin + at.row + 8);
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        float a = low_half(fragments.step[k][r]), b = high_half(fragments.step[k][r]);
        map.activate(a, b);
        if constexpr (map.rotates) {
          const ColumnTurns turns = map.turns_at(16 * k + 8 * (r / 2) + at.column);
          a *= map.sine(map.angle(turns.first, positions[r % 2]));
          b *= map.sine(map.angle(turns.second, positions[r % 2]));
        }
        fragments.step[k][r] = pack(a, b);
      }
    }
  }
}

// act'(x) of a tile of raw inputs, as products lay out their results.
template <int D, Feature feature>
__device__ __forceinline__ void load_derivatives(std::uint32_t tile, const ThreadPlace& at,
                                                 const FeatureMap<feature>& map, float (&factors)[D / 2]) {
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    std::uint32_t raw[4];
    load_matrices(fragment_address(tile, at, k), raw);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      float a = low_half(raw[r]), b = high_half(raw[r]);
      map.differentiate(a, b, factors[8 * k + 2 * r], factors[8 * k + 2 * r + 1]);
    }
  }
}

// As load_fragments, for a tile whose derivatives are wanted later. They take its place, in fp16, which holds values
// between -0.1 and 1.1 to 2^-12. One sigmoid serves both.
template <int D, Feature feature>
__device__ __forceinline__ void load_fragments_keep_derivatives(std::uint32_t tile, const ThreadPlace& at,
                                                                const FeatureMap<feature>& map,
                                                                Fragments<D>& fragments) {
#pragma unroll
  for (int k = 0; k < D / 16; ++k) load_matrices(fragment_address(tile, at, k), fragments.step[k]);
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    std::uint32_t kept[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      float a = low_half(fragments.step[k][r]), b = high_half(fragments.step[k][r]), d_a, d_b;
      map.differentiate(a, b, d_a, d_b);
      fragments.step[k][r] = pack(a, b);
      const __half2 derivatives = __floats2half2_rn(d_a, d_b);
      kept[r] = *reinterpret_cast<const std::uint32_t*>(&derivatives);
    }
    store_matrices(fragment_address(tile, at, k), kept);
  }
}

template <int D>
class KeptDerivatives {
 public:
  __device__ __forceinline__ void load(std::uint32_t tile, const ThreadPlace& at) {
#pragma unroll
    for (int k = 0; k < D / 16; ++k) load_matrices(fragment_address(tile, at, k), kept_[k]);
  }
  __device__ __forceinline__ void multiply(float (&results)[D / 2]) const {
#pragma unroll
    for (int i = 0; i < D / 4; ++i) {
      const float2 factors = __half22float2(*reinterpret_cast<const __half2*>(&kept_[i / 4][i % 4]));
      results[2 * i] *= factors.x, results[2 * i + 1] *= factors.y;
    }
  }

 private:
  std::uint32_t kept_[D / 16][4];
};

// A warp's sums of d_theta: sixteen tokens at a time in fp32, these sums in fp64.
template <int D>
class ThetaSums {
 public:
  // terms: of the thread's columns, 8 (i / 2) + `column` + i % 2. Lanes with the same columns halve them among each
  // other.
  __device__ __forceinline__ void add(float (&terms)[D / 4], const ThreadPlace& at) {
#pragma unroll
    for (int level = 0; level < 3; ++level) {
      const int bit = 16 >> level, size = (D / 8) >> level;
      const bool upper = (at.lane & bit) != 0;
#pragma unroll
      for (int i = 0; i < size; ++i) {
        const float mine = upper ? terms[i + size] : terms[i], other = upper ? terms[i] : terms[i + size];
        terms[i] = mine + __shfl_xor_sync(0xffffffffu, other, bit);
      }
    }
#pragma unroll
    for (int i = 0; i < D / 32; ++i) sums_[i] += static_cast<double>(terms[i]);
  }
  // to: [4, heads, D] of one block.
  __device__ __forceinline__ void store(double* to, int heads, int head, const ThreadPlace& at) const {
    const int first = (at.lane & 16 ? D / 8 : 0) + (at.lane & 8 ? D / 16 : 0) + (at.lane & 4 ? D / 32 : 0);
    double* const row = to + (static_cast<std::int64_t>(at.warp) * heads + head) * D + at.column;
#pragma unroll
    for (int i = 0; i < D / 32; ++i) row[8 * ((first + i) / 2) + (first + i) % 2] = sums_[i];
  }

 private:
  double sums_[D / 32] = {};
};

// From the gradients of the features of a tile of raw inputs to the inputs' gradients, in place, and what they add to
// d_theta.
template <int D, Feature feature>
__device__ __forceinline__ void differentiate_rotation(std::uint32_t tile, const ThreadPlace& at,
                                                       const FeatureMap<feature>& map, int begin,
                                                       float (&gradients)[D / 2], ThetaSums<D>& sums) {
  const std::uint32_t positions[2] = {map.position(begin + at.row), map.position(begin + at.row + 8)};
  float terms[D / 4];
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    std::uint32_t raw[4];
    load_matrices(fragment_address(tile, at, k), raw);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const ColumnTurns turns = map.turns_at(16 * k + 8 * (r / 2) + at.column);
      float value[2] = {low_half(raw[r]), high_half(raw[r])}, derivative[2];
      map.differentiate(value[0], value[1], derivative[0], derivative[1]);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float angle = map.angle(e == 0 ? turns.first : turns.second, positions[r % 2]);
        float& gradient = gradients[8 * k + 2 * r + e];
        float& term = terms[4 * k + 2 * (r / 2) + e];
        const float share = static_cast<float>(positions[r % 2]) * value[e] * map.cosine(angle) * gradient;
        term = r % 2 == 0 ? share : term + share;
        gradient *= derivative[e] * map.sine(angle);
      }
    }
  }
  sums.add(terms, at);
}

}  // namespace fulmen::cuda::hopper
