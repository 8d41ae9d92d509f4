// The norm of each head on a GPU: the groups of all tokens are rows of a reduction. The gradient of the gain takes a
// pass of its own.
#include "kernels/head_norm.h"

#include "kernels/cuda/device_activation.cuh"
#include "kernels/cuda/device_columns.cuh"
#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/device_vector.cuh"

namespace fulmen::cuda {
namespace {

enum class Gate : std::uint8_t { absent, after, before };

// A matrix [tokens, groups * width] whose rows are the groups, or none.
template <class T>
struct GroupRows {
  T* data = nullptr;
  std::int64_t stride = 0;
  unsigned groups = 1;
  int width = 0;

  __device__ __forceinline__ T* at(std::int64_t row, std::int64_t column) const {
    const auto index = static_cast<unsigned>(row);
    return data + static_cast<std::int64_t>(index / groups) * stride +
           static_cast<std::int64_t>(index % groups) * width + column;
  }
};

template <class T>
GroupRows<T> groups_of(const Tensor& x, std::int64_t groups, std::int64_t width) {
  if (x.is_null()) return {};
  return {pointer_to<T>(x), x.stride(0), static_cast<unsigned>(groups), static_cast<int>(width)};
}

// offset + gain; `shared` gains have one group's columns.
template <class T>
struct Gain {
  const T* data;
  Accumulated<T> offset;
  unsigned groups;
  int width;
  bool shared;

  __device__ __forceinline__ const T* at(std::int64_t row, std::int64_t column) const {
    return data + (shared ? 0 : static_cast<std::int64_t>(static_cast<unsigned>(row) % groups) * width) + column;
  }
};

// The factors of a packet, 1 without a gain.
template <class T, int length>
struct GainPacket {
  Packet<T, length> gains;
  Accumulated<T> offset;
  bool gained;

