// Cross entropy on a GPU: a block per row of logits. Forward reads them once, backward reads and writes them once.
// Where a block can hold a row, both together read and write them once.
#include "kernels/cuda/cross_entropy.h"

#include "kernels/cuda/device_activation.cuh"
#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/device_reduce.cuh"
#include "kernels/cuda/device_vector.cuh"

namespace fulmen::cuda {
namespace {

constexpr int row_items = 4;
constexpr int most_row_threads = 256;  // several blocks on a multiprocessor hide each other's first and last accesses
constexpr int vector_threads = 256;
constexpr int held_threads = 512;  // at most, of a row that stays on the chip

template <class A>
__device__ __forceinline__ A minus_infinity() {
  return -static_cast<A>(INFINITY);
}

// Where a value is NaN, the other.
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

// The target's column here, or -1 when another rank holds it.
__device__ __forceinline__ std::int64_t local_column(std::int32_t target, std::int64_t first, int valid) {
  const std::int64_t column = target - first;
  return column >= 0 && column < valid ? column : -1;
}

// A running maximum and the sum of exp(l - maximum). NaN never is the maximum, but stays in the sum.
template <class A>
struct Exponentials {
  A maximum = minus_infinity<A>();
  A sum = 0;

  // The reference of the exponents; finite while the maximum is still minus infinity.
  __device__ __forceinline__ A shift() const { return maximum == minus_infinity<A>() ? A(0) : maximum; }
  __device__ __forceinline__ void raise(A larger) {
    if (!(larger > maximum)) return;
    const A before = maximum;
    maximum = larger;
    sum *= exponential(before - larger);
  }
};

template <int length, class T>
__global__ void __launch_bounds__(most_row_threads)
    local_kernel(Rows<const T> logits, const std::int32_t* targets, std::int64_t first, int valid,
                 Accumulated<T>* maximum, Accumulated<T>* exp_sum, Accumulated<T>* target_logit) {
  using A = Accumulated<T>;
  __shared__ A shared_maxima[most_row_threads / lanes_of_warp], shared_sums[most_row_threads / lanes_of_warp];
  const std::int64_t row = block_from_the_end();  // and backward from the first on, which is then in the L2 cache
  const T* const x = logits.at(row, 0);
  const int packets = valid / length, threads = blockDim.x;
  Exponentials<A> own;
  for (int base = threadIdx.x; base < packets; base += threads * row_items) {
    Packet<T, length> loaded[row_items];
#pragma unroll
    for (int i = 0; i < row_items; ++i)
      if (base + i * threads < packets) loaded[i] = load_packet<length>(x + (base + i * threads) * length);
    A largest = own.maximum;
#pragma unroll
    for (int i = 0; i < row_items; ++i) {
      if (base + i * threads >= packets) break;
#pragma unroll
      for (int j = 0; j < length; ++j) largest = loaded[i][j] > largest ? loaded[i][j] : largest;
    }
    own.raise(largest);
    const A shift = own.shift();
#pragma unroll
    for (int i = 0; i < row_items; ++i) {
      if (base + i * threads >= packets) break;
#pragma unroll
      for (int j = 0; j < length; ++j) own.sum += exponential(loaded[i][j] - shift);
    }
  }
  if (const int column = packets * length + threadIdx.x; column < valid) {
    const A logit = to_accumulated(x[column]);
    own.raise(logit);
    own.sum += exponential(logit - own.shift());
  }
  const A row_maximum = maximum_of_block(own.maximum, shared_maxima);
  own.raise(row_maximum);
  A sum = sum_of_row(own.sum, shared_sums);
  if (threadIdx.x != 0) return;
  // Logits of which none is a number above minus infinity have no such sum.
  if (valid > 0 && row_maximum == minus_infinity<A>()) sum = static_cast<A>(NAN);
  const std::int64_t column = local_column(targets[row], first, valid);
  maximum[row] = row_maximum;
  exp_sum[row] = sum;
  target_logit[row] = column < 0 ? A(0) : to_accumulated(x[column]);
}

template <int length, class T>
__global__ void __launch_bounds__(most_row_threads)
    backward_kernel(Rows<const T> logits, const std::int32_t* targets, const float* weights, std::int64_t first,
                    int valid, int columns, const Accumulated<T>* maximum, const Accumulated<T>* exp_sum,
                    const double* scale, Rows<T> d_logits) {
  using A = Accumulated<T>;
  const std::int64_t row = blockIdx.x;
  const T* const x = logits.at(row, 0);
  T* const d_x = d_logits.at(row, 0);
  const int packets = columns / length, threads = blockDim.x, tail = packets * length + threadIdx.x;
  // All that depends on the row is read at once, masked or not.
  const double weight = weights[row];
  const A factor = static_cast<A>(*scale * weight), row_sum = exp_sum[row], row_maximum = maximum[row];
  const auto target = static_cast<int>(local_column(targets[row], first, valid));
  if (weight == 0) {
    const Packet<T, length> zeros = make_packet<T, length>([](int) { return A(0); });
    for (int packet = threadIdx.x; packet < packets; packet += threads) store_packet(d_x + packet * length, zeros);
    if (tail < columns) d_x[tail] = round_to<T>(A(0));
    return;
  }
  const A ratio = factor / row_sum;
  for (int base = threadIdx.x; base < packets; base += threads * row_items) {
    Packet<T, length> loaded[row_items];
#pragma unroll
    for (int i = 0; i < row_items; ++i)
      if (base + i * threads < packets) loaded[i] = load_packet<length>(x + (base + i * threads) * length);
#pragma unroll
    for (int i = 0; i < row_items; ++i) {
      if (base + i * threads >= packets) break;
      const int column = (base + i * threads) * length;
      A gradients[length];
#pragma unroll
      for (int j = 0; j < length; ++j) gradients[j] = ratio * exponential(loaded[i][j] - row_maximum);
      if (target >= column && target < column + length) {
#pragma unroll
        for (int j = 0; j < length; ++j) gradients[j] -= column + j == target ? factor : A(0);
      }
      if (column + length > valid) {
#pragma unroll
        for (int j = 0; j < length; ++j)
          if (column + j >= valid) gradients[j] = A(0);
      }
      store_packet(d_x + column, make_packet<T, length>([&](int j) { return gradients[j]; }));
    }
  }
  if (tail < columns) {
    const A probability = ratio * exponential(to_accumulated(x[tail]) - row_maximum);
    d_x[tail] = round_to<T>(tail >= valid ? A(0) : probability - (tail == target ? factor : A(0)));
  }
}

// The largest of many packets' elements, NaN aside.
template <class T, int length>
class Largest {
 public:
  __device__ __forceinline__ void add(const Packet<T, length>& packet) {
#pragma unroll
    for (int j = 0; j < length; ++j) value_ = larger(packet[j], value_);
  }
  __device__ __forceinline__ Accumulated<T> value() const { return value_; }

