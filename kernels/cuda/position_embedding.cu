// Learned positions on a GPU, one pass each way.

#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/device_vector.cuh"
#include "kernels/position_embedding.h"

namespace fulmen::cuda {
namespace {

template <class T>
struct AddPositions {
  static constexpr int items = items_for(2);
  template <int length>
  struct Loaded {
    Packet<T, length> out, added;
  };
  const std::int64_t* positions;
  Rows<T> weight, out;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    return {load_packet<length>(out.at(row, column)), load_packet<length>(weight.at(positions[row], column))};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t row, std::int64_t column) const {
    store_packet(out.at(row, column), make_packet<T, length>([&](int j) { return loaded.out[j] + loaded.added[j]; }));
  }
};

// A row here is a position: the rows of the batch that have it are added in their order.
template <class T, class G>
struct SumPositions {
  static constexpr int items = 1;
  template <int length>
  struct Loaded {
    Packet<G, length> sum;
  };
  const std::int64_t* positions;
  Rows<T> d_out;
  Rows<G> d_weight;
  std::int64_t batch, length_of_rows;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t row, std::int64_t column) const {
    return {load_packet<length>(d_weight.at(positions[row], column))};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t row, std::int64_t column) const {
    Accumulated<G> sums[length];
#pragma unroll
    for (int j = 0; j < length; ++j) sums[j] = loaded.sum[j];
    for (std::int64_t b = 0; b < batch; ++b) {
      const auto added = load_packet<length>(d_out.at(b * length_of_rows + row, column));
#pragma unroll
      for (int j = 0; j < length; ++j) sums[j] += added[j];
    }
    store_packet(d_weight.at(positions[row], column), make_packet<G, length>([&](int j) { return sums[j]; }));
  }
};

}  // namespace

void position_embedding_forward(const Execution& execution, const Tensor& positions, const Tensor& weight,
                                const Tensor& out) {
  dispatch_floating(weight.dtype(), [&]<class T>(T) {
    const AddPositions<T> operation{pointer_to<std::int64_t>(positions), rows_of<T>(weight), rows_of<T>(out)};
    dispatch_length<row_packet<T>>(packets_aligned(row_packet<T>, {weight, out}), [&](auto length) {
      launch_pass<length.value>(execution, operation, out.size(0), out.size(1));
    });
  });
}

void position_embedding_backward(const Execution& execution, const Tensor& positions, const Tensor& d_out,
                                 const Tensor& d_weight) {
  dispatch_floating(d_out.dtype(), [&]<class T>(T) {
    dispatch_floating(d_weight.dtype(), [&]<class G>(G) {
      if constexpr (sizeof(G) >= sizeof(T)) {
        constexpr int packet = row_packet<G>;
        const SumPositions<T, G> operation{pointer_to<std::int64_t>(positions), rows_of<T>(d_out), rows_of<G>(d_weight),
                                           positions.size(0), positions.size(1)};
        dispatch_length<packet>(packets_aligned(packet, {d_out, d_weight}), [&](auto length) {
          launch_pass<length.value>(execution, operation, positions.size(1), d_weight.size(1));
        });
      }
    });
  });
}

}  // namespace fulmen::cuda
