// Matrix products through oneDNN (fp32, where it is built in) and OpenBLAS.
#include "kernels/gemm.h"

#include <algorithm>

#include <cblas.h>
#ifdef FULMEN_ONEDNN
#include <oneapi/dnnl/dnnl.h>
#endif

#include "kernels/cpu/matrix_vector.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vectorize.h"
#include "kernels/elementwise.h"

namespace fulmen::cpu {
namespace {

template <class T>
FULMEN_VECTORIZED void add_row(const float* product, T* sum, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) sum[j] += static_cast<T>(product[j]);
}

// The libraries ask for a row stride of at least a row, also where there is one row and the stride means nothing.
std::int64_t leading_dimension(const Tensor& x) {
  return x.size(0) > 1 ? x.stride(0) : std::max<std::int64_t>(x.size(1), 1);
}

// c = 0 where nothing is to be accumulated into.
void clear(const Tensor& c) {
  dispatch_fp32_fp64(c.dtype(), [&]<class T>(T) {
    for (std::int64_t i = 0; i < c.size(0); ++i) std::fill_n(c.as<T>() + i * c.stride(0), c.size(1), T(0));
  });
}

blasint narrow(std::int64_t value) {
  FULMEN_CHECK(value <= std::int64_t{1} << 30, "{} is too large for OpenBLAS", value);
  return static_cast<blasint>(value);
}

void gemm_fp32(const Tensor& a, const Tensor& b, const Tensor& c, std::int64_t k, const GemmOptions& options) {
#ifdef FULMEN_ONEDNN
  const dnnl_status_t status =
      dnnl_sgemm(options.transpose_a ? 'T' : 'N', options.transpose_b ? 'T' : 'N', c.size(0), c.size(1), k,
                 static_cast<float>(options.alpha), a.as<float>(), leading_dimension(a), b.as<float>(),
                 leading_dimension(b), options.accumulate ? 1.0f : 0.0f, c.as<float>(), leading_dimension(c));
  FULMEN_CHECK(status == dnnl_success, "dnnl_sgemm failed with status {}", static_cast<int>(status));
#else
  cblas_sgemm(CblasRowMajor, options.transpose_a ? CblasTrans : CblasNoTrans,
              options.transpose_b ? CblasTrans : CblasNoTrans, narrow(c.size(0)), narrow(c.size(1)), narrow(k),
              static_cast<float>(options.alpha), a.as<float>(), narrow(leading_dimension(a)), b.as<float>(),
              narrow(leading_dimension(b)), options.accumulate ? 1.0f : 0.0f, c.as<float>(),
              narrow(leading_dimension(c)));
#endif
}

void gemm_fp64(const Tensor& a, const Tensor& b, const Tensor& c, std::int64_t k, const GemmOptions& options) {
  cblas_dgemm(CblasRowMajor, options.transpose_a ? CblasTrans : CblasNoTrans,
              options.transpose_b ? CblasTrans : CblasNoTrans, narrow(c.size(0)), narrow(c.size(1)), narrow(k),
              options.alpha, a.as<double>(), narrow(leading_dimension(a)), b.as<double>(), narrow(leading_dimension(b)),
              options.accumulate ? 1.0 : 0.0, c.as<double>(), narrow(leading_dimension(c)));
}

// fp32 product, fp64 sum: gradients kept wider than what they are made of.
void gemm_widening(const Execution& execution, const Tensor& a, const Tensor& b, const Tensor& c, std::int64_t k,
                   const GemmOptions& options) {
  Arena::Frame frame(*execution.scratch);
  const Tensor product = execution.scratch->take(DType::fp32, {c.size(0), c.size(1)});
  if (execution.plans()) return;
  GemmOptions fresh = options;
  fresh.accumulate = false;
  gemm_fp32(a, b, product, k, fresh);
  if (!options.accumulate) return cpu::copy(execution, product, c);
  parallel_rows(c.size(0), c.size(1), [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i)
      add_row(product.as<float>() + i * c.size(1), c.as<double>() + i * c.stride(0), c.size(1));
  });
}

}  // namespace

void gemm(const Execution& execution, const Tensor& a, const Tensor& b, const Tensor& c, const GemmOptions& options) {
  const std::int64_t k = options.transpose_a ? a.size(0) : a.size(1);
  if (execution.plans() && (k == 0 || a.dtype() == c.dtype())) return;
  if (k == 0) {
    if (!options.accumulate) clear(c);
    return;
  }
  const bool plain = !options.transpose_a && options.transpose_b && !options.accumulate && options.alpha == 1.0;
  if (plain && c.dtype() == a.dtype() && c.size(0) <= few_rows) return few_rows_times_matrix(a, b, c);
  if (a.dtype() == DType::fp64) return gemm_fp64(a, b, c, k, options);
  if (c.dtype() == DType::fp64) return gemm_widening(execution, a, b, c, k, options);
  gemm_fp32(a, b, c, k, options);
}

}  // namespace fulmen::cpu