 private:
  Accumulated<T> value_ = minus_infinity<Accumulated<T>>();
};

// Two bf16 are compared by one instruction.
template <int length>
requires(length % 2 == 0) class Largest<__nv_bfloat16, length> {
 public:
  __device__ __forceinline__ void add(const Packet<__nv_bfloat16, length>& packet) {
#pragma unroll
    for (int i = 0; i < length / 2; ++i)
      asm("max.bf16x2 %0, %1, %2;" : "=r"(pair_.pairs[0]) : "r"(pair_.pairs[0]), "r"(packet.pairs[i]));
  }
  __device__ __forceinline__ float value() const { return larger(pair_[0], pair_[1]); }

 private:
  Packet<__nv_bfloat16, 2> pair_{0xff80ff80u};  // of minus infinity
};

// A row's packets in a block: a thread's first packets in registers, the others in its own places of shared memory. So
// two blocks find room, and either computes while the other loads or stores.
template <int length, class T>
struct HeldRow {
  static constexpr int of_registers = 8, of_shared = length > 1 ? 8 : 0,
                       most = of_registers + of_shared;  // of a thread
  Packet<T, length> registers[of_registers];
  Packet<T, length>* shared;

  static constexpr std::size_t shared_bytes(int threads) {
    return sizeof(Packet<T, length>) * static_cast<std::size_t>(of_shared * threads);
  }
  __device__ __forceinline__ void load(const T* row, int packets) {
    const int threads = blockDim.x;
#pragma unroll
    for (int i = 0; i < of_registers; ++i)
      if (const int packet = threadIdx.x + i * threads; packet < packets)
        registers[i] = load_packet<length>(row + packet * length);
    if constexpr (of_shared > 0) {
      static_assert(sizeof(Packet<T, length>) == 16);
      for (int packet = threadIdx.x + of_registers * threads; packet < packets; packet += threads) {
        const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared + packet - of_registers * threads));
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to),
                     "l"(__cvta_generic_to_global(row + packet * length))
                     : "memory");
      }
    }
  }
  // Calls f(packet&, column) for each of the thread's packets.
  template <class F>
  __device__ __forceinline__ void for_each(int packets, const F& f) {
    const int threads = blockDim.x;
#pragma unroll
    for (int i = 0; i < of_registers; ++i) {
      keep_packed(registers[i]);
      if (const int packet = threadIdx.x + i * threads; packet < packets) f(registers[i], packet * length);
    }
    if constexpr (of_shared > 0) {
      asm volatile("cp.async.wait_all;" ::: "memory");  // it reads what it loaded itself
      for (int packet = threadIdx.x + of_registers * threads; packet < packets; packet += threads)
        f(shared[packet - of_registers * threads], packet * length);
    }
  }
};

