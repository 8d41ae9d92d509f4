// Plain passes over memory on a GPU, and sums in two stages whose order never changes.
#include "kernels/elementwise.h"

#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/device_reduce.cuh"
#include "kernels/cuda/device_vector.cuh"

namespace fulmen::cuda {
namespace {

template <class T>
struct Add {
  static constexpr int items = items_for(2);
  template <int length>
  struct Loaded {
    Packet<T, length> a, b;
  };
  const T* a;
  const T* b;
  T* out;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t, std::int64_t i) const {
    return {load_packet<length>(a + i), load_packet<length>(b + i)};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t, std::int64_t i) const {
    store_packet(out + i, make_packet<T, length>([&](int j) { return loaded.a[j] + loaded.b[j]; }));
  }
};

template <class T>
struct AddScaled {
  static constexpr int items = items_for(2);
  template <int length>
  struct Loaded {
    Packet<T, length> a, b;
  };
  const T* a;
  const T* b;
  T* out;
  Accumulated<T> a_scale, b_scale;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t, std::int64_t i) const {
    return {load_packet<length>(a + i), load_packet<length>(b + i)};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t, std::int64_t i) const {
    store_packet(out + i, make_packet<T, length>([&](int j) { return a_scale * loaded.a[j] + b_scale * loaded.b[j]; }));
  }
};

template <class T>
struct AddTo {
  static constexpr int items = items_for(2);
  template <int length>
  struct Loaded {
    Packet<T, length> out, a;
  };
  Rows<T> out, a;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    return {load_packet<length>(out.at(row, column)), load_packet<length>(a.at(row, column))};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t row, std::int64_t column) const {
    store_packet(out.at(row, column), make_packet<T, length>([&](int j) { return loaded.out[j] + loaded.a[j]; }));
  }
};

// Unused parts are null.
template <class T>
struct SumParts {
  static constexpr int items = 1;
  template <int length>
  struct Loaded {
    Packet<T, length> parts[most_parts];
  };
  const T* parts[most_parts];
  T* out;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t, std::int64_t i) const {
    Loaded<length> loaded;
#pragma unroll
    for (int p = 0; p < most_parts; ++p)
      if (parts[p] != nullptr) loaded.parts[p] = load_packet<length>(parts[p] + i);
    return loaded;
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t, std::int64_t i) const {
    store_packet(out + i, make_packet<T, length>([&](int j) {
                   Accumulated<T> sum = loaded.parts[0][j];
#pragma unroll
                   for (int p = 1; p < most_parts; ++p)
                     if (parts[p] != nullptr) sum += loaded.parts[p][j];
                   return sum;
                 }));
  }
};

template <class T>
struct Scale {
  static constexpr int items = items_for(1);
  template <int length>
  struct Loaded {
    Packet<T, length> x;
  };
  T* x;
  Accumulated<T> factor;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t, std::int64_t i) const {
    return {load_packet<length>(x + i)};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t, std::int64_t i) const {
    store_packet(x + i, make_packet<T, length>([&](int j) { return loaded.x[j] * factor; }));
  }
};

// The dimensions of a copy, as few as can be: rows of unit stride, then the outer dimensions that cannot be joined,
// from the inside. Strides in elements.
struct CopyShape {
  std::int64_t width = 1, rows = 1;
  int outer = 0;
  std::int64_t sizes[max_tensor_rank]{}, from_strides[max_tensor_rank]{}, to_strides[max_tensor_rank]{};
};

CopyShape joined(const Tensor& from, const Tensor& to) {
  CopyShape shape;
  if (from.rank() == 0) return shape;
  shape.width = from.size(-1);
  for (int d = from.rank() - 2; d >= 0; --d) {
    if (from.size(d) == 1) continue;
    const int last = shape.outer - 1;
    const std::int64_t from_next = last < 0 ? shape.width : shape.from_strides[last] * shape.sizes[last];
    const std::int64_t to_next = last < 0 ? shape.width : shape.to_strides[last] * shape.sizes[last];
    if (from.stride(d) == from_next && to.stride(d) == to_next) {
      (last < 0 ? shape.width : shape.sizes[last]) *= from.size(d);
      continue;
    }
    shape.sizes[shape.outer] = from.size(d);
    shape.from_strides[shape.outer] = from.stride(d);
    shape.to_strides[shape.outer] = to.stride(d);
    ++shape.outer;
  }
  for (int d = 0; d < shape.outer; ++d) shape.rows *= shape.sizes[d];
  return shape;
}

// One row of a copy. From and To are floating-point types, or the same plain type of the size in which bytes are moved.
template <class From, class To>
struct CopyRow {
  template <int length>
  struct Loaded {
    Packet<From, length> values;
  };
  const From* from;
  To* to;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t, std::int64_t column) const {
    return {load_packet<length>(from + column)};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t, std::int64_t column) const {
    if constexpr (std::is_same_v<From, To>)
      store_packet(to + column, loaded.values);
    else
      store_packet(to + column, make_packet<To, length>([&](int j) { return loaded.values[j]; }));
  }
};