  __device__ __forceinline__ GainPacket(const Gain<T>& gain, std::int64_t row, std::int64_t column)
      : offset(gain.offset), gained(gain.data != nullptr) {
    if (gained) gains = load_packet<length>(gain.at(row, column));
  }
  __device__ __forceinline__ Accumulated<T> operator[](int i) const {
    return gained ? offset + gains[i] : Accumulated<T>(1);
  }
};

template <class T, Gate place>
struct Forward {
  using Sum = Accumulated<T>;
  static constexpr bool finishes = true;
  template <int length>
  struct Loaded {
    Packet<T, length> x, gate;
  };
  struct Row {
    Sum inverse;
  };
  GroupRows<T> x, gate, y;
  Gain<T> gain;
  RuntimeGate activation;
  Sum* inverse_rms;
  Sum width, epsilon;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    Loaded<length> loaded;
    loaded.x = load_packet<length>(x.at(row, column));
    if constexpr (place != Gate::absent) loaded.gate = load_packet<length>(gate.at(row, column));
    return loaded;
  }
  __device__ __forceinline__ void begin(std::int64_t, int, int, Row&, Sum&) const {}
  template <int length>
  __device__ __forceinline__ Sum contribution(const Loaded<length>& loaded, std::int64_t, std::int64_t) const {
    Sum squares = 0;
#pragma unroll
    for (int i = 0; i < length; ++i) {
      Sum u = loaded.x[i];
      if constexpr (place == Gate::before) u *= activation.value(loaded.gate[i]);
      squares += u * u;
    }
    return squares;
  }
  __device__ __forceinline__ void combine(std::int64_t row, Sum squares, Row& of_row, bool writes) const {
    of_row.inverse = Sum(1) / sqrt(squares / width + epsilon);
    if (writes) inverse_rms[row] = of_row.inverse;
  }
  template <int length>
  __device__ __forceinline__ Loaded<length> reload(std::int64_t row, std::int64_t column) const {
    return load<length>(row, column);
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, const Row& of_row, std::int64_t row,
                                         std::int64_t column) const {
    const GainPacket<T, length> factors(gain, row, column);
    store_packet(y.at(row, column), make_packet<T, length>([&](int i) {
                   // In the order of the backward pass, which writes the same bits again.
                   Sum value = loaded.x[i];
                   if constexpr (place == Gate::before) value *= activation.value(loaded.gate[i]);
                   value *= of_row.inverse;
                   value *= factors[i];
                   if constexpr (place == Gate::after) value *= activation.value(loaded.gate[i]);
                   return value;
                 }));
  }
};

template <class T, Gate place>
struct Backward {
  using Sum = Accumulated<T>;
  static constexpr bool finishes = true;
  template <int length>
  struct Loaded {
    Packet<T, length> d_y, x, gate;
  };
  struct Row {
    Sum inverse, mean_dot;
  };
  GroupRows<T> d_y, x, gate, d_x, d_gate, y;  // y may be none
  Gain<T> gain;
  RuntimeGate activation;
  const Sum* inverse_rms;
  Sum width;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    Loaded<length> loaded;
    loaded.d_y = load_packet<length>(d_y.at(row, column));
    loaded.x = load_packet<length>(x.at(row, column));
    if constexpr (place != Gate::absent) loaded.gate = load_packet<length>(gate.at(row, column));
    return loaded;
  }
  __device__ __forceinline__ void begin(std::int64_t row, int, int, Row& of_row, Sum&) const {
    of_row.inverse = inverse_rms[row];
  }
  template <int length>
  __device__ __forceinline__ Sum contribution(const Loaded<length>& loaded, std::int64_t row,
                                              std::int64_t column) const {
    const GainPacket<T, length> factors(gain, row, column);
    Sum dot = 0;
#pragma unroll
    for (int i = 0; i < length; ++i) {
      // The gate enters the product once, be it in the normed value or in its gradient.
      Sum value = loaded.d_y[i] * loaded.x[i];
      if constexpr (place != Gate::absent) value *= activation.value(loaded.gate[i]);
      dot += value * factors[i];
    }
    return dot;
  }
  __device__ __forceinline__ void combine(std::int64_t, Sum dot, Row& of_row, bool) const {
    of_row.mean_dot = dot * of_row.inverse / width;
  }
  template <int length>
  __device__ __forceinline__ Loaded<length> reload(std::int64_t row, std::int64_t column) const {
    return load<length>(row, column);
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, const Row& of_row, std::int64_t row,
                                         std::int64_t column) const {
    const GainPacket<T, length> factors(gain, row, column);
    Sum d_gates[length], ys[length];
    store_packet(d_x.at(row, column), make_packet<T, length>([&](int i) {
                   const Sum upstream = loaded.d_y[i], value = loaded.x[i];
                   const Sum factor = factors[i];
                   Activated<Sum> a{Sum(1), Sum(0)};
                   if constexpr (place != Gate::absent) a = activation.with_derivative(loaded.gate[i]);
                   const Sum before = place == Gate::before ? a.value : Sum(1);
                   const Sum after = place == Gate::after ? a.value : Sum(1);
                   const Sum n = value * before * of_row.inverse;
                   const Sum d_u = of_row.inverse * (upstream * factor * after - n * of_row.mean_dot);
                   d_gates[i] = (place == Gate::after ? upstream * factor * n : d_u * value) * a.derivative;
                   ys[i] = n * factor * after;
                   return d_u * before;
                 }));
    if constexpr (place != Gate::absent)
      store_packet(d_gate.at(row, column), make_packet<T, length>([&](int i) { return d_gates[i]; }));
    if (y.data != nullptr) store_packet(y.at(row, column), make_packet<T, length>([&](int i) { return ys[i]; }));
  }
};

// d_y n (act(gate)), of a packet. A shared gain has a row per group, another gain a row per token.
template <class T, Gate place>
struct GainGradient {
  using Sum = Accumulated<T>;
  static constexpr int sums = 1;
  GroupRows<T> d_y, x, gate;
  RuntimeGate activation;
  const Sum* inverse_rms;
  std::int64_t groups;  // of a row of this pass: 1 for a shared gain
  int group_width;

  template <int length>
  __device__ __forceinline__ void add(std::int64_t row, std::int64_t column, Sum (&totals)[sums][length]) const {
    const Packet<T, length> upstream = load_packet<length>(d_y.at(row, column));
    const Packet<T, length> values = load_packet<length>(x.at(row, column));
    Packet<T, length> gates;
    if constexpr (place != Gate::absent) gates = load_packet<length>(gate.at(row, column));
#pragma unroll
    for (int i = 0; i < length; ++i) {
      const Sum inverse = inverse_rms[row * groups + (groups == 1 ? 0 : (column + i) / group_width)];
      Sum value = upstream[i] * values[i] * inverse;
      if constexpr (place != Gate::absent) value *= activation.value(gates[i]);
      totals[0][i] += value;
    }
  }
};

