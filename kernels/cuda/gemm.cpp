// Matrix products on a GPU, at any stride and alignment: bf16 with sums in fp32, fp64, and true fp32. fp32 has sums in
// fp64 where the card's tensor cores make that as fast.
#include "kernels/gemm.h"

#include <algorithm>
#include <utility>

#include "framework/cuda_check.h"
#include "framework/gpu.h"
#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/widen.h"
#include "kernels/elementwise.h"

namespace fulmen::cuda {
namespace {

// cuBLASLt asks for a row stride of at least a row, also where there is one row and the stride means nothing.
std::int64_t row_stride(const Tensor& x) { return x.size(0) > 1 ? x.stride(0) : std::max<std::int64_t>(x.size(1), 1); }

// Bytes, at most the 256 beyond which no algorithm asks for more.
std::uint32_t alignment_of(const void* data) {
  const auto address = reinterpret_cast<std::uintptr_t>(data) | 256;
  return static_cast<std::uint32_t>(address & (~address + 1));
}

void set_zero(const Execution& execution, const Tensor& c) {
  const std::size_t element = size_of(c.dtype());
  FULMEN_CUDA_CHECK(cudaMemset2DAsync(
      c.data(), static_cast<std::size_t>(row_stride(c)) * element, 0, static_cast<std::size_t>(c.size(1)) * element,
      static_cast<std::size_t>(c.size(0)), static_cast<cudaStream_t>(execution.stream.handle)));
}

struct Range {
  std::int64_t begin, end;
};

// The fp64 equal of a part of a matrix, which is transposed there or not: `rows` and `columns` belong to the factor.
Tensor widened(const Execution& execution, const Tensor& x, bool transposed, Range rows, Range columns) {
  if (transposed) std::swap(rows, columns);
  const Tensor part = x.slice(0, rows.begin, rows.end).slice(1, columns.begin, columns.end);
  const Tensor wide = execution.scratch->take(DType::fp64, part.shape());
  cuda::copy(execution, part, wide);
  return wide;
}

// fp32 factors, their products and c's old elements added in fp64 and rounded once. A widened part is no
// larger than this squared, whatever the matrices.
constexpr std::int64_t widened_extent = 4096;

void gemm_in_double_precision(const Execution& execution, const Tensor& a, const Tensor& b, const Tensor& c,
                              const GemmOptions& options, std::int64_t k) {
  const auto for_each_range = [](std::int64_t extent, auto&& f) {
    for (std::int64_t begin = 0; begin < extent; begin += widened_extent)
      f(Range{begin, std::min(extent, begin + widened_extent)});
  };
  for_each_range(c.size(0), [&](Range rows) {
    for_each_range(c.size(1), [&](Range columns) {
      const Arena::Frame frame(*execution.scratch);
      const Tensor part = c.slice(0, rows.begin, rows.end).slice(1, columns.begin, columns.end);
      const bool narrow = c.dtype() != DType::fp64;
      const Tensor sum = narrow ? execution.scratch->take(DType::fp64, part.shape()) : part;
      if (narrow && options.accumulate) cuda::copy(execution, part, sum);
      for_each_range(k, [&](Range inner) {
        const Arena::Frame factors(*execution.scratch);
        GemmOptions of_part = options;
        of_part.accumulate = options.accumulate || inner.begin > 0;
        cuda::gemm(execution, widened(execution, a, options.transpose_a, rows, inner),
                   widened(execution, b, options.transpose_b, inner, columns), sum, of_part);
      });
      if (narrow) cuda::copy(execution, sum, part);
    });
  });
}

// The least memory that a product takes. Products in double precision also take copies of parts.
void plan_scratch(const Execution& execution, const Tensor& a, const Tensor& c) {
  const Arena::Frame frame(*execution.scratch);
  if (c.dtype() == DType::fp64 && a.dtype() != DType::fp64) execution.scratch->take(DType::fp32, c.shape());
  execution.scratch->take(DType::uint8, {gemm_workspace_bytes});
}

}  // namespace

void gemm(const Execution& execution, const Tensor& a, const Tensor& b, const Tensor& c, const GemmOptions& options) {
  const std::int64_t k = options.transpose_a ? a.size(0) : a.size(1);
  if (c.elements() == 0) return;
  if (execution.plans()) return plan_scratch(execution, a, c);
  if (k == 0) {
    if (!options.accumulate) set_zero(execution, c);
    return;
  }
  if (a.dtype() == DType::fp32 && gpu::fast_in_double_precision(execution.device.index))
    return gemm_in_double_precision(execution, a, b, c, options, k);
  const Arena::Frame frame(*execution.scratch);
  // cuBLASLt adds narrower factors in fp32 at most.
  if (c.dtype() == DType::fp64 && a.dtype() != DType::fp64) {
    const Tensor product = execution.scratch->take(DType::fp32, {c.size(0), c.size(1)});
    GemmOptions fresh = options;
    fresh.accumulate = false;
    cuda::gemm(execution, a, b, product, fresh);
    return widen(execution, product, options.accumulate, c);
  }
  const GemmKind kind{.device = execution.device.index,
                      .in = a.dtype(),
                      .out = c.dtype(),
                      .m = c.size(0),
                      .n = c.size(1),
                      .k = k,
                      .transpose_a = options.transpose_a,
                      .transpose_b = options.transpose_b,
                      .accumulate = options.accumulate,
                      .deterministic = execution.deterministic,
                      .multiprocessors_left = execution.multiprocessors_left,
                      .a_stride = row_stride(a),
                      .b_stride = row_stride(b),
                      .c_stride = row_stride(c),
                      .a_alignment = alignment_of(a.data()),
                      .b_alignment = alignment_of(b.data()),
                      .c_alignment = alignment_of(c.data())};
  const GemmOperands operands{a.data(), b.data(), c.data(), options.alpha};
  void* const workspace = execution.scratch->take(DType::uint8, {gemm_workspace_bytes}).data();
  gemm_plan(execution, kind, operands, workspace).run(execution, operands, workspace);
}

}  // namespace fulmen::cuda
