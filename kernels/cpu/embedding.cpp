// Token embedding: rows gathered by threads over tokens, gradients scattered by threads over columns.
#include "kernels/embedding.h"

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vectorize.h"

namespace fulmen::cpu {
namespace {

template <class T>
FULMEN_VECTORIZED void scale_row(const T* x, T factor, T* out, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) out[j] = factor * x[j];
}

template <class T, class G>
FULMEN_VECTORIZED void add_scaled_row(const T* x, G factor, G* sum, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) sum[j] += factor * static_cast<G>(x[j]);
}

template <class T, class G>
void scatter(const Tensor& tokens, const Tensor& order, const Tensor& d_out, std::int64_t first, double scale,
             const Tensor& d_weight) {
  // Each thread owns a range of columns and walks the tokens row by row: a row stays in its cache for all its terms.
  constexpr std::int64_t line = 32;
  const std::int64_t width = d_out.size(1), count = d_out.size(0), rows = d_weight.size(0);
  parallel_rows((width + line - 1) / line, line * count, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t column = begin * line, columns = std::min(end * line, width) - column;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t t = order.as<std::int32_t>()[i];
      const std::int64_t row = tokens.as<std::int32_t>()[t] - first;
      if (row < 0 || row >= rows) continue;
      add_scaled_row(d_out.as<T>() + t * d_out.stride(0) + column, static_cast<G>(scale),
                     d_weight.as<G>() + row * d_weight.stride(0) + column, columns);
    }
  });
}

}  // namespace

void embedding_forward(const Execution&, const Tensor& tokens, const Tensor& weight, std::int64_t first, double scale,
                       const Tensor& out) {
  const std::int64_t width = out.size(1);
  dispatch_fp32_fp64(weight.dtype(), [&]<class T>(T) {
    parallel_rows(out.size(0), width, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        T* const out_row = out.as<T>() + t * out.stride(0);
        const std::int64_t row = tokens.as<std::int32_t>()[t] - first;
        if (row < 0 || row >= weight.size(0)) {
          std::fill(out_row, out_row + width, T(0));
        } else {
          scale_row(weight.as<T>() + row * weight.stride(0), static_cast<T>(scale), out_row, width);
        }
      }
    });
  });
}

void embedding_backward(const Execution&, const Tensor& tokens, const TokenOrder& order, const Tensor& d_out,
                        std::int64_t first, double scale, const Tensor& d_weight) {
  dispatch_fp32_fp64(d_out.dtype(), [&]<class T>(T) {
    dispatch_fp32_fp64(d_weight.dtype(),
                       [&]<class G>(G) { scatter<T, G>(tokens, order.positions, d_out, first, scale, d_weight); });
  });
}

}  // namespace fulmen::cpu
