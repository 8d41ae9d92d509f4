// The norm of each head on the CPU: a group's second pass finds it in the cache.
#include "kernels/head_norm.h"

#include <cmath>

#include "kernels/cpu/column_sums.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

namespace fulmen::cpu {
namespace {

enum class Gate : std::uint8_t { absent, after, before };

// A group's columns. gate and gain may be null; the factor is offset + gain, or 1.
template <class T>
struct Group {
  const T *d_y, *x, *gate, *gain;
  T offset, inverse;
  T *d_x, *d_gate, *d_gain, *y;
  std::int64_t width;
};

template <Gate place, Activation activation, class T>
FULMEN_VECTORIZED T sum_of_squares(const T* x, const T* gate, std::int64_t width) {
  T squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t j = 0; j < width; ++j) {
    const T u = place == Gate::before ? x[j] * activate<activation>(gate[j]) : x[j];
    squares += u * u;
  }
  return squares;
}

template <Gate place, Activation activation, bool gained, class T>
FULMEN_VECTORIZED void forward_group(Group<T> group) {
  const T *const x = group.x, *const gate = group.gate, *const gain = group.gain;
  const T offset = group.offset, inverse = group.inverse;
  T* const y = group.y;
#pragma omp simd
  for (std::int64_t j = 0; j < group.width; ++j) {
    // In the order of the backward pass, which writes the same bits again.
    T value = place == Gate::before ? x[j] * activate<activation>(gate[j]) * inverse : x[j] * inverse;
    if constexpr (gained) value *= offset + gain[j];
    y[j] = place == Gate::after ? value * activate<activation>(gate[j]) : value;
  }
}

// The sum over the group of d_n * n, d_n being the gradient of the normed value.
template <Gate place, Activation activation, bool gained, class T>
FULMEN_VECTORIZED T gradient_dot(Group<T> group) {
  const T *const d_y = group.d_y, *const x = group.x, *const gate = group.gate, *const gain = group.gain;
  const T offset = group.offset;
  T dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t j = 0; j < group.width; ++j) {
    // The gate enters the product once, be it in d_n or in n.
    T value = d_y[j] * x[j];
    if constexpr (place != Gate::absent) value *= activate<activation>(gate[j]);
    dot += gained ? value * (offset + gain[j]) : value;
  }
  return dot * group.inverse;
}

// Everything of a position is read before anything is written there: results may lie where inputs do. y may be null.
template <Gate place, Activation activation, bool gained, class T>
FULMEN_VECTORIZED void backward_group(Group<T> group, T mean_dot) {
  const T *const d_y = group.d_y, *const x = group.x, *const gate = group.gate, *const gain = group.gain;
  const T offset = group.offset, inverse = group.inverse;
  T *const d_x = group.d_x, *const d_gate = group.d_gate, *const d_gain = group.d_gain, *const y = group.y;
#pragma omp simd
  for (std::int64_t j = 0; j < group.width; ++j) {
    const T upstream = d_y[j], value = x[j], factor = gained ? offset + gain[j] : T(1);
    Activated<T> a{T(1), T(0)};
    if constexpr (place != Gate::absent) a = activate_with_derivative<activation>(gate[j]);
    const T before = place == Gate::before ? a.value : T(1), after = place == Gate::after ? a.value : T(1);
    const T n = value * before * inverse;
    const T d_u = inverse * (upstream * factor * after - n * mean_dot);
    if constexpr (gained) d_gain[j] += upstream * n * after;
    d_x[j] = d_u * before;
    if constexpr (place == Gate::after) d_gate[j] = upstream * factor * n * a.derivative;
    if constexpr (place == Gate::before) d_gate[j] = d_u * value * a.derivative;
    if (y != nullptr) y[j] = n * factor * after;
  }
}

template <class T>
T* row_of(const Tensor& x, std::int64_t row) {
  return x ? x.as<T>() + row * x.stride(0) : nullptr;
}

