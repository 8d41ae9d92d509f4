// The product of a gated linear unit on a GPU, one pass each way.
#include "kernels/gated_linear_unit.h"

#include "kernels/cuda/device_activation.cuh"
#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/device_vector.cuh"

namespace fulmen::cuda {
namespace {

template <class T, Activation activation>
struct Forward {
  static constexpr int items = items_for(2);
  template <int length>
  struct Loaded {
    Packet<T, length> a, b;
  };
  Rows<T> a, b, y;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    return {load_packet<length>(a.at(row, column)), load_packet<length>(b.at(row, column))};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t row, std::int64_t column) const {
    store_packet(y.at(row, column),
                 make_packet<T, length>([&](int i) { return activate<activation>(loaded.a[i]) * loaded.b[i]; }));
  }
};

template <class T, Activation activation>
struct Backward {
  static constexpr int items = items_for(3);
  template <int length>
  struct Loaded {
    Packet<T, length> d_y, a, b;
  };
  Rows<T> d_y, a, b, d_a, d_b, y;  // y may be none

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    return {load_packet<length>(d_y.at(row, column)), load_packet<length>(a.at(row, column)),
            load_packet<length>(b.at(row, column))};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t row, std::int64_t column) const {
    Accumulated<T> d_bs[length], ys[length];
    store_packet(d_a.at(row, column), make_packet<T, length>([&](int i) {
                   const Activated<Accumulated<T>> activated = activate_with_derivative<activation>(loaded.a[i]);
                   const Accumulated<T> upstream = loaded.d_y[i];
                   d_bs[i] = upstream * activated.value;
                   ys[i] = activated.value * loaded.b[i];
                   return upstream * loaded.b[i] * activated.derivative;
                 }));
    store_packet(d_b.at(row, column), make_packet<T, length>([&](int i) { return d_bs[i]; }));
    if (y.data != nullptr) store_packet(y.at(row, column), make_packet<T, length>([&](int i) { return ys[i]; }));
  }
};

}  // namespace

void gated_linear_unit_forward(const Execution& execution, const Tensor& a, const Tensor& b, Activation activation,
                               const Tensor& y) {
  dispatch_floating(a.dtype(), [&]<class T>(T) {
    dispatch_activation(activation, [&]<Activation act>() {
      const Forward<T, act> operation{rows_of<T>(a), rows_of<T>(b), rows_of<T>(y)};
      dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {a, b, y}), [&](auto length) {
        launch_pass<length.value>(execution, operation, a.size(0), a.size(1));
      });
    });
  });
}

void gated_linear_unit_backward(const Execution& execution, const Tensor& d_y, const Tensor& a, const Tensor& b,
                                Activation activation, const Tensor& d_a, const Tensor& d_b, const Tensor& y) {
  dispatch_floating(a.dtype(), [&]<class T>(T) {
    dispatch_activation(activation, [&]<Activation act>() {
      const Backward<T, act> operation{rows_of<T>(d_y), rows_of<T>(a),   rows_of<T>(b),
                                       rows_of<T>(d_a), rows_of<T>(d_b), rows_of<T>(y)};
      dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {d_y, a, b, d_a, d_b, y}), [&](auto length) {
        launch_pass<length.value>(execution, operation, a.size(0), a.size(1));
      });
    });
  });
}

}  // namespace fulmen::cuda