template <class From, class To>
struct Copy {
  static constexpr int items = items_for(1);
  const From* from;
  To* to;
  CopyShape shape;

  __device__ __forceinline__ CopyRow<From, To> for_row(std::int64_t row) const {
    std::int64_t from_offset = 0, to_offset = 0;
#pragma unroll
    for (int d = 0; d < max_tensor_rank - 1; ++d) {
      if (d >= shape.outer) break;
      const std::int64_t next = d + 1 == shape.outer ? 0 : row / shape.sizes[d];
      const std::int64_t position = row - next * shape.sizes[d];
      from_offset += position * shape.from_strides[d];
      to_offset += position * shape.to_strides[d];
      row = next;
    }
    return {from + from_offset, to + to_offset};
  }
};

// Moves units of `Unit`, the largest that divides the addresses, the rows and the strides.
template <class Unit>
void move_units(const Execution& execution, const Tensor& from, const Tensor& to, CopyShape shape) {
  const auto size = static_cast<std::int64_t>(size_of(from.dtype())), unit = static_cast<std::int64_t>(sizeof(Unit));
  shape.width = shape.width * size / unit;
  for (int d = 0; d < shape.outer; ++d) {
    shape.from_strides[d] = shape.from_strides[d] * size / unit;
    shape.to_strides[d] = shape.to_strides[d] * size / unit;
  }
  launch_pass<1>(execution, Copy<Unit, Unit>{pointer_to<Unit>(from), pointer_to<Unit>(to), shape}, shape.rows,
                 shape.width);
}

void move_bytes(const Execution& execution, const Tensor& from, const Tensor& to, const CopyShape& shape) {
  const auto size = static_cast<std::int64_t>(size_of(from.dtype()));
  // Its lowest bit shows the least alignment of all.
  std::uint64_t all = reinterpret_cast<std::uintptr_t>(from.data()) | reinterpret_cast<std::uintptr_t>(to.data()) |
                      static_cast<std::uint64_t>(shape.width * size);
  for (int d = 0; d < shape.outer; ++d)
    all |= static_cast<std::uint64_t>((shape.from_strides[d] | shape.to_strides[d]) * size);
  if (all % 16 == 0) return move_units<uint4>(execution, from, to, shape);
  if (all % 8 == 0) return move_units<std::uint64_t>(execution, from, to, shape);
  if (all % 4 == 0) return move_units<std::uint32_t>(execution, from, to, shape);
  if (all % 2 == 0) return move_units<std::uint16_t>(execution, from, to, shape);
  move_units<std::uint8_t>(execution, from, to, shape);
}

constexpr int sum_threads = 256;
constexpr int sum_items = 4;
// Fixed, so that a sum does not depend on the card: eight blocks for each multiprocessor of an H200.
constexpr std::int64_t most_sum_blocks = 1056;

// partials[block] = the block's share of the sum of x or of its squares.
template <bool squares, int length, class T>
__global__ void __launch_bounds__(sum_threads) partial_sums_kernel(const T* x, std::int64_t count, double* partials) {
  __shared__ double shared[sum_threads / lanes_of_warp];
  const std::int64_t packets = count / length, threads = static_cast<std::int64_t>(gridDim.x) * sum_threads;
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * sum_threads + threadIdx.x;
  const auto term = [](auto element) {
    const double value = to_accumulated(element);
    return squares ? value * value : value;
  };
  double sum = 0;
  for (std::int64_t first = thread; first < packets; first += threads * sum_items) {
    Packet<T, length> loaded[sum_items];
#pragma unroll
    for (int i = 0; i < sum_items; ++i)
      if (first + i * threads < packets) loaded[i] = load_packet<length>(x + (first + i * threads) * length);
#pragma unroll
    for (int i = 0; i < sum_items; ++i) {
      if (first + i * threads >= packets) break;
#pragma unroll
      for (int j = 0; j < length; ++j) sum += term(loaded[i][j]);
    }
  }
  if (packets * length + thread < count) sum += term(x[packets * length + thread]);
  sum = sum_of_row(sum, shared);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// total += the partial sums, by one block.
__global__ void __launch_bounds__(sum_threads) total_kernel(const double* partials, int count, double* total) {
  __shared__ double shared[sum_threads / lanes_of_warp];
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += sum_threads) sum += partials[i];
  sum = sum_of_row(sum, shared);
  if (threadIdx.x == 0) *total += sum;
}

template <bool squares, class T>
void add_to_total(const Execution& execution, const Tensor& x, const Tensor& total) {
  const std::int64_t count = x.elements();
  constexpr std::int64_t of_block = sum_threads * sum_items * vector_length<T>;
  const auto blocks = static_cast<int>(std::min(divide_up(count, of_block), most_sum_blocks));
  Arena::Frame frame(*execution.scratch);
  const Tensor partials = execution.scratch->take(DType::fp64, {blocks});
  dispatch_length<vector_length<T>>(packets_aligned(vector_length<T>, {x.flatten()}), [&](auto length) {
    partial_sums_kernel<squares, length.value>
        <<<blocks, sum_threads, 0, stream_of(execution)>>>(pointer_to<T>(x), count, pointer_to<double>(partials));
  });
  FULMEN_CUDA_CHECK_LAUNCH();
  total_kernel<<<1, sum_threads, 0, stream_of(execution)>>>(pointer_to<double>(partials), blocks,
                                                            pointer_to<double>(total));
  FULMEN_CUDA_CHECK_LAUNCH();
}

}  // namespace

