// SimpleRMSNorm and its fusions on a GPU. A row is spread over the threads of a block, or several rows over a thread.
// It stays in their registers between its sum and its result.
#include "kernels/norm.h"

#include "kernels/cuda/device_activation.cuh"
#include "kernels/cuda/device_columns.cuh"
#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/device_vector.cuh"

namespace fulmen::cuda {
namespace {

template <class A>
__device__ __forceinline__ A inverse_root(A square_sum, A width, A epsilon) {
  return A(1) / sqrt(square_sum / width + epsilon);
}

// Only the sum, rounded to T, enters the statistics and the result: what the backward pass will see.
template <class T>
struct ResidualNormForward {
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
    of_row.inverse = inverse_root(squares, width, epsilon);
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
    store_packet(normed.at(row, column),
                 make_packet<T, length>([&](int i) { return loaded.residual[i] * of_row.inverse; }));
  }
};

template <class T>
struct ResidualNormBackward {
  using Sum = Accumulated<T>;
  static constexpr bool finishes = true;
  template <int length>
  struct Loaded {
    Packet<T, length> d_normed, sum, d_residual;
  };
  struct Row {
    Sum inverse, coefficient;  // the factors of d_normed and of `sum` in the gradient
  };
  Rows<T> d_normed, sum, d_residual, d_sum, normed;  // d_residual and normed may be none
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
  __device__ __forceinline__ Sum contribution(const Loaded<length>& loaded, std::int64_t, std::int64_t) const {
    Sum dot = 0;
#pragma unroll
    for (int i = 0; i < length; ++i) dot += loaded.d_normed[i] * loaded.sum[i];
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
    const Sum inverse = of_row.inverse;
    const bool past_the_norm = d_residual.data != nullptr;
    store_packet(d_sum.at(row, column), make_packet<T, length>([&](int i) {
                   const Sum gradient = inverse * loaded.d_normed[i] - of_row.coefficient * loaded.sum[i];
                   return past_the_norm ? loaded.d_residual[i] + gradient : gradient;
                 }));
    if (normed.data != nullptr)
      store_packet(normed.at(row, column), make_packet<T, length>([&](int i) { return loaded.sum[i] * inverse; }));
  }
};

template <class T>
struct SumRows {
  using Sum = Accumulated<T>;
  static constexpr bool finishes = false;
  template <int length>
  struct Loaded {
    Packet<T, length> values;
  };
  struct Row {};
  Rows<T> values;
  T* row_sums;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    return {load_packet<length>(values.at(row, column))};
  }
  __device__ __forceinline__ void begin(std::int64_t, int, int, Row&, Sum&) const {}
  template <int length>
  __device__ __forceinline__ Sum contribution(const Loaded<length>& loaded, std::int64_t, std::int64_t) const {
    Sum sum = 0;
#pragma unroll
    for (int i = 0; i < length; ++i) sum += loaded.values[i];
    return sum;
  }
  __device__ __forceinline__ void combine(std::int64_t row, Sum sum, Row&, bool writes) const {
    if (writes) row_sums[row] = round_to<T>(sum);
  }
};

// The gains of a packet's columns, or none.
template <class T, int length, bool gained>
struct Gains {
  Packet<T, length> values;

  __device__ __forceinline__ Gains(const T* gain, std::int64_t column) {
    if constexpr (gained) values = load_packet<length>(gain + column);
  }
  __device__ __forceinline__ Accumulated<T> times(int i, Accumulated<T> x) const { return gained ? x * values[i] : x; }
};

