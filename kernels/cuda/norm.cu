// SimpleRMSNorm and its fusions on a GPU: a row is spread over the threads of a block, or several rows over one, and
// stays in their registers between its sum and its result.
#include "kernels/cuda/norm.h"

#include "kernels/cuda/device_activation.cuh"
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
  static constexpr int items = items_for(2);
  template <int length>
  struct Loaded {
    Packet<T, length> residual, branch;
  };
  Rows<T> residual, branch, sum, normed;
  Sum* inverse_rms;
  Sum width, epsilon;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, int column) const {
    Loaded<length> loaded;
    loaded.residual = load_packet<length>(residual.at(row, column));
    if (branch.data != nullptr) loaded.branch = load_packet<length>(branch.at(row, column));
    return loaded;
  }
  // Leaves the sum in `residual`.
  template <int length>
  __device__ __forceinline__ Sum contribution(Loaded<length>& loaded, std::int64_t row, int column) const {
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
  __device__ __forceinline__ Sum combine(std::int64_t row, Sum squares, bool writes) const {
    const Sum inverse = inverse_root(squares, width, epsilon);
    if (writes) inverse_rms[row] = inverse;
    return inverse;
  }
  template <int length>
  __device__ __forceinline__ Loaded<length> reload(std::int64_t row, int column) const {
    Loaded<length> loaded;
    loaded.residual = load_packet<length>((branch.data != nullptr ? sum : residual).at(row, column));
    return loaded;
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, Sum inverse, std::int64_t row,
                                         int column) const {
    store_packet(normed.at(row, column), make_packet<T, length>([&](int i) { return loaded.residual[i] * inverse; }));
  }
};

template <class T>
struct ResidualNormBackward {
  using Sum = Accumulated<T>;
  static constexpr bool finishes = true;
  static constexpr int items = items_for(3);
  template <int length>
  struct Loaded {
    Packet<T, length> d_normed, sum, d_residual;
  };
  Rows<T> d_normed, sum, d_residual, d_sum;
  const Sum* inverse_rms;
  Sum width;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, int column) const {
    Loaded<length> loaded;
    loaded.d_normed = load_packet<length>(d_normed.at(row, column));
    loaded.sum = load_packet<length>(sum.at(row, column));
    if (d_residual.data != nullptr) loaded.d_residual = load_packet<length>(d_residual.at(row, column));
    return loaded;
  }
  template <int length>
  __device__ __forceinline__ Sum contribution(const Loaded<length>& loaded, std::int64_t, int) const {
    Sum dot = 0;
#pragma unroll
    for (int i = 0; i < length; ++i) dot += loaded.d_normed[i] * loaded.sum[i];
    return dot;
  }
  // The factor of `sum` in the gradient.
  __device__ __forceinline__ Sum combine(std::int64_t row, Sum dot, bool) const {
    const Sum inverse = inverse_rms[row];
    return inverse * inverse * (dot * inverse) / width;
  }
  template <int length>
  __device__ __forceinline__ Loaded<length> reload(std::int64_t row, int column) const {
    return load<length>(row, column);
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, Sum coefficient, std::int64_t row,
                                         int column) const {
    const Sum inverse = inverse_rms[row];
    const bool past_the_norm = d_residual.data != nullptr;
    store_packet(d_sum.at(row, column), make_packet<T, length>([&](int i) {
                   const Sum gradient = inverse * loaded.d_normed[i] - coefficient * loaded.sum[i];
                   return past_the_norm ? loaded.d_residual[i] + gradient : gradient;
                 }));
  }
};

template <class T>
struct NormApply {
  static constexpr int items = items_for(1);
  template <int length>
  struct Loaded {
    Packet<T, length> sum;
    Accumulated<T> inverse;
  };
  Rows<T> sum, normed;
  const Accumulated<T>* inverse_rms;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    return {load_packet<length>(sum.at(row, column)), inverse_rms[row]};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t row, std::int64_t column) const {
    store_packet(normed.at(row, column), make_packet<T, length>([&](int i) { return loaded.sum[i] * loaded.inverse; }));
  }
};

template <class T>
struct SumRows {
  using Sum = Accumulated<T>;
  static constexpr bool finishes = false;
  static constexpr int items = items_for(1);
  template <int length>
  struct Loaded {
    Packet<T, length> values;
  };
  Rows<T> values;
  T* row_sums;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, int column) const {
    return {load_packet<length>(values.at(row, column))};
  }
  template <int length>
  __device__ __forceinline__ Sum contribution(const Loaded<length>& loaded, std::int64_t, int) const {
    Sum sum = 0;
#pragma unroll
    for (int i = 0; i < length; ++i) sum += loaded.values[i];
    return sum;
  }
  __device__ __forceinline__ Sum combine(std::int64_t row, Sum sum, bool writes) const {
    if (writes) row_sums[row] = round_to<T>(sum);
    return sum;
  }
};

