// The activation after a bias on a GPU, one pass each way; the gradient of the bias takes a pass of its own.
#include "kernels/activation_function.h"

#include "kernels/cuda/device_activation.cuh"
#include "kernels/cuda/device_columns.cuh"
#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/device_vector.cuh"

namespace fulmen::cuda {
namespace {

// x + bias, of a packet; either may be none.
template <class T, int length>
struct Argument {
  Packet<T, length> x, bias;
  bool has_x, has_bias;

  __device__ __forceinline__ Argument(Rows<T> from, const T* biases, std::int64_t row, std::int64_t column)
      : has_x(from.data != nullptr), has_bias(biases != nullptr) {
    if (has_x) x = load_packet<length>(static_cast<const T*>(from.at(row, column)));
    if (has_bias) bias = load_packet<length>(biases + column);
  }
  Argument() = default;
  __device__ __forceinline__ Accumulated<T> operator[](int i) const {
    using A = Accumulated<T>;
    return (has_x ? x[i] : A(0)) + (has_bias ? bias[i] : A(0));
  }
};

template <class T, Activation activation>
struct Forward {
  static constexpr int items = items_for(1);
  template <int length>
  using Loaded = Argument<T, length>;
  Rows<T> x, y;
  const T* bias;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    return {x, bias, row, column};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t row, std::int64_t column) const {
    store_packet(y.at(row, column), make_packet<T, length>([&](int i) { return activate<activation>(loaded[i]); }));
  }
};

template <class T, Activation activation>
struct Backward {
  static constexpr int items = items_for(2);
  template <int length>
  struct Loaded {
    Packet<T, length> d_y;
    Argument<T, length> argument;
  };
  Rows<T> d_y, x, d_x, y;  // x, d_x and y may be none
  const T* bias;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    return {load_packet<length>(static_cast<const T*>(d_y.at(row, column))), {x, bias, row, column}};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t row, std::int64_t column) const {
    Accumulated<T> ys[length];
    const Packet<T, length> gradient = make_packet<T, length>([&](int i) {
      const Activated<Accumulated<T>> activated = activate_with_derivative<activation>(loaded.argument[i]);
      ys[i] = activated.value;
      return loaded.d_y[i] * activated.derivative;
    });
    if (d_x.data != nullptr) store_packet(d_x.at(row, column), gradient);
    if (y.data != nullptr) store_packet(y.at(row, column), make_packet<T, length>([&](int i) { return ys[i]; }));
  }
};

template <class T, Activation activation>
struct BiasGradient {
  using Sum = Accumulated<T>;
  static constexpr int sums = 1;
  Rows<T> d_y, x;
  const T* bias;

  template <int length>
  __device__ __forceinline__ void add(std::int64_t row, std::int64_t column, Sum (&totals)[sums][length]) const {
    const Packet<T, length> upstream = load_packet<length>(static_cast<const T*>(d_y.at(row, column)));
    const Argument<T, length> argument(x, bias, row, column);
#pragma unroll
    for (int i = 0; i < length; ++i)
      totals[0][i] += upstream[i] * activate_with_derivative<activation>(argument[i]).derivative;
  }
};

}  // namespace

void activation_function_forward(const Execution& execution, const Tensor& x, const Tensor& bias, Activation activation,
                                 const Tensor& y) {
  dispatch_floating(x.dtype(), [&]<class T>(T) {
    dispatch_every_activation(activation, [&]<Activation act>() {
      const Forward<T, act> operation{rows_of<T>(x), rows_of<T>(y), pointer_to<T>(bias)};
      dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {x, bias, y}), [&](auto length) {
        launch_pass<length.value>(execution, operation, x.size(0), x.size(1));
      });
    });
  });
}

void activation_function_backward(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& bias,
                                  Activation activation, const Tensor& d_x, const Tensor& d_bias, const Tensor& y) {
  const std::int64_t tokens = d_y.size(0), width = d_y.size(1);
  dispatch_floating(d_y.dtype(), [&]<class T>(T) {
    dispatch_every_activation(activation, [&]<Activation act>() {
      if (d_bias) {  // before anything is written where d_y or x lie
        const BiasGradient<T, act> sums{rows_of<T>(d_y), rows_of<T>(x), pointer_to<T>(bias)};
        const bool packets = width % row_packet<T> == 0 && packets_aligned(row_packet<T>, {d_y, x, bias});
        dispatch_length<row_packet<T>>(
            packets, [&](auto length) { add_column_sums<length.value>(execution, sums, tokens, width, {d_bias}); });
      }
      if (d_x.is_null() && y.is_null()) return;
      const Backward<T, act> operation{rows_of<T>(d_y), rows_of<T>(x), rows_of<T>(d_x), rows_of<T>(y),
                                       pointer_to<T>(bias)};
      dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {d_y, x, bias, d_x, y}), [&](auto length) {
        launch_pass<length.value>(execution, operation, tokens, width);
      });
    });
  });
}

}  // namespace fulmen::cuda
