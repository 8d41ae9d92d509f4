// Token gates on a GPU: one pass each way; gradients of biases and rates take a pass of their own.
#include "kernels/token_gate.h"

#include "framework/cuda_check.h"
#include "kernels/cuda/device_columns.cuh"
#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/device_vector.cuh"

namespace fulmen::cuda {
namespace {

constexpr int threads = 256;

template <class A>
__device__ __forceinline__ A softplus(A u) {
  return max(u, A(0)) + log1p(exp(-abs(u)));
}

// Neither end loses digits.
template <class A>
__device__ __forceinline__ A sigmoid(A u) {
  const A e = exp(-abs(u));
  return (u >= A(0) ? A(1) : e) / (A(1) + e);
}

template <class A>
struct Gated {
  A value, derivative;  // by u
};

template <class T>
struct Gate {
  using A = Accumulated<T>;
  GateForm form;
  A divisor;
  Rows<const T> x;
  const A *bias, *log_rate;
  std::int64_t group;  // columns of a rate

  __device__ __forceinline__ Gated<A> at(std::int64_t row, std::int64_t column) const {
    const A u = to_accumulated(*x.at(row, column)) + (bias == nullptr ? A(0) : bias[column]);
    switch (form) {
      case GateForm::sigmoid: return {sigmoid(u), sigmoid(u) * sigmoid(-u)};
      case GateForm::softplus: return {softplus(u), sigmoid(u)};
      case GateForm::log_sigmoid: return {-softplus(-u) / divisor, sigmoid(-u) / divisor};
      case GateForm::negative_softplus: {
        const A rate = exp(log_rate[column / group]);
        return {-rate * softplus(u), -rate * sigmoid(u)};
      }
      case GateForm::negative_exponent: return {-exp(u), -exp(u)};
    }
    return {};
  }
};

template <class T>
Gate<T> gate_of(const TokenGate& gate, const Tensor& x) {
  using A = Accumulated<T>;
  return {gate.form,
          static_cast<A>(gate.divisor),
          rows_of<const T>(x),
          gate.bias ? pointer_to<const A>(gate.bias) : nullptr,
          gate.log_rate ? pointer_to<const A>(gate.log_rate) : nullptr,
          gate.log_rate ? x.size(1) / gate.log_rate.elements() : 1};
}

template <class T>
__global__ void __launch_bounds__(threads)
    forward_kernel(const Gate<T> gate, std::int64_t elements, std::int64_t width, Accumulated<T>* y) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (i < elements) y[i] = gate.at(i / width, i % width).value;
}

template <class T>
__global__ void __launch_bounds__(threads) backward_kernel(const Gate<T> gate, const Accumulated<T>* d_y,
                                                           std::int64_t elements, std::int64_t width, Rows<T> d_x) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (i < elements) *d_x.at(i / width, i % width) = round_to<T>(d_y[i] * gate.at(i / width, i % width).derivative);
}

// Sums for the bias, and for the logarithm of a rate, as if every column had its own.
template <class T>
struct ColumnGradients {
  using Sum = Accumulated<T>;
  static constexpr int sums = 2;
  Gate<T> gate;
  const Sum* d_y;
  std::int64_t width;

  template <int length>
  __device__ __forceinline__ void add(std::int64_t row, std::int64_t column, Sum (&totals)[sums][length]) const {
    static_assert(length == 1);
    const Sum upstream = d_y[row * width + column];
    const Gated<Sum> gated = gate.at(row, column);
    totals[0][0] += upstream * gated.derivative;
    totals[1][0] += upstream * gated.value;
  }
};

template <class A>
__global__ void add_rates_kernel(const A* columns, std::int64_t groups, std::int64_t group, A* d_log_rate) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (i >= groups) return;
  A sum = d_log_rate[i];
  for (std::int64_t j = 0; j < group; ++j) sum += columns[i * group + j];
  d_log_rate[i] = sum;
}

template <class T>
void add_vector_gradients(const Execution& execution, const TokenGate& gate, const Tensor& d_y, const Tensor& x,
                          const TokenGateGradients& gradients) {
  using A = Accumulated<T>;
  const std::int64_t tokens = x.size(0), width = x.size(1);
  Arena::Frame frame(*execution.scratch);
  const Tensor columns = gate.log_rate ? execution.scratch->take(gate.log_rate.dtype(), {width}) : Tensor();
  if (columns) FULMEN_CUDA_CHECK(cudaMemsetAsync(columns.data(), 0, columns.bytes(), stream_of(execution)));
  add_column_sums<1>(execution, ColumnGradients<T>{gate_of<T>(gate, x), pointer_to<const A>(d_y), width}, tokens, width,
                     {gradients.d_bias, columns});
  if (columns.is_null()) return;
  const std::int64_t groups = gate.log_rate.elements();
  add_rates_kernel<A><<<static_cast<unsigned>(divide_up(groups, threads)), threads, 0, stream_of(execution)>>>(
      pointer_to<const A>(columns), groups, width / groups, pointer_to<A>(gradients.d_log_rate));
  FULMEN_CUDA_CHECK_LAUNCH();
}

}  // namespace

void token_gate_forward(const Execution& execution, const TokenGate& gate, const Tensor& x, const Tensor& y) {
  dispatch_floating(x.dtype(), [&]<class T>(T) {
    forward_kernel<T><<<static_cast<unsigned>(divide_up(x.elements(), threads)), threads, 0, stream_of(execution)>>>(
        gate_of<T>(gate, x), x.elements(), x.size(1), pointer_to<Accumulated<T>>(y));
    FULMEN_CUDA_CHECK_LAUNCH();
  });
}

void token_gate_backward(const Execution& execution, const TokenGate& gate, const Tensor& d_y, const Tensor& x,
                         const TokenGateGradients& gradients) {
  dispatch_floating(x.dtype(), [&]<class T>(T) {
    // Before anything is written where x lies.
    if (gate.bias || gate.log_rate) add_vector_gradients<T>(execution, gate, d_y, x, gradients);
    backward_kernel<T><<<static_cast<unsigned>(divide_up(x.elements(), threads)), threads, 0, stream_of(execution)>>>(
        gate_of<T>(gate, x), pointer_to<const Accumulated<T>>(d_y), x.elements(), x.size(1), rows_of<T>(gradients.d_x));
    FULMEN_CUDA_CHECK_LAUNCH();
  });
}

}  // namespace fulmen::cuda