// y = act(gate) * x * inverse_rms * gain: a sum per row, but of the squares that are given.
template <class T, class Gate, bool gained>
struct GatedNorm {
  using Sum = Accumulated<T>;
  static constexpr bool finishes = true;
  template <int length>
  struct Loaded {
    Packet<T, length> x, gate;
  };
  struct Row {
    Sum inverse;
  };
  Rows<T> x, gate, y;
  Rows<Sum> square_sums;
  int parts;  // of the squares' sum
  Sum* inverse_rms;
  Sum width, epsilon;
  const T* gain;
  Gate gate_function;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    return {load_packet<length>(x.at(row, column)), load_packet<length>(gate.at(row, column))};
  }
  __device__ __forceinline__ void begin(std::int64_t row, int thread, int threads, Row&, Sum& sum) const {
    for (int part = thread; part < parts; part += threads) sum += *square_sums.at(row, part);
  }
  template <int length>
  __device__ __forceinline__ Sum contribution(const Loaded<length>&, std::int64_t, std::int64_t) const {
    return 0;
  }
  __device__ __forceinline__ void combine(std::int64_t row, Sum squares, Row& of_row, bool writes) const {
    of_row.inverse = inverse_root(squares, width, epsilon);
    if (writes) inverse_rms[row] = of_row.inverse;
  }
  template <int length>
  __device__ __forceinline__ Loaded<length> reload(std::int64_t row, std::int64_t column) const {
    return load<length>(row, column);
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, const Row& of_row, std::int64_t row,
                                         std::int64_t column) const {
    const Gains<T, length, gained> gains(gain, column);
    store_packet(y.at(row, column), make_packet<T, length>([&](int i) {
                   return gains.times(i, gate_function.value(loaded.gate[i]) * (loaded.x[i] * of_row.inverse));
                 }));
  }
};

template <class T, class Gate, bool gained>
struct GatedNormDot {
  using Sum = Accumulated<T>;
  static constexpr bool finishes = false;
  template <int length>
  struct Loaded {
    Packet<T, length> d_y, x, gate;
  };
  struct Row {
    Sum inverse;
  };
  Rows<T> d_y, x, gate;
  const Sum* inverse_rms;
  Sum* dot;
  const T* gain;
  Gate gate_function;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    return {load_packet<length>(d_y.at(row, column)), load_packet<length>(x.at(row, column)),
            load_packet<length>(gate.at(row, column))};
  }
  __device__ __forceinline__ void begin(std::int64_t row, int, int, Row& of_row, Sum&) const {
    of_row.inverse = inverse_rms[row];
  }
  template <int length>
  __device__ __forceinline__ Sum contribution(const Loaded<length>& loaded, std::int64_t, std::int64_t column) const {
    const Gains<T, length, gained> gains(gain, column);
    Sum sum = 0;
#pragma unroll
    for (int i = 0; i < length; ++i)
      sum += gains.times(i, loaded.d_y[i]) * gate_function.value(loaded.gate[i]) * loaded.x[i];
    return sum;
  }
  __device__ __forceinline__ void combine(std::int64_t row, Sum sum, Row& of_row, bool writes) const {
    if (writes) dot[row] = of_row.inverse * sum;
  }
};

// With a dot the sum over the row is given, else it is formed here.
template <class T, class Gate, bool gained>
struct GatedNormBackward {
  using Sum = Accumulated<T>;
  static constexpr bool finishes = true;
  template <int length>
  struct Loaded {
    Packet<T, length> d_y, x, gate;
  };
  struct Row {
    Sum inverse, dot;  // dot: divided by the width once combined
  };
  Rows<T> d_y, x, gate, d_x, d_gate, y;  // y may be none
  const Sum* inverse_rms;
  const Sum* dot;
  Sum width;
  const T* gain;
  Gate gate_function;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    return {load_packet<length>(d_y.at(row, column)), load_packet<length>(x.at(row, column)),
            load_packet<length>(gate.at(row, column))};
  }
  __device__ __forceinline__ void begin(std::int64_t row, int, int, Row& of_row, Sum&) const {
    of_row.inverse = inverse_rms[row];
    if (dot != nullptr) of_row.dot = dot[row];
  }
  template <int length>
  __device__ __forceinline__ Sum contribution(const Loaded<length>& loaded, std::int64_t, std::int64_t column) const {
    Sum sum = 0;
    if (dot != nullptr) return sum;
    const Gains<T, length, gained> gains(gain, column);
#pragma unroll
    for (int i = 0; i < length; ++i)
      sum += gains.times(i, loaded.d_y[i]) * gate_function.value(loaded.gate[i]) * loaded.x[i];
    return sum;
  }
  __device__ __forceinline__ void combine(std::int64_t, Sum sum, Row& of_row, bool) const {
    of_row.dot = (dot != nullptr ? of_row.dot : of_row.inverse * sum) / width;
  }
  template <int length>
  __device__ __forceinline__ Loaded<length> reload(std::int64_t row, std::int64_t column) const {
    return load<length>(row, column);
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, const Row& of_row, std::int64_t row,
                                         std::int64_t column) const {
    const Gains<T, length, gained> gains(gain, column);
    const Sum inverse = of_row.inverse;
    Sum d_gates[length], ys[length];
    store_packet(d_x.at(row, column), make_packet<T, length>([&](int i) {
                   const Sum normed = loaded.x[i] * inverse, upstream = gains.times(i, loaded.d_y[i]);
                   const Activated<Sum> activated = gate_function.with_derivative(loaded.gate[i]);
                   d_gates[i] = upstream * normed * activated.derivative;
                   ys[i] = gains.times(i, activated.value * normed);
                   return inverse * (upstream * activated.value - normed * of_row.dot);
                 }));
    store_packet(d_gate.at(row, column), make_packet<T, length>([&](int i) { return d_gates[i]; }));
    if (y.data != nullptr) store_packet(y.at(row, column), make_packet<T, length>([&](int i) { return ys[i]; }));
  }
};