// The gradients of the logits of a packet, which begins at `column`: ratio * exp(logit - shift), less `factor` at the
// target, and 0 from column `valid` on.
template <class T, int length, class A>
__device__ __forceinline__ Packet<T, length> gradients_of(const Packet<T, length>& logits, int column, int target,
                                                          int valid, A shift, A ratio, A factor) {
  A gradients[length];
#pragma unroll
  for (int j = 0; j < length; ++j) gradients[j] = ratio * exponential(logits[j] - shift);
  if (target >= column && target < column + length) {
#pragma unroll
    for (int j = 0; j < length; ++j) gradients[j] -= column + j == target ? factor : A(0);
  }
  if (column + length > valid) {
#pragma unroll
    for (int j = 0; j < length; ++j)
      if (column + j >= valid) gradients[j] = A(0);
  }
  return make_packet<T, length>([&](int j) { return gradients[j]; });
}

// Losses and gradients of rows that stay on the chip in between; null d_logits: losses alone. Padded columns become
// minus infinity, whose share is 0.
template <int length, class T>
__global__ void __launch_bounds__(held_threads, 2)
    held_row_kernel(Rows<const T> logits, const std::int32_t* targets, const float* weights, int valid, int columns,
                    const double* scale, double* losses, Rows<T> d_logits) {
  using A = Accumulated<T>;
  extern __shared__ __align__(16) unsigned char shared_packets[];
  __shared__ A shared_maxima[held_threads / lanes_of_warp], shared_sums[held_threads / lanes_of_warp];
  const std::int64_t row = block_from_the_end();
  const T* const x = logits.at(row, 0);
  const bool with_gradient = d_logits.data != nullptr;
  T* const d_x = with_gradient ? d_logits.at(row, 0) : nullptr;
  const int packets = columns / length;
  const double weight = weights[row];
  if (weight == 0) {
    const Packet<T, length> zeros = make_packet<T, length>([](int) { return A(0); });
    for (int packet = threadIdx.x; with_gradient && packet < packets; packet += blockDim.x)
      store_packet(d_x + packet * length, zeros);
    if (threadIdx.x == 0) losses[row] = 0.0;
    return;
  }
  HeldRow<length, T> held;
  held.shared = reinterpret_cast<Packet<T, length>*>(shared_packets);
  held.load(x, packets);
  const auto target = static_cast<int>(local_column(targets[row], 0, valid));
  const A factor = with_gradient ? static_cast<A>(*scale * weight) : A(0);
  const A target_logit =
      target < 0 ? A(0) : to_accumulated(x[target]);  // before anything is stored, perhaps in its place

  Largest<T, length> largest;
  held.for_each(packets, [&](Packet<T, length>& packet, int column) {
    if (column + length > valid) {
      const Packet<T, length> padded = packet;
      packet = make_packet<T, length>([&](int j) { return column + j < valid ? padded[j] : minus_infinity<A>(); });
    }
    largest.add(packet);
  });
  Exponentials<A> own;
  own.maximum = maximum_of_block(largest.value(), shared_maxima);
  const A shift = own.shift();
  held.for_each(packets, [&](Packet<T, length>& packet, int) {
#pragma unroll
    for (int j = 0; j < length; ++j) own.sum += exponential(packet[j] - shift);
  });
  A sum = sum_of_row(own.sum, shared_sums);
  if (own.maximum == minus_infinity<A>()) sum = static_cast<A>(NAN);  // no number above minus infinity
  if (threadIdx.x == 0)
    losses[row] =
        weight * (log(static_cast<double>(sum)) + static_cast<double>(own.maximum) - static_cast<double>(target_logit));
  if (!with_gradient) return;
  const A ratio = factor / sum;
  held.for_each(packets, [&](Packet<T, length>& packet, int column) {
    store_packet(d_x + column, gradients_of(packet, column, target, valid, shift, ratio, factor));
  });
}