// Calls f with the gate's place, its activation and whether there is a gain as compile-time constants.
template <class F>
void dispatch(const HeadNorm& norm, F&& f) {
  const auto with_gain = [&]<Gate place, Activation activation>() {
    norm.gain ? f.template operator()<place, activation, true>() : f.template operator()<place, activation, false>();
  };
  if (norm.gate.is_null()) return with_gain.template operator()<Gate::absent, Activation::none>();
  dispatch_activation(norm.gate_activation, [&]<Activation activation>() {
    norm.gate_place == GatePlace::after_norm ? with_gain.template operator()<Gate::after, activation>()
                                             : with_gain.template operator()<Gate::before, activation>();
  });
}

// The rows of a call, cut into groups.
template <class T>
class Groups {
 public:
  Groups(const HeadNorm& norm, const Tensor& x) : norm_(norm), x_(x), width_(norm.group_width) {}

  std::int64_t count() const { return x_.size(1) / width_; }
  bool gain_is_shared() const { return norm_.gain.elements() == width_; }
  Group<T> group(std::int64_t row, std::int64_t index, const Tensor& d_y, const HeadNormGradients& results,
                 T* gain_sums) const {
    const std::int64_t at = index * width_;
    const auto shifted = [&](const Tensor& tensor) {
      T* const begin = row_of<T>(tensor, row);
      return begin != nullptr ? begin + at : nullptr;
    };
    const std::int64_t gain_at = gain_is_shared() ? 0 : at;
    return {shifted(d_y),
            shifted(x_),
            shifted(norm_.gate),
            norm_.gain ? norm_.gain.as<T>() + gain_at : nullptr,
            norm_.zero_centred ? T(1) : T(0),
            T(0),
            shifted(results.d_x),
            shifted(results.d_gate),
            gain_sums != nullptr ? gain_sums + gain_at : nullptr,
            shifted(results.y),
            width_};
  }

 private:
  const HeadNorm& norm_;
  const Tensor& x_;
  std::int64_t width_;
};

}  // namespace

void head_norm_forward(const Execution&, const HeadNorm& norm, const Tensor& x, const Tensor& y,
                       const Tensor& inverse_rms) {
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    const Groups<T> groups(norm, x);
    const HeadNormGradients results{{}, {}, {}, y};
    dispatch(norm, [&]<Gate place, Activation activation, bool gained>() {
      parallel_rows(x.size(0), x.size(1), [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first * groups.count(); i < last * groups.count(); ++i) {
          Group<T> group = groups.group(i / groups.count(), i % groups.count(), {}, results, nullptr);
          const T squares = sum_of_squares<place, activation>(group.x, group.gate, group.width);
          group.inverse = T(1) / std::sqrt(squares / static_cast<T>(group.width) + static_cast<T>(norm.epsilon));
          inverse_rms.as<T>()[i] = group.inverse;
          forward_group<place, activation, gained>(group);
        }
      });
    });
  });
}

void head_norm_backward(const Execution& execution, const HeadNorm& norm, const Tensor& d_y, const Tensor& x,
                        const Tensor& inverse_rms, const HeadNormGradients& gradients) {
  const std::int64_t tokens = x.size(0);
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    const Groups<T> groups(norm, x);
    dispatch(norm, [&]<Gate place, Activation activation, bool gained>() {
      const auto rows = [&](std::int64_t first, std::int64_t last, T* gain_sums) {
        for (std::int64_t i = first * groups.count(); i < last * groups.count(); ++i) {
          Group<T> group = groups.group(i / groups.count(), i % groups.count(), d_y, gradients, gain_sums);
          group.inverse = inverse_rms.as<T>()[i];
          const T dot = gradient_dot<place, activation, gained>(group);
          backward_group<place, activation, gained>(group, dot / static_cast<T>(group.width));
        }
      };
      if (gained)
        add_column_sums<T>(execution, tokens, norm.gain.elements(), {gradients.d_gain}, rows);
      else
        parallel_rows(tokens, x.size(1), [&](std::int64_t first, std::int64_t last) { rows(first, last, nullptr); });
    });
  });
}

}  // namespace fulmen::cpu