void fill_zero(const Execution& execution, const Tensor& x) {
  FULMEN_CUDA_CHECK(cudaMemsetAsync(x.data(), 0, x.bytes(), stream_of(execution)));
}

void add(const Execution& execution, const Tensor& a, const Tensor& b, const Tensor& out) {
  dispatch_floating(a.dtype(), [&]<class T>(T) {
    const Add<T> operation{pointer_to<T>(a), pointer_to<T>(b), pointer_to<T>(out)};
    const bool packets = packets_aligned(row_packet<T>, {a.flatten(), b.flatten(), out.flatten()});
    dispatch_length<row_packet<T>>(
        packets, [&](auto length) { launch_pass<length.value>(execution, operation, 1, a.elements()); });
  });
}

void add_scaled(const Execution& execution, const Tensor& a, double a_scale, const Tensor& b, double b_scale,
                const Tensor& out) {
  dispatch_floating(a.dtype(), [&]<class T>(T) {
    const AddScaled<T> operation{pointer_to<T>(a), pointer_to<T>(b), pointer_to<T>(out),
                                 static_cast<Accumulated<T>>(a_scale), static_cast<Accumulated<T>>(b_scale)};
    const bool packets = packets_aligned(row_packet<T>, {a.flatten(), b.flatten(), out.flatten()});
    dispatch_length<row_packet<T>>(
        packets, [&](auto length) { launch_pass<length.value>(execution, operation, 1, a.elements()); });
  });
}

void add_to(const Execution& execution, const Tensor& out, const Tensor& a) {
  dispatch_floating(out.dtype(), [&]<class T>(T) {
    const AddTo<T> operation{rows_of<T>(out), rows_of<T>(a)};
    dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {out, a}), [&](auto length) {
      launch_pass<length.value>(execution, operation, out.size(0), out.size(1));
    });
  });
}

void sum_parts(const Execution& execution, std::span<const Tensor> parts, const Tensor& out) {
  dispatch_floating(out.dtype(), [&]<class T>(T) {
    bool packets = packets_aligned(row_packet<T>, {out.flatten()});
    for (const Tensor& part : parts) packets = packets && packets_aligned(row_packet<T>, {part.flatten()});
    SumParts<T> operation{{}, pointer_to<T>(out)};
    for (std::size_t p = 0; p < parts.size(); ++p) operation.parts[p] = pointer_to<T>(parts[p]);
    dispatch_length<row_packet<T>>(
        packets, [&](auto length) { launch_pass<length.value>(execution, operation, 1, out.elements()); });
  });
}

void scale(const Execution& execution, const Tensor& x, double factor) {
  dispatch_floating(x.dtype(), [&]<class T>(T) {
    const Scale<T> operation{pointer_to<T>(x), static_cast<Accumulated<T>>(factor)};
    dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {x.flatten()}), [&](auto length) {
      launch_pass<length.value>(execution, operation, 1, x.elements());
    });
  });
}

void copy(const Execution& execution, const Tensor& from, const Tensor& to) {
  if (from.dtype() == to.dtype() && from.is_contiguous() && to.is_contiguous()) {
    FULMEN_CUDA_CHECK(
        cudaMemcpyAsync(to.data(), from.data(), from.bytes(), cudaMemcpyDeviceToDevice, stream_of(execution)));
    return;
  }
  const CopyShape shape = joined(from, to);
  if (from.dtype() == to.dtype()) return move_bytes(execution, from, to, shape);
  dispatch_floating(from.dtype(), [&]<class From>(From) {
    dispatch_floating(to.dtype(), [&]<class To>(To) {
      if constexpr (!std::is_same_v<From, To>) {
        // Four elements each: 16 bytes of fp32, 8 of bf16.
        constexpr int length = 4;
        const Copy<From, To> operation{pointer_to<From>(from), pointer_to<To>(to), shape};
        bool packets =
            packets_aligned(length, {Tensor(from.data(), from.dtype(), {1}), Tensor(to.data(), to.dtype(), {1})});
        for (int d = 0; d < shape.outer; ++d)
          packets = packets && shape.from_strides[d] % length == 0 && shape.to_strides[d] % length == 0;
        dispatch_length<length>(packets, [&](auto elements) {
          launch_pass<elements.value>(execution, operation, shape.rows, shape.width);
        });
      }
    });
  });
}

void add_sum_of_squares(const Execution& execution, const Tensor& x, const Tensor& total) {
  dispatch_floating(x.dtype(), [&]<class T>(T) { add_to_total<true, T>(execution, x, total); });
}

void add_sum(const Execution& execution, const Tensor& x, const Tensor& total) {
  add_to_total<false, double>(execution, x, total);
}

}  // namespace fulmen::cuda
