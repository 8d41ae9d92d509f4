// Learned positions: threads over tokens forward, over positions backward.

#include "kernels/position_embedding.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vectorize.h"

namespace fulmen::cpu {
namespace {

template <class T, class G>
FULMEN_VECTORIZED void add_converted(const T* row, G* sum, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) sum[j] += static_cast<G>(row[j]);
}

template <class T, class G>
void add_positions(const Tensor& positions, const Tensor& d_out, const Tensor& d_weight) {
  const std::int64_t batch = positions.size(0), length = positions.size(1), width = d_out.size(1);
  parallel_rows(length, batch * width, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t t = first; t < last; ++t) {
      G* const sum = d_weight.as<G>() + positions.as<std::int64_t>()[t] * d_weight.stride(0);
      for (std::int64_t b = 0; b < batch; ++b)
        add_converted(d_out.as<T>() + (b * length + t) * d_out.stride(0), sum, width);
    }
  });
}

}  // namespace

void position_embedding_forward(const Execution&, const Tensor& positions, const Tensor& weight, const Tensor& out) {
  dispatch_fp32_fp64(weight.dtype(), [&]<class T>(T) {
    parallel_rows(out.size(0), out.size(1), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t t = first; t < last; ++t)
        add_converted(weight.as<T>() + positions.as<std::int64_t>()[t] * weight.stride(0),
                      out.as<T>() + t * out.stride(0), out.size(1));
    });
  });
}

void position_embedding_backward(const Execution&, const Tensor& positions, const Tensor& d_out,
                                 const Tensor& d_weight) {
  dispatch_fp32_fp64(d_out.dtype(), [&]<class T>(T) {
    dispatch_fp32_fp64(d_weight.dtype(), [&]<class G>(G) { add_positions<T, G>(positions, d_out, d_weight); });
  });
}

}  // namespace fulmen::cpu