// d_y act(gate) n, of a row's packet.
template <class T>
struct GatedNormGainGradient {
  using Sum = Accumulated<T>;
  static constexpr int sums = 1;
  Rows<T> d_y, x, gate;
  const Sum* inverse_rms;
  RuntimeGate gate_function;

  template <int length>
  __device__ __forceinline__ void add(std::int64_t row, std::int64_t column, Sum (&totals)[sums][length]) const {
    const Packet<T, length> upstream = load_packet<length>(d_y.at(row, column));
    const Packet<T, length> values = load_packet<length>(x.at(row, column));
    const Packet<T, length> gates = load_packet<length>(gate.at(row, column));
    const Sum inverse = inverse_rms[row];
#pragma unroll
    for (int i = 0; i < length; ++i)
      totals[0][i] += upstream[i] * gate_function.value(gates[i]) * (values[i] * inverse);
  }
};

// Calls f(gate, gained). Without a gain the activation is known at compile time. With a gain, which few models have, it
// is chosen at run time, so that there are fewer kernels.
template <class F>
void dispatch_gate(Activation activation, const Tensor& gain, F&& f) {
  if (gain) return f(RuntimeGate{activation}, std::true_type{});
  dispatch_activation(activation, [&]<Activation act>() { f(FixedGate<act>{}, std::false_type{}); });
}

}  // namespace

void residual_norm_forward(const Execution& execution, const Tensor& residual, const Tensor& branch, double epsilon,
                           const Tensor& sum, const Tensor& normed, const Tensor& inverse_rms) {
  const std::int64_t tokens = residual.size(0), width = residual.size(1);
  dispatch_floating(residual.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    const ResidualNormForward<T> operation{rows_of<T>(residual),   rows_of<T>(branch),         rows_of<T>(sum),
                                           rows_of<T>(normed),     pointer_to<A>(inverse_rms), static_cast<A>(width),
                                           static_cast<A>(epsilon)};
    const bool packets = width % row_packet<T> == 0 && packets_aligned(row_packet<T>, {residual, branch, sum, normed});
    dispatch_length<row_packet<T>>(
        packets, [&](auto length) { launch_reduce_rows<length.value>(execution, operation, tokens, width); });
  });
}

void residual_norm_backward(const Execution& execution, const Tensor& d_normed, const Tensor& sum,
                            const Tensor& inverse_rms, const Tensor& d_residual, const Tensor& d_sum,
                            const Tensor& normed) {
  const std::int64_t tokens = sum.size(0), width = sum.size(1);
  dispatch_floating(sum.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    const ResidualNormBackward<T> operation{rows_of<T>(d_normed), rows_of<T>(sum),    rows_of<T>(d_residual),
                                            rows_of<T>(d_sum),    rows_of<T>(normed), pointer_to<A>(inverse_rms),
                                            static_cast<A>(width)};
    const bool packets =
        width % row_packet<T> == 0 && packets_aligned(row_packet<T>, {d_normed, sum, d_residual, d_sum, normed});
    dispatch_length<row_packet<T>>(
        packets, [&](auto length) { launch_reduce_rows<length.value>(execution, operation, tokens, width); });
  });
}

