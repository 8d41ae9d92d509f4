// How cuBLASLt is to compute a product: its descriptors and the algorithm chosen for them, made once per kind.
#pragma once

#include <cublasLt.h>

#include <compare>
#include <cstdint>
#include <string>

#include "framework/execution.h"

namespace fulmen::cuda {

// Memory that an algorithm may work in. It is taken from the scratch arena at each product, which costs nothing, counts
// in the run's ledger, and cannot be shared by two streams.
inline constexpr std::int64_t gemm_workspace_bytes = std::int64_t{32} << 20;

// All that the choice of an algorithm depends on. Row-major c [m, n] = op(a) [m, k] op(b) [k, n] (+ c). The strides are
// between rows, in elements. The alignments belong to the data, in bytes.
struct GemmKind {
  int device = 0;
  DType in = DType::fp32, out = DType::fp32;
  std::int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false, transpose_b = false, accumulate = false, deterministic = false;
  int multiprocessors_left = 0;  // that the algorithm does without
  std::int64_t a_stride = 0, b_stride = 0, c_stride = 0;
  std::uint32_t a_alignment = 0, b_alignment = 0, c_alignment = 0;

  std::strong_ordering operator<=>(const GemmKind&) const = default;
  double operations() const;
  std::string describe() const;  // for messages
};

struct GemmOperands {
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;
  double alpha = 1.0;
};

class GemmPlan {
 public:
  explicit GemmPlan(const GemmKind& kind);
  ~GemmPlan();
  GemmPlan(const GemmPlan&) = delete;
  GemmPlan& operator=(const GemmPlan&) = delete;

  // Chooses the algorithm. Measures the candidates on these operands, waiting for the stream, where it pays. It does
  // not in deterministic mode, where all runs must choose alike, nor in a stream that is being captured. Leaves c as it
  // was when the product is added to it; undefined, and about to be written, when not.
  void choose(const Execution& execution, const GemmOperands& operands, void* workspace);
  // Takes the other's algorithm, if it can compute this kind.
  bool choose_as(const GemmPlan& other);
  void run(const Execution& execution, const GemmOperands& operands, void* workspace) const;

 private:
  // The sum of the product and c (or the product alone) into `sum`.
  cublasStatus_t launch(const Execution& execution, const GemmOperands& operands, void* sum,
                        const cublasLtMatmulAlgo_t& algorithm, void* workspace) const;

  GemmKind kind_;
  cublasLtMatmulDesc_t description_ = nullptr;
  cublasLtMatrixLayout_t a_layout_ = nullptr, b_layout_ = nullptr, c_layout_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_{};
};

// The plan of this kind of product, made and chosen at its first use in the process.
const GemmPlan& gemm_plan(const Execution& execution, const GemmKind& kind, const GemmOperands& operands,
                          void* workspace);

}  // namespace fulmen::cuda