// Calls f with the gate's place as a compile-time constant.
template <class F>
void dispatch(const HeadNorm& norm, F&& f) {
  if (norm.gate.is_null()) return f.template operator()<Gate::absent>();
  norm.gate_place == GatePlace::after_norm ? f.template operator()<Gate::after>()
                                           : f.template operator()<Gate::before>();
}

template <class T>
Gain<T> gain_of(const HeadNorm& norm, std::int64_t groups) {
  using A = Accumulated<T>;
  return {norm.gain ? pointer_to<T>(norm.gain) : nullptr, norm.zero_centred ? A(1) : A(0),
          static_cast<unsigned>(groups), static_cast<int>(norm.group_width), norm.gain.elements() == norm.group_width};
}

std::int64_t rows_of_groups(const HeadNorm& norm, const Tensor& x) {
  const std::int64_t rows = x.size(0) * (x.size(1) / norm.group_width);
  FULMEN_CHECK(rows <= 0x7fffffff, "{} groups are too many for one launch", rows);
  return rows;
}

template <class T, Gate place>
void add_gain_gradient(const Execution& execution, const HeadNorm& norm, const Tensor& d_y, const Tensor& x,
                       const Tensor& inverse_rms, const Tensor& d_gain, bool packets) {
  const std::int64_t width = norm.gain.elements(), parts = x.size(1) / width;
  const GainGradient<T, place> operation{groups_of<T>(d_y, parts, width),         groups_of<T>(x, parts, width),
                                         groups_of<T>(norm.gate, parts, width),   RuntimeGate{norm.gate_activation},
                                         pointer_to<Accumulated<T>>(inverse_rms), width / norm.group_width,
                                         static_cast<int>(norm.group_width)};
  dispatch_length<row_packet<T>>(packets, [&](auto length) {
    add_column_sums<length.value>(execution, operation, x.size(0) * parts, width, {d_gain});
  });
}

}  // namespace

void head_norm_forward(const Execution& execution, const HeadNorm& norm, const Tensor& x, const Tensor& y,
                       const Tensor& inverse_rms) {
  const std::int64_t rows = rows_of_groups(norm, x), width = norm.group_width, groups = x.size(1) / width;
  dispatch_floating(x.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    const bool packets = width % row_packet<T> == 0 && packets_aligned(row_packet<T>, {x, norm.gate, norm.gain, y});
    dispatch(norm, [&]<Gate place>() {
      const Forward<T, place> operation{groups_of<T>(x, groups, width),
                                        groups_of<T>(norm.gate, groups, width),
                                        groups_of<T>(y, groups, width),
                                        gain_of<T>(norm, groups),
                                        RuntimeGate{norm.gate_activation},
                                        pointer_to<A>(inverse_rms),
                                        static_cast<A>(width),
                                        static_cast<A>(norm.epsilon)};
      dispatch_length<row_packet<T>>(
          packets, [&](auto length) { launch_reduce_rows<length.value>(execution, operation, rows, width); });
    });
  });
}

void head_norm_backward(const Execution& execution, const HeadNorm& norm, const Tensor& d_y, const Tensor& x,
                        const Tensor& inverse_rms, const HeadNormGradients& gradients) {
  const std::int64_t rows = rows_of_groups(norm, x), width = norm.group_width, groups = x.size(1) / width;
  dispatch_floating(x.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    const bool packets =
        width % row_packet<T> == 0 &&
        packets_aligned(row_packet<T>, {d_y, x, norm.gate, norm.gain, gradients.d_x, gradients.d_gate, gradients.y});
    dispatch(norm, [&]<Gate place>() {
      if (norm.gain)  // before anything is written where d_y, x or the gate lie
        add_gain_gradient<T, place>(execution, norm, d_y, x, inverse_rms, gradients.d_gain, packets);
      const Backward<T, place> operation{groups_of<T>(d_y, groups, width),
                                         groups_of<T>(x, groups, width),
                                         groups_of<T>(norm.gate, groups, width),
                                         groups_of<T>(gradients.d_x, groups, width),
                                         groups_of<T>(gradients.d_gate, groups, width),
                                         groups_of<T>(gradients.y, groups, width),
                                         gain_of<T>(norm, groups),
                                         RuntimeGate{norm.gate_activation},
                                         pointer_to<A>(inverse_rms),
                                         static_cast<A>(width)};
      dispatch_length<row_packet<T>>(
          packets, [&](auto length) { launch_reduce_rows<length.value>(execution, operation, rows, width); });
    });
  });
}

}  // namespace fulmen::cuda