void sum_rows(const Execution& execution, const Tensor& values, const Tensor& row_sums) {
  const std::int64_t width = values.size(1);
  dispatch_floating(values.dtype(), [&]<class T>(T) {
    const SumRows<T> operation{rows_of<T>(values), pointer_to<T>(row_sums)};
    const bool packets = width % row_packet<T> == 0 && packets_aligned(row_packet<T>, {values});
    dispatch_length<row_packet<T>>(
        packets, [&](auto length) { launch_reduce_rows<length.value>(execution, operation, values.size(0), width); });
  });
}

void gated_norm_forward(const Execution& execution, const Tensor& x, const Tensor& square_sums, std::int64_t width,
                        double epsilon, const Tensor& gate, Activation gate_activation, const Tensor& y,
                        const Tensor& inverse_rms, const Tensor& gain) {
  const std::int64_t local_width = x.size(1);
  dispatch_floating(x.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    dispatch_gate(gate_activation, gain, [&]<class Gate>(Gate gate_function, auto gained) {
      const GatedNorm<T, Gate, gained.value> operation{rows_of<T>(x),
                                                       rows_of<T>(gate),
                                                       rows_of<T>(y),
                                                       rows_of<A>(square_sums),
                                                       static_cast<int>(square_sums.size(1)),
                                                       pointer_to<A>(inverse_rms),
                                                       static_cast<A>(width),
                                                       static_cast<A>(epsilon),
                                                       pointer_to<T>(gain),
                                                       gate_function};
      const bool packets = local_width % row_packet<T> == 0 && packets_aligned(row_packet<T>, {x, gate, y, gain});
      dispatch_length<row_packet<T>>(packets, [&](auto length) {
        launch_reduce_rows<length.value>(execution, operation, x.size(0), local_width);
      });
    });
  });
}

void gated_norm_backward_dot(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& inverse_rms,
                             const Tensor& gate, Activation gate_activation, const Tensor& dot, const Tensor& gain) {
  const std::int64_t local_width = x.size(1);
  dispatch_floating(x.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    dispatch_gate(gate_activation, gain, [&]<class Gate>(Gate gate_function, auto gained) {
      const GatedNormDot<T, Gate, gained.value> operation{
          rows_of<T>(d_y),    rows_of<T>(x),       rows_of<T>(gate), pointer_to<A>(inverse_rms),
          pointer_to<A>(dot), pointer_to<T>(gain), gate_function};
      const bool packets = local_width % row_packet<T> == 0 && packets_aligned(row_packet<T>, {d_y, x, gate, gain});
      dispatch_length<row_packet<T>>(packets, [&](auto length) {
        launch_reduce_rows<length.value>(execution, operation, x.size(0), local_width);
      });
    });
  });
}

void gated_norm_backward(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& inverse_rms,
                         const Tensor& gate, Activation gate_activation, const Tensor& dot, std::int64_t width,
                         const Tensor& d_x, const Tensor& d_gate, const Tensor& y, const Tensor& gain,
                         const Tensor& d_gain) {
  const std::int64_t local_width = x.size(1);
  dispatch_floating(x.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    const bool packets =
        local_width % row_packet<T> == 0 && packets_aligned(row_packet<T>, {d_y, x, gate, d_x, d_gate, y, gain});
    dispatch_gate(gate_activation, gain, [&]<class Gate>(Gate gate_function, auto gained) {
      if constexpr (gained.value) {  // before anything is written where d_y, x or the gate lie
        const GatedNormGainGradient<T> sums{rows_of<T>(d_y), rows_of<T>(x), rows_of<T>(gate),
                                            pointer_to<A>(inverse_rms), gate_function};
        dispatch_length<row_packet<T>>(packets, [&](auto length) {
          add_column_sums<length.value>(execution, sums, x.size(0), local_width, {d_gain});
        });
      }
      const GatedNormBackward<T, Gate, gained.value> operation{rows_of<T>(d_y),
                                                               rows_of<T>(x),
                                                               rows_of<T>(gate),
                                                               rows_of<T>(d_x),
                                                               rows_of<T>(d_gate),
                                                               rows_of<T>(y),
                                                               pointer_to<A>(inverse_rms),
                                                               dot ? pointer_to<A>(dot) : nullptr,
                                                               static_cast<A>(width),
                                                               pointer_to<T>(gain),
                                                               gate_function};
      dispatch_length<row_packet<T>>(packets, [&](auto length) {
        launch_reduce_rows<length.value>(execution, operation, x.size(0), local_width);
      });
    });
  });
}

}  // namespace fulmen::cuda