// y = act(gate) * x * inverse_rms. With square_sum the inverse is computed and written, else it is read.
template <class T, Activation activation>
struct GatedNorm {
  using A = Accumulated<T>;
  static constexpr int items = items_for(2);
  template <int length>
  struct Loaded {
    Packet<T, length> x, gate;
    A statistic;
  };
  Rows<T> x, gate, y;
  const A* square_sum;   // null: inverse_rms is given
  A* inverse_rms;
  A width, epsilon;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    return {load_packet<length>(x.at(row, column)), load_packet<length>(gate.at(row, column)),
            square_sum != nullptr ? square_sum[row] : inverse_rms[row]};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t row, std::int64_t column) const {
    A inverse = loaded.statistic;
    if (square_sum != nullptr) {
      inverse = inverse_root(loaded.statistic, width, epsilon);
      if (column == 0) inverse_rms[row] = inverse;
    }
    store_packet(y.at(row, column), make_packet<T, length>([&](int i) {
                   return activate<activation>(loaded.gate[i]) * (loaded.x[i] * inverse);
                 }));
  }
};

template <class T, Activation activation>
struct GatedNormDot {
  using Sum = Accumulated<T>;
  static constexpr bool finishes = false;
  static constexpr int items = items_for(3);
  template <int length>
  struct Loaded {
    Packet<T, length> d_y, x, gate;
  };
  Rows<T> d_y, x, gate;
  const Sum* inverse_rms;
  Sum* dot;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, int column) const {
    return {load_packet<length>(d_y.at(row, column)), load_packet<length>(x.at(row, column)),
            load_packet<length>(gate.at(row, column))};
  }
  template <int length>
  __device__ __forceinline__ Sum contribution(const Loaded<length>& loaded, std::int64_t, int) const {
    Sum sum = 0;
#pragma unroll
    for (int i = 0; i < length; ++i) sum += loaded.d_y[i] * activate<activation>(loaded.gate[i]) * loaded.x[i];
    return sum;
  }
  __device__ __forceinline__ Sum combine(std::int64_t row, Sum sum, bool writes) const {
    if (writes) dot[row] = inverse_rms[row] * sum;
    return sum;
  }
};

template <class T, Activation activation>
struct GatedNormBackward {
  using A = Accumulated<T>;
  static constexpr int items = items_for(3);
  template <int length>
  struct Loaded {
    Packet<T, length> d_y, x, gate;
    A inverse, dot;
  };
  Rows<T> d_y, x, gate, d_x, d_gate;
  const A* inverse_rms;
  const A* dot;
  A width;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    return {load_packet<length>(d_y.at(row, column)), load_packet<length>(x.at(row, column)),
            load_packet<length>(gate.at(row, column)), inverse_rms[row], dot[row]};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t row, std::int64_t column) const {
    const A inverse = loaded.inverse, mean_dot = loaded.dot / width;
    A d_gates[length];
    store_packet(d_x.at(row, column), make_packet<T, length>([&](int i) {
                   const A normed = loaded.x[i] * inverse, upstream = loaded.d_y[i];
                   const Activated<A> activated = activate_with_derivative<activation>(loaded.gate[i]);
                   d_gates[i] = upstream * normed * activated.derivative;
                   return inverse * (upstream * activated.value - normed * mean_dot);
                 }));
    store_packet(d_gate.at(row, column), make_packet<T, length>([&](int i) { return d_gates[i]; }));
  }
};

}  // namespace

void residual_norm_forward(const Execution& execution, const Tensor& residual, const Tensor& branch, double epsilon,
                           const Tensor& sum, const Tensor& normed, const Tensor& inverse_rms) {
  const std::int64_t tokens = residual.size(0), width = residual.size(1);
  dispatch_floating(residual.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    const ResidualNormForward<T> operation{rows_of<T>(residual), rows_of<T>(branch), rows_of<T>(sum),
                                           rows_of<T>(normed), pointer_to<A>(inverse_rms), static_cast<A>(width),
                                           static_cast<A>(epsilon)};
    const bool packets =
        width % row_packet<T> == 0 && packets_aligned(row_packet<T>, {residual, branch, sum, normed});
    dispatch_length<row_packet<T>>(packets, [&](auto length) {
      launch_reduce_rows<length.value>(execution, operation, tokens, width);
    });
  });
}