template <class A>
__global__ void rescale_kernel(const A* local_maximum, const A* global_maximum, A* exp_sum, std::int64_t count) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * vector_threads + threadIdx.x;
  if (t < count) exp_sum[t] *= exp(local_maximum[t] - global_maximum[t]);
}

template <class A>
__global__ void losses_kernel(const A* maximum, const A* exp_sum, const A* target_logit, const float* weights,
                              double* losses, std::int64_t count) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * vector_threads + threadIdx.x;
  if (t >= count) return;
  const double weight = weights[t];
  const double margin = static_cast<double>(maximum[t]) - static_cast<double>(target_logit[t]);
  losses[t] = weight == 0 ? 0.0 : weight * (log(static_cast<double>(exp_sum[t])) + margin);
}

template <class T>
Rows<const T> read_rows(const Tensor& x) {
  return {pointer_to<const T>(x), x.stride(0)};
}

// A block is of whole warps.
int threads_for(std::int64_t packets) {
  return std::max(lanes_of_warp, round_threads(divide_up(packets, row_items), most_row_threads));
}

void check_columns(const Tensor& logits) {
  FULMEN_CHECK(logits.size(1) < (std::int64_t{1} << 30) && logits.size(0) <= 0x7fffffff, "logits are {}",
               logits.describe());
}

unsigned blocks_for(std::int64_t count) { return static_cast<unsigned>(divide_up(count, vector_threads)); }

}  // namespace

void cross_entropy_local(const Execution& execution, const Tensor& logits, const Tensor& targets, std::int64_t first,
                         std::int64_t valid, const Tensor& maximum, const Tensor& exp_sum, const Tensor& target_logit) {
  check_columns(logits);
  dispatch_floating(logits.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {logits}), [&](auto length) {
      local_kernel<length.value>
          <<<static_cast<unsigned>(logits.size(0)), threads_for(valid / length.value), 0, stream_of(execution)>>>(
              read_rows<T>(logits), pointer_to<std::int32_t>(targets), first, static_cast<int>(valid),
              pointer_to<A>(maximum), pointer_to<A>(exp_sum), pointer_to<A>(target_logit));
    });
  });
  FULMEN_CUDA_CHECK_LAUNCH();
}