void residual_norm_backward(const Execution& execution, const Tensor& d_normed, const Tensor& sum,
                            const Tensor& inverse_rms, const Tensor& d_residual, const Tensor& d_sum) {
  const std::int64_t tokens = sum.size(0), width = sum.size(1);
  dispatch_floating(sum.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    const ResidualNormBackward<T> operation{rows_of<T>(d_normed), rows_of<T>(sum), rows_of<T>(d_residual),
                                            rows_of<T>(d_sum), pointer_to<A>(inverse_rms), static_cast<A>(width)};
    const bool packets =
        width % row_packet<T> == 0 && packets_aligned(row_packet<T>, {d_normed, sum, d_residual, d_sum});
    dispatch_length<row_packet<T>>(packets, [&](auto length) {
      launch_reduce_rows<length.value>(execution, operation, tokens, width);
    });
  });
}

void norm_apply(const Execution& execution, const Tensor& sum, const Tensor& inverse_rms, const Tensor& normed) {
  dispatch_floating(sum.dtype(), [&]<class T>(T) {
    const NormApply<T> operation{rows_of<T>(sum), rows_of<T>(normed), pointer_to<Accumulated<T>>(inverse_rms)};
    dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {sum, normed}), [&](auto length) {
      launch_pass<length.value>(execution, operation, sum.size(0), sum.size(1));
    });
  });
}

void sum_rows(const Execution& execution, const Tensor& values, const Tensor& row_sums) {
  const std::int64_t width = values.size(1);
  dispatch_floating(values.dtype(), [&]<class T>(T) {
    const SumRows<T> operation{rows_of<T>(values), pointer_to<T>(row_sums)};
    const bool packets = width % row_packet<T> == 0 && packets_aligned(row_packet<T>, {values});
    dispatch_length<row_packet<T>>(packets, [&](auto length) {
      launch_reduce_rows<length.value>(execution, operation, values.size(0), width);
    });
  });
}

namespace {

// Both ways to y: with square_sum, inverse_rms is written; without, it is read.
void gate_and_normalize(const Execution& execution, const Tensor& x, const Tensor& square_sum, std::int64_t width,
                        double epsilon, const Tensor& gate, Activation gate_activation, const Tensor& y,
                        const Tensor& inverse_rms) {
  dispatch_floating(x.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    dispatch_activation(gate_activation, [&]<Activation activation>() {
      const GatedNorm<T, activation> operation{rows_of<T>(x), rows_of<T>(gate), rows_of<T>(y),
                                               pointer_to<A>(square_sum), pointer_to<A>(inverse_rms),
                                               static_cast<A>(width), static_cast<A>(epsilon)};
      dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {x, gate, y}), [&](auto length) {
        launch_pass<length.value>(execution, operation, x.size(0), x.size(1));
      });
    });
  });
}

}  // namespace

void gated_norm_forward(const Execution& execution, const Tensor& x, const Tensor& square_sum, std::int64_t width,
                        double epsilon, const Tensor& gate, Activation gate_activation, const Tensor& y,
                        const Tensor& inverse_rms) {
  gate_and_normalize(execution, x, square_sum, width, epsilon, gate, gate_activation, y, inverse_rms);
}

void gated_norm_apply(const Execution& execution, const Tensor& x, const Tensor& inverse_rms, const Tensor& gate,
                      Activation gate_activation, const Tensor& y) {
  gate_and_normalize(execution, x, Tensor(), x.size(1), 0.0, gate, gate_activation, y, inverse_rms);
}

void gated_norm_backward_dot(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& inverse_rms,
                             const Tensor& gate, Activation gate_activation, const Tensor& dot) {
  const std::int64_t local_width = x.size(1);
  dispatch_floating(x.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    dispatch_activation(gate_activation, [&]<Activation activation>() {
      const GatedNormDot<T, activation> operation{rows_of<T>(d_y), rows_of<T>(x), rows_of<T>(gate),
                                                  pointer_to<A>(inverse_rms), pointer_to<A>(dot)};
      const bool packets = local_width % row_packet<T> == 0 && packets_aligned(row_packet<T>, {d_y, x, gate});
      dispatch_length<row_packet<T>>(packets, [&](auto length) {
        launch_reduce_rows<length.value>(execution, operation, x.size(0), local_width);
      });
    });
  });
}

void gated_norm_backward(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& inverse_rms,
                         const Tensor& gate, Activation gate_activation, const Tensor& dot, std::int64_t width,
                         const Tensor& d_x, const Tensor& d_gate) {
  dispatch_floating(x.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    dispatch_activation(gate_activation, [&]<Activation activation>() {
      const GatedNormBackward<T, activation> operation{rows_of<T>(d_y),       rows_of<T>(x),
                                                       rows_of<T>(gate),      rows_of<T>(d_x),
                                                       rows_of<T>(d_gate),    pointer_to<A>(inverse_rms),
                                                       pointer_to<A>(dot),    static_cast<A>(width)};
      dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {d_y, x, gate, d_x, d_gate}), [&](auto length) {
        launch_pass<length.value>(execution, operation, x.size(0), x.size(1));
      });
    });
  });
}

}  // namespace fulmen::cuda