void cross_entropy_rescale(const Execution& execution, const Tensor& local_maximum, const Tensor& global_maximum,
                           const Tensor& exp_sum) {
  const std::int64_t count = exp_sum.size(0);
  dispatch_fp32_fp64(exp_sum.dtype(), [&]<class A>(A) {
    rescale_kernel<A><<<blocks_for(count), vector_threads, 0, stream_of(execution)>>>(
        pointer_to<A>(local_maximum), pointer_to<A>(global_maximum), pointer_to<A>(exp_sum), count);
  });
  FULMEN_CUDA_CHECK_LAUNCH();
}

void cross_entropy_losses(const Execution& execution, const Tensor& maximum, const Tensor& exp_sum,
                          const Tensor& target_logit, const Tensor& weights, const Tensor& losses) {
  const std::int64_t count = losses.size(0);
  dispatch_fp32_fp64(maximum.dtype(), [&]<class A>(A) {
    losses_kernel<A><<<blocks_for(count), vector_threads, 0, stream_of(execution)>>>(
        pointer_to<A>(maximum), pointer_to<A>(exp_sum), pointer_to<A>(target_logit), pointer_to<float>(weights),
        pointer_to<double>(losses), count);
  });
  FULMEN_CUDA_CHECK_LAUNCH();
}

void cross_entropy_backward(const Execution& execution, const Tensor& logits, const Tensor& targets,
                            const Tensor& weights, std::int64_t first, std::int64_t valid, const Tensor& maximum,
                            const Tensor& exp_sum, const Tensor& scale, const Tensor& d_logits) {
  check_columns(logits);
  dispatch_floating(logits.dtype(), [&]<class T>(T) {
    using A = Accumulated<T>;
    dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {logits, d_logits}), [&](auto length) {
      backward_kernel<length.value><<<static_cast<unsigned>(logits.size(0)), threads_for(logits.size(1) / length.value),
                                      0, stream_of(execution)>>>(
          read_rows<T>(logits), pointer_to<std::int32_t>(targets), pointer_to<float>(weights), first,
          static_cast<int>(valid), static_cast<int>(logits.size(1)), pointer_to<A>(maximum), pointer_to<A>(exp_sum),
          pointer_to<double>(scale), rows_of<T>(d_logits));
    });
  });
  FULMEN_CUDA_CHECK_LAUNCH();
}

bool cross_entropy(const Execution& execution, const Tensor& logits, const Tensor& targets, const Tensor& weights,
                   std::int64_t valid, const Tensor& scale, const Tensor& losses, const Tensor& d_logits) {
  check_columns(logits);
  bool held = false;
  dispatch_floating(logits.dtype(), [&]<class T>(T) {
    const std::int64_t columns = logits.size(1);
    const bool aligned = columns % row_packet<T> == 0 && packets_aligned(row_packet<T>, {logits, d_logits});
    dispatch_length<row_packet<T>>(aligned, [&](auto length) {
      using Row = HeldRow<length.value, T>;
      const std::int64_t needed = divide_up(columns / length.value, Row::most);
      held = needed <= held_threads;
      if (!held) return;
      const int threads = std::max(lanes_of_warp, round_threads(needed, held_threads));
      const auto kernel = held_row_kernel<length.value, T>;
      FULMEN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             static_cast<int>(Row::shared_bytes(held_threads))));
      FULMEN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                             cudaSharedmemCarveoutMaxShared));  // for two blocks
      kernel<<<static_cast<unsigned>(logits.size(0)), threads, Row::shared_bytes(threads), stream_of(execution)>>>(
          read_rows<T>(logits), pointer_to<std::int32_t>(targets), pointer_to<float>(weights), static_cast<int>(valid),
          static_cast<int>(columns), pointer_to<double>(scale), pointer_to<double>(losses), rows_of<T>(d_logits));
      FULMEN_CUDA_CHECK_LAUNCH();
    });
  });
  return held;
}

}  // namespace fulmen::cuda
